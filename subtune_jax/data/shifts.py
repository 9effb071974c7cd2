"""Shifts: how a target task differs from the source task it is made beside.

A shift makes both sides from one labelled image set; images are uint8, as stored.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.corruptions import CORRUPTIONS, corrupt
from subtune_jax.errors import InputError, unknown


class Shift(NamedTuple):
    """`source(data)` and `target(data, rng)` are the two tasks; level is `input`
    (pixels change), `feature` (sub-populations change) or `output` (labels change)."""

    level: str
    source: Callable[[Dataset], Dataset]
    target: Callable[[Dataset, np.random.Generator], Dataset]


def shift(name: str) -> Shift:
    """Returns a shift by name: one of `SHIFTS`, or a corruption and its severity, as
    `jpeg_compression_5`. Raises `InputError` for an unknown one."""
    if name in SHIFTS:
        return SHIFTS[name]
    corruption, _, severity = name.rpartition("_")
    if corruption not in CORRUPTIONS or severity not in list("12345"):
        raise unknown("shift", name, [*SHIFTS, *(f"{c}_5" for c in CORRUPTIONS)])
    return Shift("input", _same, partial(_corrupted, corruption, int(severity)))


def _corrupted(
    name: str, severity: int, data: Dataset, rng: np.random.Generator
) -> Dataset:
    return data._replace(x=corrupt(data.x, name, severity, rng))


def _same(data: Dataset, rng: np.random.Generator | None = None) -> Dataset:
    return data


def _with_pixels(data: Dataset, pixels: np.ndarray) -> Dataset:
    return data._replace(x=np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def gaussian_noise(data: Dataset, rng: np.random.Generator) -> Dataset:
    """Adds N(0, 102^2) to every pixel (0.4 of the range)."""
    return _with_pixels(data, data.x + rng.normal(0, 102, data.x.shape))


def blur(data: Dataset, rng: np.random.Generator) -> Dataset:
    """Blurs with a Gaussian of 1 pixel."""
    from scipy.ndimage import gaussian_filter

    return _with_pixels(data, gaussian_filter(data.x.astype(np.float32), (0, 1, 1, 0)))


def contrast(data: Dataset, rng: np.random.Generator) -> Dataset:
    """Shrinks every image's pixels to 15 % of their distance from its mean."""
    mean = data.x.mean(axis=(1, 2), keepdims=True)
    return _with_pixels(data, mean + 0.15 * (data.x - mean))


def half_population(data: Dataset, upper: bool) -> Dataset:
    """Returns one sub-population of each superclass, labelled by superclass.

    Of K classes, c and c + K/2 form superclass c; the lower half is one
    sub-population and the upper half the other, as in BREEDS. Raises `InputError` for
    odd K.
    """
    classes = int(data.y.max()) + 1
    if classes % 2:
        raise InputError(
            f"subpopulation needs an even number of classes, found {classes}"
        )
    chosen = data.take(np.flatnonzero((data.y >= classes // 2) == upper))
    return chosen._replace(y=chosen.y % (classes // 2))


def label_flip(data: Dataset, rng: np.random.Generator) -> Dataset:
    """Relabels class y of K as K - 1 - y (CIFAR-Flip, Lee et al. 2023)."""
    return data._replace(y=data.y.max() - data.y)


def label_permutation(data: Dataset, rng: np.random.Generator) -> Dataset:
    """Relabels classes by a random permutation without fixed points."""
    classes = int(data.y.max()) + 1
    order = np.arange(classes)
    while np.any(order == np.arange(classes)):
        order = rng.permutation(classes)
    return data._replace(y=order[data.y].astype(data.y.dtype))


SHIFTS = {
    "none": Shift("none", _same, _same),  # for data that are shifted already
    "gaussian_noise": Shift("input", _same, gaussian_noise),
    "blur": Shift("input", _same, blur),
    "contrast": Shift("input", _same, contrast),
    "subpopulation": Shift(
        "feature",
        lambda data: half_population(data, upper=False),
        lambda data, rng: half_population(data, upper=True),
    ),
    "label_flip": Shift("output", _same, label_flip),
    "label_permutation": Shift("output", _same, label_permutation),
}

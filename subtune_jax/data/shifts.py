"""Shifts: how a target task differs from the source task it is made beside.

A shift makes both sides from one labelled image set; images are float in [0, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from subtune_jax.data.batches import Data
from subtune_jax.errors import InputError, unknown


class Shift(NamedTuple):
    """`source(data)` and `target(data, rng)` are the two tasks; level is `input`
    (pixels change), `feature` (sub-populations change) or `output` (labels change)."""

    level: str
    source: Callable[[Data], Data]
    target: Callable[[Data, np.random.Generator], Data]


def shift(name: str) -> Shift:
    """Returns a shift by name; raises `InputError` for an unknown one."""
    if name not in SHIFTS:
        raise unknown("shift", name, SHIFTS)
    return SHIFTS[name]


def _same(data: Data, rng: np.random.Generator | None = None) -> Data:
    return data


def gaussian_noise(data: Data, rng: np.random.Generator) -> Data:
    """Adds N(0, 0.4^2) to every pixel and clips to [0, 1]."""
    noise = rng.normal(0, 0.4, data.x.shape)
    return data._replace(x=np.clip(data.x + noise, 0, 1).astype(np.float32))


def blur(data: Data, rng: np.random.Generator) -> Data:
    """Blurs with a Gaussian of 1 pixel."""
    from scipy.ndimage import gaussian_filter

    return data._replace(x=gaussian_filter(data.x, (0, 1, 1, 0)).astype(np.float32))


def contrast(data: Data, rng: np.random.Generator) -> Data:
    """Shrinks every image's pixels to 15 % of their distance from its mean."""
    mean = data.x.mean(axis=(1, 2), keepdims=True)
    return data._replace(x=(mean + 0.15 * (data.x - mean)).astype(np.float32))


def half_population(data: Data, upper: bool) -> Data:
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


def label_flip(data: Data, rng: np.random.Generator) -> Data:
    """Relabels class y of K as K - 1 - y (CIFAR-Flip, papers/surgical.md 2.2)."""
    return data._replace(y=data.y.max() - data.y)


def label_permutation(data: Data, rng: np.random.Generator) -> Data:
    """Relabels classes by a random permutation without fixed points."""
    classes = int(data.y.max()) + 1
    order = np.arange(classes)
    while np.any(order == np.arange(classes)):
        order = rng.permutation(classes)
    return data._replace(y=order[data.y].astype(data.y.dtype))


SHIFTS = {
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

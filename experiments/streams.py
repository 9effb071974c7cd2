"""Streams of images without labels, and the networks that adapt to them."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from subtune_jax.data.augmix import augmix_copies
from subtune_jax.data.batches import Dataset
from subtune_jax.losses import entropy, marginal_entropy
from subtune_jax.network import Labels, Network
from subtune_jax.training.loop import DivergedError
from subtune_jax.training.optimizers import adam, sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import predict
from subtune_jax.training.test_time import adapt_to_stream

ADAPTATIONS = ("memo", "tent")


class Way(NamedTuple):
    """How a network adapts: memo or tent, its rate, whether it forgets, its seed."""

    adaptation: str
    rate: float
    episodic: bool
    seed: int


def stream_outputs(
    network: Network,
    data: Dataset,
    chosen: Labels,
    way: Way,
    *,
    copies: int,
    batch: int,
    norm: str,
) -> tuple[np.ndarray, str]:
    """Returns the outputs and `ok`; or those up to where it diverged, and `diverged`.

    memo: plain SGD on the marginal entropy of `copies` AugMix copies of each image.
    tent: Adam on the entropy of each `batch` images, which are predicted after the step
    (its paper's code: before, recalled). papers/surgical.md 2.7.
    """
    views, rule, loss = {
        "memo": (memo_views(data, copies, way.seed), sgd, marginal_entropy),
        "tent": (tent_views(data, batch), adam, entropy),
    }[way.adaptation]
    plain = {"momentum": 0.0} if rule is sgd else {}
    adapted = adapt_to_stream(
        network,
        Phase(chosen, rule(way.rate, **plain), steps=1),
        views,
        loss=loss,
        key=jax.random.key(way.seed),
        norm=norm,
        episodic=way.episodic,
    )
    made = [predict(network, data.only(np.arange(1)))[:0]]
    try:
        made.extend(adapted)
    except DivergedError:
        return np.concatenate(made), "diverged"
    return np.concatenate(made), "ok"


def memo_views(data: Dataset, copies: int, seed: int) -> Iterator[tuple]:
    """Yields the AugMix copies of every image, and the image."""
    for index, image in enumerate(data.x[:]):
        rng = np.random.default_rng([seed, index + 1])  # [seed, 0] drew the task
        yield augmix_copies(image, copies, rng), image[None]


def tent_views(data: Dataset, size: int) -> Iterator[tuple]:
    """Yields batches of images twice: to adapt to, and to predict."""
    for begin in range(0, len(data.y), size):
        batch = data.x[begin : begin + size]
        yield batch, batch

"""Examples as arrays, and the batches of an epoch."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax.errors import InputError, require_positive


class Data(NamedTuple):
    """Inputs (a pytree of arrays, example first) and targets [examples, ...]."""

    x: Any
    y: np.ndarray

    def take(self, index: Sequence[int] | np.ndarray) -> "Data":
        """Returns the examples at `index`, in that order."""
        return Data(jax.tree.map(lambda leaf: leaf[index], self.x), self.y[index])


class Batch(NamedTuple):
    """A batch of fixed size; padding rows have weight 0, all others 1 (float32)."""

    x: Any
    y: np.ndarray
    weight: np.ndarray


def steps_per_epoch(examples: int, size: int, *, drop: bool) -> int:
    """Returns the batches of an epoch; a ragged last one counts unless dropped.

    Raises `InputError` when there is not one batch.
    """
    require_positive(batch_size=size, examples=examples)
    steps = examples // size if drop else -(-examples // size)
    if not steps:
        raise InputError(
            f"batch size {size} is more than the {examples} examples, and a ragged "
            "batch is dropped under batch statistics or accumulation"
        )
    return steps


def epoch(
    data: Data, size: int, *, seed: Sequence[int], number: int, drop: bool
) -> Iterator[Batch]:
    """Yields the batches of epoch `number`, in an order drawn from (seed, number)."""
    order = np.random.default_rng([*seed, number]).permutation(len(data.y))
    for step in range(steps_per_epoch(len(data.y), size, drop=drop)):
        yield padded(data.take(order[step * size : (step + 1) * size]), size)


def in_order(data: Data, size: int) -> Iterator[Batch]:
    """Yields all examples once, in order, the last batch padded."""
    for begin in range(0, len(data.y), size):
        yield padded(data.take(slice(begin, begin + size)), size)


def padded(data: Data, size: int) -> Batch:
    """Returns a batch of `size` rows: the examples, then copies of the first, weight 0."""
    missing = size - len(data.y)
    index = np.concatenate([np.arange(len(data.y)), np.zeros(missing, int)])
    weight = np.concatenate([np.ones(len(data.y)), np.zeros(missing)])
    filled = data.take(index) if missing else data
    return Batch(filled.x, filled.y, weight.astype(np.float32))

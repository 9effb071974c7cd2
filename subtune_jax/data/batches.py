"""Examples as arrays, and the batches of an epoch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data.buckets import Ragged, by_length, lengths
from subtune_jax.errors import InputError, require_positive

Augment = Callable[[Any, np.random.Generator], Any]


class Dataset(NamedTuple):
    """Inputs (a pytree of arrays, example first) and targets [examples, ...].

    classes: the names of the labels 0, 1, ..., () where they have none.
    """

    x: Any
    y: np.ndarray
    classes: tuple[str, ...] = ()

    def take(self, index: Sequence[int] | np.ndarray | slice) -> "Dataset":
        """Returns the examples at `index`, in that order."""
        x = jax.tree.map(lambda leaf: leaf[index], self.x)
        return self._replace(x=x, y=self.y[index])

    def only(self, index: np.ndarray) -> "Dataset":
        """Returns the examples at `index`; images that are read when taken stay unread."""

        def part(leaf):
            return leaf.only(index) if hasattr(leaf, "only") else leaf[index]

        return self._replace(x=jax.tree.map(part, self.x), y=self.y[index])

    def fingerprint(self) -> str:
        """Returns a SHA-256 of all that is in memory, and of 64 rows of what is read when
        taken."""
        rows = np.unique(np.linspace(0, len(self.y) - 1, 64).astype(int))

        def part(leaf):
            if isinstance(leaf, Ragged):
                return {"values": leaf.values, "ends": leaf.ends}
            return leaf if isinstance(leaf, np.ndarray | jax.Array) else leaf[rows]

        x = jax.tree.map(part, self.x)
        return tree.fingerprint({"x": x, "y": np.asarray(self.y)})


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
    data: Dataset,
    size: int,
    *,
    seed: Sequence[int],
    number: int,
    drop: bool,
    start: int = 0,
    augment: Augment | None = None,
    sizes: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yields the batches of epoch `number` from the `start`-th on.

    Order and augmentation are functions of (seed, number, place in the epoch) and of
    `sizes` alone, int[examples], by default the lengths of ragged rows: those of like
    sizes come together. Grain reads and augments batches ahead in
    threads of its own.
    """
    import grain  # over a second of imports, only when there is something to train on

    rng = np.random.default_rng([*seed, number])
    order = rng.permutation(len(data.y))
    sizes = lengths(data.x) if sizes is None else sizes
    if sizes is not None:
        order = by_length(order, sizes, size, rng)

    def make(step: int) -> Batch:
        chosen = data.take(order[step * size : (step + 1) * size])
        if augment is not None:
            # NumPy pads a seed with zeros: no stream but the order's may end in one
            rng = np.random.default_rng([*seed, number, step + 1])
            chosen = chosen._replace(x=augment(chosen.x, rng))
        return padded(chosen, size)

    steps = grain.MapDataset.range(start, steps_per_epoch(len(data.y), size, drop=drop))
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    yield from steps.map(make).to_iter_dataset(ahead)


def in_order(data: Dataset, size: int) -> Iterator[Batch]:
    """Yields all examples once, in order, the last batch padded."""
    for begin in range(0, len(data.y), size):
        yield padded(data.take(slice(begin, begin + size)), size)


def padded(data: Dataset, size: int) -> Batch:
    """Returns a batch of `size` rows: the examples, then copies of the first, weight 0."""
    missing = size - len(data.y)
    index = np.concatenate([np.arange(len(data.y)), np.zeros(missing, int)])
    weight = np.concatenate([np.ones(len(data.y)), np.zeros(missing)])
    filled = data.take(index) if missing else data
    return Batch(filled.x, filled.y, weight.astype(np.float32))

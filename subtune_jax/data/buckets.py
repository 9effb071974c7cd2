"""Rows of different lengths, padded only as far as the rows of a batch need."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from subtune_jax.errors import InputError

BUCKETS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Ragged:
    """An array of rows [length_i, ...] one after the other, a leaf of `Dataset.x`.

    `ragged[index]` with an integer array or a slice returns [n, bucket, ...]: the rows
    padded with zeros to the smallest bucket that holds the longest, so that batches
    have few shapes and short ones do not pay for long ones.
    """

    values: np.ndarray  # [sum of lengths, ...]
    ends: np.ndarray  # int[n], where each row ends
    buckets: tuple[int, ...] = BUCKETS

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> np.ndarray:
        """The number of entries of every row."""
        return np.diff(self.ends, prepend=0)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        ends, lengths = self.ends[index], self.lengths[index]
        width = self.width(int(lengths.max(initial=1)))
        inside = np.arange(width)[None] < lengths[:, None]
        source = np.where(inside, (ends - lengths)[:, None] + np.arange(width)[None], 0)
        padded = self.values[source]
        padded[~inside] = 0
        return padded

    def only(self, index: np.ndarray) -> "Ragged":
        """Returns these rows alone, in that order."""
        begins = (self.ends - self.lengths)[index]
        rows = [np.arange(b, e) for b, e in zip(begins, self.ends[index], strict=True)]
        values = self.values[np.concatenate(rows)] if rows else self.values[:0]
        return Ragged(values, np.cumsum(self.lengths[index]), self.buckets)

    def width(self, length: int) -> int:
        """Returns the smallest bucket that holds so many entries."""
        fitting = [size for size in self.buckets if size >= length]
        return min(fitting, default=length)


def ragged(rows: list[np.ndarray], buckets: tuple[int, ...] = BUCKETS) -> Ragged:
    """Returns rows [length_i, ...] as one ragged array; raises `InputError` for none."""
    if not rows:
        raise InputError("there are no rows to make a ragged array of")
    return Ragged(np.concatenate(rows), np.cumsum([len(row) for row in rows]), buckets)


def first_ragged(x: Any) -> Ragged | None:
    """Returns the first ragged leaf of inputs, or `None` without one."""
    leaves = [leaf for leaf in jax.tree.leaves(x) if isinstance(leaf, Ragged)]
    return leaves[0] if leaves else None


def lengths(x: Any) -> np.ndarray | None:
    """Returns the lengths of the first ragged leaf of inputs, or `None` without one."""
    first = first_ragged(x)
    return None if first is None else first.lengths


def by_length(
    order: np.ndarray, sizes: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns the order with rows of like lengths in the same batches of `size`.

    The rows of a ragged last batch are the last of the random order, whatever their
    lengths: every row is as likely to be among them. The others are sorted within random
    pools of 32 batches, and the whole batches of the epoch shuffled.
    """
    whole, pool = len(order) // size * size, 32 * size
    pools = [order[begin : min(begin + pool, whole)] for begin in range(0, whole, pool)]
    sorted_ = [p[np.argsort(sizes[p], kind="stable")] for p in pools]
    batches = rng.permutation(np.concatenate([order[:0], *sorted_]).reshape(-1, size))
    return np.concatenate([batches.ravel(), order[whole:]])

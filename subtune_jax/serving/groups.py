"""A batch in groups of rows, each by a program of its own, and put together again."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree

Call = tuple[Sequence[int], Callable[[np.ndarray, Any], Any]]


def by_group(calls: Sequence[Call], x: Any) -> Any:
    """Returns what the groups give for their rows of a batch, in the order of the batch.

    calls: the rows of each group, and its function (rows, x of these) -> y. A group is
    filled up to a power of two by rows that it has already. Rows of no group are zeros.
    """
    # A stage is compiled for every shape that it meets. Rows are taken and put back outside
    # of it, so that it meets the sizes of groups alone, and not each in every batch.
    leaf = jax.tree.leaves(x)[0]
    count, y = leaf.shape[0], None
    for rows, run in calls:
        if len(rows) == count:
            return run(np.arange(count), x)
        size = 1 << (len(rows) - 1).bit_length()
        padded = np.array(rows, np.int32)[np.arange(size) % len(rows)]
        index = tree.beside(padded, leaf)
        new = run(padded, _taken(x, index))
        y = _spread(new, index, count) if y is None else _put(y, new, index)
    return y


@jax.jit
def _taken(x: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], x)


@partial(jax.jit, static_argnums=2)
def _spread(new: Any, index: jax.Array, count: int) -> Any:
    """Returns a batch of `count` rows: a group's in their places, and zeros."""
    zeros = jax.tree.map(lambda y: jnp.zeros((count, *y.shape[1:]), y.dtype), new)
    return _put(zeros, new, index)


@partial(jax.jit, donate_argnums=0)
def _put(y: Any, new: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda old, rows: old.at[index].set(rows), y, new)

"""Stages that run once for each of their distinct weights, on the rows that have them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.memory import program_cache
from subtune_jax.network import Stage, forward


def by_group(
    stages: tuple[Stage, ...],
    code: str,
    groups: Mapping[Any, Sequence[int]],
    weights: Mapping[Any, Any],
    x: Any,
) -> Any:
    """Returns what the stages give for a batch, in the order of its rows.

    groups: the rows of each distinct (params, stats). A group is filled up to a power of
    two by rows that it has already, so that a batch of any mix meets few programs. Rows
    of no group are zeros.
    """
    run, y = group_program(stages, code), None
    for name, rows in groups.items():
        size = 1 << (len(rows) - 1).bit_length()
        index = np.array(rows, np.int32)[np.arange(size) % len(rows)]
        if y is None:
            shapes = jax.eval_shape(partial(_run, stages), *weights[name], x)
            zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
            y = tree.beside(zeros, weights[name])
        y = run(*weights[name], x, y, index)
    return y


@program_cache(256)
def group_program(stages: tuple[Stage, ...], code: str) -> Callable:
    """Returns the jitted `(params, stats, x, y, index) -> y` with the rows of one group
    filled in; y is donated."""
    del code  # part of the key: what the stages read may have changed

    def run(params: Any, stats: Any, x: Any, y: Any, index: jax.Array) -> Any:
        taken = jax.tree.map(lambda leaf: leaf[index], x)
        new = _run(stages, params, stats, taken)
        return jax.tree.map(lambda old, rows: old.at[index].set(rows), y, new)

    return jax.jit(run, donate_argnums=3)


def _run(stages: tuple[Stage, ...], params: Any, stats: Any, x: Any) -> Any:
    return forward(stages, params, stats, x)[0]

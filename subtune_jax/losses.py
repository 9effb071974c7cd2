"""Losses per example, and their mean over a batch: shapes are checked when traced.

A loss of [batch, 1], or weights of that shape, would broadcast to a mean that is wrong
by the size of the batch, in silence.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.errors import InputError


def require_rows(batch: Any) -> None:
    """Raises `InputError` unless a batch has a target and a weight for every example."""
    if getattr(batch.y, "dtype", np.dtype(object)).kind in "OUS":
        raise InputError("the targets of a batch must be numbers (classes from 0 up)")
    rows, weights = jnp.shape(batch.y)[0], jnp.shape(batch.weight)
    inputs = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch.x)}
    if inputs != {rows}:
        raise InputError(
            f"a batch has {', '.join(map(str, sorted(inputs)))} inputs and {rows} "
            "targets: expected as many"
        )
    if weights != (rows,):
        raise InputError(
            f"the weights of a batch have shape {list(weights)}: expected one number per "
            f"example, [{rows}]"
        )


def per_example(loss: Callable, outputs: Any, targets: Any) -> jax.Array:
    """Returns loss(outputs, targets), float[batch].

    Raises `InputError` where outputs and targets differ in number, and for a loss of
    another shape.
    """
    rows = _rows(targets)
    if _rows(outputs) != rows:
        raise InputError(
            f"the network made {_rows(outputs)} outputs for {rows} targets: expected one "
            "for each"
        )
    values = loss(outputs, targets)
    if jnp.shape(values) != (rows,):
        name = getattr(loss, "__name__", "the loss")
        shapes = [list(jnp.shape(jax.tree.leaves(v)[0])) for v in (outputs, targets)]
        raise InputError(
            f"{name} returned shape {list(jnp.shape(values))} for outputs {shapes[0]} "
            f"and targets {shapes[1]}: expected one number per example, [{rows}]"
        )
    return values


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns sum(weight * values) / sum(weight), both float[batch]."""
    return jnp.sum(values * weight) / jnp.sum(weight)


def _rows(values: Any) -> int:
    return jax.tree.leaves(values)[0].shape[0]

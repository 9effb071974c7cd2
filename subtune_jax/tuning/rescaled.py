"""Rescaled tuning: factors of the weights train, not the weights."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.network import Labels, Params
from subtune_jax.tuning.method import Parts, Tuning, leaf_groups, no_penalty
from subtune_jax.tuning.subset import init as selected


def rescaled(free: Sequence[str] = ("head",)) -> Tuning:
    """Returns the tuning w <- c * w_0, c trained from 1, of every trainable leaf outside
    the `free` groups; those train as they are.

    The control that separates the size of a weight from its place: under Adam a step
    moves every weight by the same share of itself, where it moves w itself by about
    the rate. A weight that is 0 stays 0. The control is our own, for the
    transferability of modules. In the trainable tree c stands at `PATH/factor`.
    """

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Parts:
        half = selected(params, labels).trainable
        groups = tree.flatten(labels)
        return Parts(
            tree.map_with_path(
                lambda path, w: (
                    w if groups[path] in free else {"factor": jnp.ones_like(w)}
                ),
                half,
            )
        )

    return Tuning(init, leaf_groups, materialize, no_penalty)


def materialize(
    trainable: Params, fixed: Any, params: Params, key: jax.Array | None = None
) -> Params:
    """Returns the base with its leaves multiplied by their factors, or replaced."""
    del fixed, key
    values = tree.flatten(trainable)

    def whole(path: str, leaf: jax.Array) -> jax.Array:
        factor = values.get(f"{path}/factor")
        return values.get(path, leaf) if factor is None else factor * leaf

    return tree.map_with_path(whole, params)

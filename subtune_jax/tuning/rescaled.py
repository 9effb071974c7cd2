"""Rescaled tuning: factors of the weights train, not the weights."""

from functools import cache

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.network import Labels, Params
from subtune_jax.tuning import subset
from subtune_jax.tuning.method import Tuning


@cache
def rescaled(free: tuple[str, ...] = ("head",)) -> Tuning:
    """Returns the tuning w <- c * w_0, c trained from 1, of every trainable leaf outside
    the `free` stages; those train as they are.

    The control that separates the size of a weight from its place: under Adam a step
    moves every weight by the same share of itself, where it moves w itself by about
    the rate. A weight that is 0 stays 0. papers/transformer_modules.md 3.5 (proposed
    there).
    """

    def factor(path: str) -> bool:
        return path.partition("/")[0] not in free

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Params:
        half = subset.init(params, labels, key)
        return tree.map_with_path(
            lambda path, w: jnp.ones_like(w) if factor(path) else w, half
        )

    def materialize(
        trainable: Params, params: Params, key: jax.Array | None = None
    ) -> Params:
        del key
        values = tree.flatten(trainable)

        def whole(path: str, leaf: jax.Array) -> jax.Array:
            value = values.get(path)
            if value is None:
                return leaf
            return value * leaf if factor(path) else value

        return tree.map_with_path(whole, params)

    return Tuning(init, subset.groups, materialize, subset.penalty)

"""Subset tuning: the selected leaves themselves train, in place."""

from typing import Any

import jax

from subtune_jax import tree
from subtune_jax.labels import trainable_half
from subtune_jax.network import Labels, Params
from subtune_jax.tuning.method import Ended, Parts, Tuning, leaf_groups, no_penalty


def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Parts:
    """Returns copies of the leaves whose label is not `frozen`, `None` elsewhere."""
    del key
    return Parts(tree.copy(trainable_half(params, labels)))


def materialize(
    trainable: Params, fixed: Any, params: Params, key: jax.Array | None = None
) -> Params:
    """Returns the base with the trainable leaves put in place."""
    del fixed, key
    values = tree.flatten(trainable)
    return tree.map_with_path(lambda path, leaf: values.get(path, leaf), params)


def take_over(
    ended: Ended, params: Params, labels: Labels, key: jax.Array | None = None
) -> Parts:
    """Returns copies of the live leaves, whatever tuned them before."""
    del params
    return init(ended.params, labels, key)


def subset() -> Tuning:
    """Returns the tuning under which the selected leaves themselves train.

    Trainable is the selected half of the parameters; it is put in place of theirs.
    """
    return Tuning(init, leaf_groups, materialize, no_penalty, take_over)

"""Subset tuning: the selected leaves themselves train, in place."""

import jax

from subtune_jax import tree
from subtune_jax.network import Labels, Params, trainable_half
from subtune_jax.tuning.method import Tuning


def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Params:
    """Returns copies of the leaves whose label is not `frozen`, `None` elsewhere."""
    del key
    return tree.copy(trainable_half(params, labels))


def groups(trainable: Params, labels: Labels) -> Labels:
    """Returns the labels of the trainable leaves."""
    del trainable
    return trainable_half(labels, labels)


def materialize(
    trainable: Params, params: Params, key: jax.Array | None = None
) -> Params:
    """Returns the base with the trainable leaves put in place."""
    del key
    return tree.combine(trainable, params)


def penalty(trainable: Params, params: Params) -> float:
    """Returns 0: subset tuning has no regularizer of its own."""
    del trainable, params
    return 0.0


subset = Tuning(init, groups, materialize, penalty)

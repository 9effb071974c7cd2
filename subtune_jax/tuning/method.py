"""What a tuning is: four pure functions around a trainable tree."""

from collections.abc import Callable
from typing import NamedTuple


class Tuning(NamedTuple):
    """How a trainable tree is made from the base and becomes parameters again.

    init(params, labels, key) -> trainable
        The only tree that is differentiated, optimized and counted. Its leaves are
        fresh buffers, so that donating it never deletes the base.
    groups(trainable, labels) -> a group name at every leaf of the trainable tree
        The optimizer has one rule per group.
    materialize(trainable, params, key | None) -> params
        The parameters of the network; deterministic without a key. Right after `init`
        this is the pretrained function.
    penalty(trainable, params) -> scalar, added to the mean loss.

    `params` is always the whole base. Tunings are compared by their functions, so
    make one with settings through a cached function (see `anchor`).
    """

    init: Callable
    groups: Callable
    materialize: Callable
    penalty: Callable

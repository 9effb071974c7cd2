"""What a tuning is: pure functions around a trainable tree."""

from collections.abc import Callable
from typing import Any, NamedTuple

from subtune_jax import tree
from subtune_jax.labels import FROZEN
from subtune_jax.network import Labels, Params
from subtune_jax.programs import Traces


class Parts(NamedTuple):
    """What a tuning keeps of a run.

    trainable: a tree like the parameters, absent where nothing trains; a trained leaf
    may have a subtree in its place (`.../kernel/factor`). What belongs to no leaf stands
    under a key that is not a stage. fixed: arrays that the tuning needs and does not
    train, such as the indices of a mask or the strength of a penalty.
    """

    trainable: Any
    fixed: Any = None


class Ended(NamedTuple):
    """The phase before: its tuning, its parts, and the live parameters at its end."""

    tuning: "Tuning"
    parts: Parts
    params: Params


class Tuning(NamedTuple):
    """How a trainable tree is made from the base and becomes parameters again.

    init(params, labels, key) -> Parts
        Its trainable tree is the only one that is differentiated, optimized and
        counted. Leaves are fresh buffers, so that donating them never deletes the base.
    groups(trainable, labels) -> a group name at every leaf of the trainable tree
        The optimizer has one rule per group.
    materialize(trainable, fixed, params, key | None) -> params
        The parameters of the network; deterministic without a key. Right after `init`
        this is the pretrained function.
    penalty(trainable, fixed, params) -> scalar, added to the mean loss.
    take_over(ended, params, labels, key) -> Parts, or None
        How it begins where the phase before had another tuning. None: it cannot.
    decayed(trainable, fixed, params) -> a tree like the trainable one, or None
        What weight decay and L2 pull to 0. None: the trainable values.

    `params` is always the whole base. Settings are `fixed` values and not closed over, so
    that runs with other settings share a program.
    """

    init: Callable
    groups: Callable
    materialize: Callable
    penalty: Callable
    take_over: Callable | None = None
    decayed: Callable | None = None


def leaf_groups(trainable: Any, labels: Labels) -> Any:
    """Returns the label of the leaf that every trainable leaf belongs to."""
    owners, names = tree.owners(trainable, labels), tree.flatten(labels)
    return tree.map_with_path(lambda path, _: names[owners[path]], trainable)


def trained_labels(trainable: Any, labels: Labels) -> Labels:
    """Returns the labels with `frozen` at leaves of which nothing trains."""
    trained = set(tree.owners(trainable, labels).values())
    return tree.map_with_path(
        lambda path, label: label if path in trained else FROZEN, labels
    )


def no_penalty(trainable: Any, fixed: Any, params: Params) -> float:
    """Returns 0: the tuning has no regularizer of its own."""
    del trainable, fixed, params
    return 0.0


def call_anew(f: Callable, *args: Any) -> Any:
    """Returns f(*args), of a tuning's function that runs outside of a compiled step: as its
    code is now, also behind an inner `jax.jit`."""
    # Every operation of a user's tuning compiles again here; those of ours do not.
    return Traces().once("", f, lambda: f(*args))

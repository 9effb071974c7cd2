"""Labels: which stages and leaves train, normalize by the batch, and drop out."""

from collections.abc import Sequence
from typing import Any

import jax

from subtune_jax import tree
from subtune_jax.errors import InputError, unknown
from subtune_jax.network import Labels, Stage, Stats

FROZEN = "frozen"  # the group that does not train
NORM_MODES = ("stored", "tuned", "batch")
DROPOUT_MODES = ("tuned", "all", "none")


def trainable_half(values: Any, labels: Labels) -> Any:
    """Returns the half of a tree like the parameters whose label is not `frozen`."""
    mask = jax.tree.map(lambda label: label != FROZEN, labels)
    return tree.partition(values, mask)[0]


def lowest_trainable(stages: tuple[Stage, ...], labels: Labels) -> int:
    """Returns the index of the first stage with a trainable leaf (else their number)."""
    for index, stage in enumerate(stages):
        if any(label != FROZEN for label in jax.tree.leaves(labels[stage.name])):
            return index
    return len(stages)


def stages_with_batch_stats(
    stats: Stats, labels: Labels, norm: str | Sequence[str]
) -> frozenset[str]:
    """Returns the stages whose norms use batch statistics and update their own.

    `stored`: none (surgical fine-tuning). `batch`: every stage that has statistics.
    `tuned`: those whose norms train (SubTuning), that is the parameters with statistics
    beside them. Or the names of stages. `labels` are those of what trains: `frozen`
    where a selected leaf rests. Raises `InputError` for another mode or name, and where
    `tuned` meets a stage of which only some norm parameters train: its frozen norms'
    statistics would move.
    """
    normed = {name.rpartition("/")[0] for name in tree.flatten(stats)}
    every = frozenset(name.partition("/")[0] for name in normed)
    if not isinstance(norm, str):
        return _named("norm", NORM_MODES, norm, every)
    if norm not in NORM_MODES:
        raise unknown("norm mode", norm, NORM_MODES)
    if norm != "tuned":
        return every if norm == "batch" else frozenset()
    trains: dict[str, set[bool]] = {}
    for name, label in tree.flatten(labels).items():
        if name.rpartition("/")[0] in normed:
            trains.setdefault(name.partition("/")[0], set()).add(label != FROZEN)
    mixed = [stage for stage, found in trains.items() if len(found) > 1]
    if mixed:
        raise InputError(
            "norm 'tuned' needs the norms of a stage to train together or not at all: "
            f"stage {mixed[0]!r} has both; make more stages of it, or take stored or batch"
        )
    return frozenset(stage for stage, found in trains.items() if found == {True})


def stages_with_dropout(
    stages: tuple[Stage, ...], labels: Labels, dropout: str | Sequence[str]
) -> frozenset[str]:
    """Returns the stages that get a key, and so may drop out.

    `all`, `none`, or `tuned`: those in which something trains (SubTuning), so that what
    lies below them draws nothing and can be cached. A stage without parameters goes with
    the next one that has some: dropout before a layer is part of tuning that layer. Or
    the names of stages. Raises `InputError` for another mode or name.
    """
    every = frozenset(stage.name for stage in stages)
    if not isinstance(dropout, str):
        return _named("dropout", DROPOUT_MODES, dropout, [s.name for s in stages])
    if dropout not in DROPOUT_MODES:
        raise unknown("dropout mode", dropout, DROPOUT_MODES)
    if dropout != "tuned":
        return every if dropout == "all" else frozenset()
    drops, above = set(), False
    for stage in reversed(stages):
        leaves = jax.tree.leaves(labels[stage.name])
        above = any(label != FROZEN for label in leaves) if leaves else above
        drops |= {stage.name} if above else set()
    return frozenset(drops)


def _named(
    option: str,
    modes: Sequence[str],
    names: Sequence[str],
    stages: Sequence[str] | frozenset[str],
) -> frozenset[str]:
    """Returns the stages that an option names; `norm` takes those with statistics alone."""
    if not isinstance(names, Sequence):
        raise InputError(
            f"{option} must be {', '.join(modes)} or a list of names of stages, got "
            f"{names!r}"
        )
    kind = "stage with batch statistics" if option == "norm" else "stage"
    for name in names:
        if name not in stages:
            raise unknown(kind, name, sorted(stages))
    return frozenset(names)

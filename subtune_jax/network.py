"""A network is a sequence of stages, and its forward pass a fold over them.

Everything selective follows from that: the lowest stage with a trainable leaf is where
the backward pass ends, stages below it can be computed once, and each stage is told on
its own whether its norms use batch statistics or stored ones.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.errors import InputError, unknown

Params = dict[str, Any]  # {stage name: nested dict of arrays}
Stats = dict[str, Any]  # batch statistics, same form; empty where a stage has none
Labels = dict[str, Any]  # like Params, a group name at every leaf
UnitTable = Mapping[str, Mapping[str, tuple[str, ...]]]  # {table: {unit: patterns}}

FROZEN = "frozen"  # the group that does not train
LECUN_NORMAL = jax.nn.initializers.lecun_normal()
NORM_MODES = ("stored", "tuned", "batch")
DROPOUT_MODES = ("tuned", "all", "none")


class Stage(NamedTuple):
    """One step of the forward pass.

    `apply(params, stats, x, *, batch_stats, key) -> (x, stats)` is pure: `params` and
    `stats` are this stage's own, `x` is a pytree with the batch first, `batch_stats`
    says whether norms use (and update) batch statistics, and dropout runs iff a `key`
    is given. Stages that compute the same share one `apply`.
    """

    name: str
    apply: Callable


class Pixels(NamedTuple):
    """A network that reads pixels from 0 to 255 of any dtype, [batch, height, width,
    channels]."""

    channels: int


class Tokens(NamedTuple):
    """A network that reads `input_ids` below `vocabulary`, and `token_type_ids` below
    `types`."""

    vocabulary: int
    types: int


class Source(NamedTuple):
    """Where a network came from, and what it reads.

    classes: the names of its outputs in their order, () where they are not known.
    fingerprint: SHA-256 of the tensors of its file, without the head's. folder: where
    the files are.
    """

    reads: Pixels | Tokens | None = None
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    folder: str = ""


class Network(NamedTuple):
    """Stages with their parameters, statistics and unit tables; an immutable value.

    `first` is the index of its first stage in the whole network, where this is a suffix
    of one: keys are counted from there. `source`, where there is one, says what it reads.
    """

    stages: tuple[Stage, ...]
    params: Params
    stats: Stats
    units: UnitTable
    first: int = 0
    source: Source | None = None

    def __call__(self, x: Any) -> Any:
        """Returns the outputs for a batch `x`: stored statistics, no dropout."""
        return forward(self.stages, self.params, self.stats, x)[0]

    def __repr__(self) -> str:
        names = ", ".join(stage.name for stage in self.stages)
        return f"Network({tree.count(self.params):,} parameters in stages {names})"


def forward(
    stages: tuple[Stage, ...],
    params: Params,
    stats: Stats,
    x: Any,
    *,
    batch_stats: frozenset[str] = frozenset(),
    dropout: frozenset[str] | None = None,
    key: jax.Array | None = None,
    first: int = 0,
    start: int = 0,
    stop: int | None = None,
) -> tuple[Any, Stats]:
    """Returns the activations after stages `start` to `stop` (excluded), and all stats.

    x_{i+1} = f_i(params_i, x_i). The key of stage i is `fold_in(key, first + i)`: `first`
    is the index of these stages' first one in the whole network, so that prefix and
    suffix compose exactly. `dropout` names the stages that get a key; None: all.
    """
    stats = dict(stats)
    for index, (name, apply) in list(enumerate(stages))[start:stop]:
        draws = key is not None and (dropout is None or name in dropout)
        stage_key = jax.random.fold_in(key, first + index) if draws else None
        x, stats[name] = apply(
            params[name], stats[name], x, batch_stats=name in batch_stats, key=stage_key
        )
    return x, stats


def rematerialized(network: Network) -> Network:
    """Returns the network with what happens inside a stage computed again in the backward
    pass instead of kept: less memory, one more forward pass from the lowest tuned stage."""
    stages = tuple(
        stage._replace(apply=_remat(stage.apply)) for stage in network.stages
    )
    return network._replace(stages=stages)


@lru_cache(256)
def _remat(apply: Callable) -> Callable:
    def again(params, stats, x, *, batch_stats: bool, key):
        run = partial(apply, batch_stats=batch_stats)
        return jax.checkpoint(run)(params, stats, x, key=key)

    return again


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
        return _named("stage with batch statistics", norm, every)
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
            f"stage {mixed[0]!r} has both"
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
        return _named("stage", dropout, [stage.name for stage in stages])
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
    kind: str, names: Sequence[str], choices: Sequence[str] | frozenset[str]
) -> frozenset[str]:
    for name in names:
        if name not in choices:
            raise unknown(kind, name, sorted(choices))
    return frozenset(names)


def linear(
    params: Params,
    stats: Stats,
    x: jax.Array,
    *,
    batch_stats: bool,
    key: jax.Array | None,
) -> tuple[jax.Array, Stats]:
    """The head stage x W + b: `kernel` [features, outputs], `bias` [outputs]."""
    del batch_stats, key
    return x @ params["kernel"] + params["bias"][None], stats


def linear_params(
    key: jax.Array,
    features: int,
    outputs: int,
    init: Callable = LECUN_NORMAL,
) -> Params:
    """Returns the float32 parameters of `linear`: W drawn by `init`, b = 0."""
    kernel = init(key, (features, outputs), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros((outputs,), jnp.float32)}

"""A network is a sequence of stages, and its forward pass a fold over them.

Everything selective follows from that: the lowest stage with a trainable leaf is where
the backward pass ends, stages below it can be computed once, and each stage is told on
its own whether its norms use batch statistics or stored ones.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
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


class Stage(NamedTuple):
    """One step of the forward pass.

    `apply(params, stats, x, *, batch_stats, key) -> (x, stats)` is pure: `params` and
    `stats` are this stage's own, `x` is a pytree with the batch first, `batch_stats`
    says whether norms use (and update) batch statistics, and dropout runs iff a `key`
    is given. Stages that compute the same share one `apply`.
    """

    name: str
    apply: Callable


class Network(NamedTuple):
    """Stages with their parameters, statistics and unit tables; an immutable value."""

    stages: tuple[Stage, ...]
    params: Params
    stats: Stats
    units: UnitTable

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
    key: jax.Array | None = None,
    start: int = 0,
    stop: int | None = None,
) -> tuple[Any, Stats]:
    """Returns the activations after stages `start` to `stop` (excluded), and all stats.

    x_{i+1} = f_i(params_i, x_i). The key of stage i is `fold_in(key, i)` with i counted
    from the first stage of the whole network, so prefix and suffix compose exactly.
    """
    stats = dict(stats)
    for index, (name, apply) in list(enumerate(stages))[start:stop]:
        stage_key = None if key is None else jax.random.fold_in(key, index)
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


@cache
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


def stages_with_batch_stats(stats: Stats, labels: Labels, norm: str) -> frozenset[str]:
    """Returns the stages whose norms use batch statistics and update their own.

    `stored`: none (surgical fine-tuning). `batch`: every stage that has statistics.
    `tuned`: those whose norms train (SubTuning), that is the parameters with statistics
    beside them. Raises `InputError` for another mode, and where `tuned` meets a stage
    of which only some norm parameters train: its frozen norms' statistics would move.
    """
    if norm not in NORM_MODES:
        raise unknown("norm mode", norm, NORM_MODES)
    normed = {name.rpartition("/")[0] for name in tree.flatten(stats)}
    every = frozenset(name.partition("/")[0] for name in normed)
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

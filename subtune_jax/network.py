"""A network is a sequence of stages, and its forward pass a fold over them.

Everything selective follows from that: the lowest stage with a trainable leaf is where
the backward pass ends, stages below it can be computed once, and each stage is told on
its own whether its norms use batch statistics or stored ones.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from subtune_jax import tree
from subtune_jax.errors import InputError

Params = dict[str, Any]  # {stage name: nested dict of arrays}
Stats = dict[str, Any]  # batch statistics, same form; empty where a stage has none
Labels = dict[str, Any]  # like Params, a group name at every leaf
UnitTable = Mapping[str, Mapping[str, tuple[str, ...]]]  # {table: {unit: patterns}}


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
    channels]. size: the height and width of its images, where it has a size. mean, std:
    what it normalizes by."""

    channels: int
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class Tokens(NamedTuple):
    """A network that reads `input_ids` below `vocab_size`, and `token_type_ids` below
    `type_vocab_size`. max_length: the most tokens of a text."""

    vocab_size: int
    type_vocab_size: int
    max_length: int | None = None


class Source(NamedTuple):
    """Where a network came from, and what it reads.

    classes: the names of its outputs in their order, () where they are not known.
    fingerprint: SHA-256 of the tensors of its file, without the head's. folder: where
    the files are. name: the folder or hub id that was asked for, and options: how its
    files were read, by the arguments of `load_pretrained`.
    """

    reads: Pixels | Tokens | None = None
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    folder: str = ""
    name: str = ""
    options: Mapping[str, Any] = {}


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


def require_network(network: Any) -> None:
    """Raises `InputError` for what is not a `Network`, such as a Flax module."""
    if isinstance(network, Network):
        return
    homes = " ".join(kind.__module__ for kind in type(network).__mro__)
    hint = ""
    if "flax.nnx" in homes:
        hint = ": make one of your module by from_nnx(module)"
    elif "flax.linen" in homes:
        hint = ": make one of your module by from_linen(module, variables)"
    name = type(network).__name__
    raise InputError(f"network must be a Network, got {name}{hint}")


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
        stage_key = None
        if key is not None and (dropout is None or name in dropout):
            stage_key = jax.random.fold_in(key, first + index)
        x, stats[name] = apply(
            params[name], stats[name], x, batch_stats=name in batch_stats, key=stage_key
        )
    return x, stats


def remat(network: Network) -> Network:
    """Returns the network with what happens inside a stage computed again in the backward
    pass instead of kept: less memory, one more forward pass from the lowest tuned stage.

    The last stage stays: it keeps little, and a head is known by its function."""
    require_network(network)
    *body, last = network.stages
    # Equal layers share one function, and go on to.
    again = {id(stage.apply): _remat(stage.apply) for stage in body}
    stages = (*(stage._replace(apply=again[id(stage.apply)]) for stage in body), last)
    return network._replace(stages=stages)


def _remat(apply: Callable) -> Callable:
    def again(params, stats, x, *, batch_stats: bool, key):
        run = partial(apply, batch_stats=batch_stats)
        return jax.checkpoint(run)(params, stats, x, key=key)

    return again

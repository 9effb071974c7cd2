"""From Flax nnx modules to stages; the one place where nnx meets plain trees."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
from flax import nnx

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.network import Params, Stage, Stats

Keys = tuple[tuple, ...]  # the nnx key paths of a state's leaves


def split_stages(
    modules: Mapping[str, nnx.Module], call: Callable
) -> tuple[tuple[Stage, ...], Params, Stats]:
    """Returns the stages, parameters and statistics of modules run one after the other.

    call(module, x, batch_stats=..., key=...) runs one; it may change the module, which
    is a copy. Keys of lists become strings: `layers/0/kernel`. Modules with equal
    graphs share one `apply`. Raises `InputError` for a variable that
    two modules share (tied weights must be in one stage) and for one that is no
    parameter, statistic or random state.
    """
    stages, params, stats = [], {}, {}
    _require_untied(modules)
    for name, module in modules.items():
        graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
        weights, statistics, rest = states
        _require_random(name, rest)
        params[name], weight_keys = _plain(weights)
        stats[name], stat_keys = _plain(statistics)
        apply = _shared_apply(graph, weight_keys, stat_keys, call, Streams(rest))
        stages.append(Stage(name, apply))
    return tuple(stages), params, stats


def _require_untied(modules: Mapping[str, nnx.Module]) -> None:
    owners: dict[int, str] = {}
    for name, module in modules.items():
        for _, variable in nnx.iter_graph(module):
            if not isinstance(variable, nnx.Variable):
                continue
            owner = owners.setdefault(id(variable), name)
            if owner != name:
                raise InputError(
                    f"stages {owner!r} and {name!r} share a variable: tied weights must "
                    "be in one stage"
                )


def _require_random(name: str, rest: nnx.State) -> None:
    for keys, leaf in nnx.to_flat_state(rest):
        if not isinstance(leaf, nnx.RngState):
            raise InputError(
                f"stage {name!r} has a {type(leaf).__name__} at "
                f"{'/'.join(map(str, keys))}: expected nnx.Param or nnx.BatchStat"
            )


def _apply(
    graph: nnx.GraphDef,
    weight_keys: Keys,
    stat_keys: Keys,
    call: Callable,
    rest: nnx.State,
) -> Callable:
    def apply(params: Params, stats: Stats, x: Any, *, batch_stats: bool, key):
        states = _native(params, weight_keys), _native(stats, stat_keys)
        # Without a copy, statistics that the call updates would be written into arrays
        # that `jax.grad` still traces: an error under grad, a leak without it.
        module = nnx.merge(graph, *states, _rekeyed(rest, key), copy=True)
        x = call(module, x, batch_stats=batch_stats, key=key)
        return x, _plain(nnx.state(module, nnx.BatchStat))[0]

    return apply


class Streams:
    """The random streams of a module, equal where their places and kinds are: their values
    are never used, so that equal layers and networks share one `apply`."""

    def __init__(self, rest: nnx.State):
        self.rest = _rekeyed(rest, jax.random.key(0))
        self.kinds = tuple(
            (keys, type(leaf).__name__) for keys, leaf in nnx.to_flat_state(rest)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Streams) and self.kinds == other.kinds

    def __hash__(self) -> int:
        return hash(self.kinds)


@lru_cache(1024)
def _shared_apply(graph, weight_keys, stat_keys, call, streams) -> Callable:
    return _apply(graph, weight_keys, stat_keys, call, streams.rest)


def _rekeyed(rest: nnx.State, key: jax.Array | None) -> nnx.State:
    """Returns `rest` with a key of its own for every random stream, counted from 0.

    No random state of the module is ever used: without a key, dropout is off.
    """
    if key is None:
        return rest
    # Counts start at 0 in every call: the run's key alone says what is drawn, so that a
    # step depends on nothing that an earlier step did.
    streams = []
    for index, (keys, leaf) in enumerate(nnx.to_flat_state(rest)):
        if isinstance(leaf, nnx.RngKey):
            leaf = leaf.replace(jax.random.fold_in(key, index))
        elif isinstance(leaf, nnx.RngCount):
            leaf = leaf.replace(jax.numpy.zeros_like(leaf.get_value()))
        streams.append((keys, leaf))
    return nnx.from_flat_state(streams)


def _plain(state: nnx.State) -> tuple[dict, Keys]:
    flat = nnx.to_flat_state(state)
    leaves = {"/".join(map(str, keys)): leaf.get_value() for keys, leaf in flat}
    return tree.unflatten(leaves), tuple(keys for keys, _ in flat)


def _native(plain: dict, keys: Keys) -> nnx.State:
    flat = tree.flatten(plain)
    return nnx.from_flat_state([(k, flat["/".join(map(str, k))]) for k in keys])


def filled(name: str, module: nnx.Module, params: Params, stats: Stats) -> nnx.Module:
    """Returns a copy of a module with a stage's parameters and statistics as its values.

    Raises `InputError` where the paths or shapes are not those of the module.
    """
    graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    weights, statistics, rest = states
    native = []
    for state, values in ((weights, params), (statistics, stats)):
        own, keys = _plain(state)
        _require_same(name, own, values)
        native.append(_native(values, keys))
    return nnx.merge(graph, *native, rest, copy=True)


def _require_same(name: str, own: dict, values: dict) -> None:
    ours, theirs = (
        {path: tuple(leaf.shape) for path, leaf in tree.flatten(each).items()}
        for each in (values, own)
    )
    differing = sorted(p for p in ours | theirs if ours.get(p) != theirs.get(p))
    if differing:
        path = differing[0]
        raise InputError(
            f"stage {name!r} has {path!r} as {ours.get(path, 'nothing')} and the module as "
            f"{theirs.get(path, 'nothing')}: give a module of these shapes"
        )

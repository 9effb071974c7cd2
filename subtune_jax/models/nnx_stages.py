"""From Flax nnx modules to stages; the one place where nnx meets plain trees."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jax
from flax import nnx

from subtune_jax import tree
from subtune_jax.canonical import plain
from subtune_jax.errors import InputError
from subtune_jax.network import Params, Stage, Stats

Keys = tuple[tuple, ...]  # the nnx key paths of a state's leaves


def split_stages(
    modules: Mapping[str, nnx.Module], call: Callable
) -> tuple[tuple[Stage, ...], Params, Stats]:
    """Returns the stages, parameters and statistics of modules run one after the other.

    call(module, x, batch_stats=..., key=...) runs one; it may change the module, which
    is a copy. Keys of lists become strings: `layers/0/kernel`. What is no parameter,
    statistic or random state (plain arrays, buffers) is a constant of the stage. Modules
    with equal graphs and constants share one `apply`. Raises `InputError` for a variable
    that two modules share (tied weights must be in one stage), and when a stage is run,
    for one that changes a constant.
    """
    stages, params, stats = [], {}, {}
    _require_untied(modules)
    for name, module in modules.items():
        graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)
        weights, statistics, rest, fixed = states
        params[name], weight_keys = _plain(weights)
        stats[name], stat_keys = _plain(statistics)
        given = Streams(rest), Constants(fixed)
        apply = _shared_apply(Graph(graph), weight_keys, stat_keys, call, *given)
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


def _apply(
    graph: nnx.GraphDef,
    weight_keys: Keys,
    stat_keys: Keys,
    call: Callable,
    rest: nnx.State,
    constants: "Constants",
) -> Callable:
    def apply(params: Params, stats: Stats, x: Any, *, batch_stats: bool, key):
        states = _native(params, weight_keys), _native(stats, stat_keys)
        # Without a copy, statistics that the call updates would be written into arrays
        # that `jax.grad` still traces: an error under grad, a leak without it.
        module = nnx.merge(
            graph, *states, _rekeyed(rest, key), constants.fixed, copy=True
        )
        before = _constants(module)
        x = call(module, x, batch_stats=batch_stats, key=key)
        _require_unchanged(before, _constants(module))
        return x, _plain(nnx.state(module, nnx.BatchStat))[0]

    return apply


class Streams:
    """The random streams of a module, equal where their places and kinds are: their values
    are never used, so that equal layers and networks share one `apply`."""

    def __init__(self, rest: nnx.State):
        # Networks may be built for their shapes alone; streams are values all the same.
        with jax.ensure_compile_time_eval():
            self.rest = _rekeyed(rest, jax.random.key(0))
        self.kinds = tuple(
            (keys, type(leaf).__name__) for keys, leaf in nnx.to_flat_state(rest)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Streams) and self.kinds == other.kinds

    def __hash__(self) -> int:
        return hash(self.kinds)


class Constants:
    """The arrays of a module that nothing trains or moves, equal where their values are."""

    def __init__(self, fixed: nnx.State):
        self.fixed = fixed
        self.values = [
            (keys, *(plain(x, repr) or repr(x) for x in jax.tree.leaves(value)))
            for keys, value in _arrays(fixed)
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constants) and self.values == other.values

    def __hash__(self) -> int:
        return hash(tuple(self.values))


class Graph:
    """The graph of a module, equal where its static attributes have equal types too: 1, 1.0
    and True are equal in Python, and a module may compute with each something else."""

    def __init__(self, definition: nnx.GraphDef):
        self.definition, self.text = definition, repr(definition)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph) or self.text != other.text:
            return False
        return self.definition == other.definition

    def __hash__(self) -> int:
        return hash(self.text)


def _arrays(state: nnx.State) -> list[tuple[tuple, Any]]:
    """Returns (keys, array) of every leaf, in a Variable or plain."""
    return [
        (keys, leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf)
        for keys, leaf in nnx.to_flat_state(state)
    ]


def _constants(module: nnx.Module) -> list[tuple[tuple, Any]]:
    _, *states = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)
    return _arrays(states[-1])


def _require_unchanged(before: list, after: list) -> None:
    """Raises `InputError` for a stage that counts or caches: its calls would differ."""
    old = dict(before)
    for keys, value in after:
        new, known = map(jax.tree.leaves, (value, old.get(keys)))
        if len(new) != len(known) or any(
            a is not b for a, b in zip(new, known, strict=True)
        ):
            raise InputError(
                f"the module changes {'/'.join(map(str, keys))!r} when it is called, and a "
                "stage must be a pure function: leave that out, or make it an nnx.BatchStat "
                "if it changes under batch statistics alone, as those of norms do"
            )


@lru_cache(1024)
def _shared_apply(
    graph: Graph, weight_keys, stat_keys, call, streams, constants
) -> Callable:
    plain = graph.definition
    return _apply(plain, weight_keys, stat_keys, call, streams.rest, constants)


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
            own = jax.random.fold_in(key, index)
            shape = leaf.get_value().shape  # layers under a scan have a key each
            leaf = leaf.replace(jax.random.split(own, shape) if shape else own)
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


def tied_units(modules: Mapping[str, nnx.Module]) -> dict[str, tuple[str, ...]]:
    """Returns units for the other names of tied weights, and for the modules that hold
    them: a weight has its first path in the parameters, and can be selected by any."""
    units: dict[str, tuple[str, ...]] = {}
    for stage, module in modules.items():
        first: dict[int, str] = {}
        for path, variable in _variables(module):
            own = first.setdefault(id(variable), path)
            if own == path:
                continue
            parts = path.split("/")
            for end in range(1, len(parts) + 1):
                name = "/".join(parts[:end])
                kept = () if end == len(parts) else (f"{stage}/{name}",)
                units[name] = (*units.get(name, kept), f"{stage}/{own}")
    return units


def _variables(
    part: Any, path: tuple[str, ...] = (), within: tuple[int, ...] = ()
) -> Iterator[tuple[str, nnx.Variable]]:
    """Yields the path and the variable of every attribute, tied ones again."""
    if isinstance(part, nnx.Variable):
        yield "/".join(path), part
        return
    if id(part) in within:
        return
    inner: list[tuple[Any, Any]]
    if isinstance(part, nnx.Module):
        inner = sorted(vars(part).items())
    elif isinstance(part, Mapping):
        inner = list(part.items())
    elif isinstance(part, list | tuple):
        inner = list(enumerate(part))
    else:
        return
    for name, one in inner:
        yield from _variables(one, (*path, str(name)), (*within, id(part)))


def filled(name: str, module: nnx.Module, params: Params, stats: Stats) -> nnx.Module:
    """Returns a copy of a module with a stage's parameters and statistics as its values.

    Raises `InputError` where the paths or shapes are not those of the module.
    """
    graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    weights, statistics, rest = states  # streams and constants are the module's own
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

"""Your own network, as it is: nnx or Linen modules become stages."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
from flax import linen, nnx
from flax.errors import InvalidRngError, ModifyScopeVariableError

from subtune_jax.errors import InputError, require_names, unknown
from subtune_jax.flops import depends_on
from subtune_jax.models.nnx_stages import split_stages, tied_units
from subtune_jax.network import Network, Stage, UnitTable

WHOLE = "model"  # the stage of a network adopted in one piece
OPPOSITE = ("deterministic", "use_running_average")  # true: in evaluation
FLAGS = ("train", "training", "is_training", *OPPOSITE)
SETS = "nnx sets the flags of its layers itself"


def from_nnx(
    modules: nnx.Module | Mapping[str, nnx.Module],
    units: UnitTable = {},
    *,
    flag: str | None = None,
) -> Network:
    """Returns an nnx model as a network: a dict of modules, or one for the whole model.

    The modules are called in order, each on the output of the one before. Dropout and
    norms follow the flags `deterministic` and `use_running_average` that nnx sets on
    every submodule. An argument of `__call__` with one of these names, or `train`,
    `training`, `is_training` or that of `flag`, is given as well, and so is `rngs`; where
    one argument switches norms and dropout together, `norm` and `dropout` of a run must
    agree. A whole model is the single stage `model`: selecting works as ever, but no
    prefix can be cached or shared, and dropout acts in all of it where any of it trains.
    `nnx.Param` leaves are parameters and `nnx.BatchStat` leaves statistics; random streams
    get their keys from the run, and other variables and plain arrays are constants. Tied
    weights have one path, their first, and are selected by each of their names (units of
    the table `tied`).

    units: `{table: {unit: patterns of paths}}`. Raises `InputError` for weights tied
    across modules, for a module that takes more than one input, and when it is run, for
    one that trains in evaluation or changes a constant.
    """
    if not isinstance(modules, Mapping):
        modules = {WHOLE: modules}
    for name, module in modules.items():
        if not isinstance(name, str) or not isinstance(module, nnx.Module):
            kind = type(module).__name__
            raise InputError(
                f"stage {name!r} is a {kind}: expected an nnx.Module by a name"
            )
    if flag is not None:
        seen = {a for m in modules.values() for a in _arguments(m)}
        if flag not in seen:
            raise unknown("flag", flag, sorted(seen))
    network = Network(*split_stages(modules, _caller(flag)), units)
    for name, module in modules.items():
        _require_one_input(name, module, (*FLAGS, "rngs", flag))
    _require_units(units)
    tied = tied_units(modules)
    return network._replace(units={**units, "tied": tied}) if tied else network


@lru_cache(64)  # so that equal modules share one `apply`
def _caller(flag: str | None) -> Callable:
    return partial(_call_nnx, flag)


def _call_nnx(
    flag: str | None,
    module: nnx.Module,
    x: Any,
    *,
    batch_stats: bool,
    key: jax.Array | None,
) -> Any:
    for name, value in _apart(batch_stats, key).items():
        module.set_attributes(raise_if_not_found=False, **{name: value})
    # An argument of the module's own overrides what nnx sets, so it is given too.
    arguments = _arguments(module)
    own, normed = _switches(arguments, flag), _held(module, nnx.BatchStat)
    if normed and not _independent(own) and _drops(module):
        _require_agreement(
            own, batch_stats, key, f"; or drop the argument, since {SETS}"
        )
    given: dict[str, Any] = _given(own, bool(normed), batch_stats, key)
    if "rngs" in arguments and not _held(module, nnx.RngState):
        given["rngs"] = None if key is None else nnx.Rngs(key)
    random, before = _held(module, nnx.RngCount), nnx.split(module, nnx.RngState, ...)
    y = module(x, **given)
    moved = _replaced(module, nnx.BatchStat, normed)
    drew = _replaced(module, nnx.RngCount, random)
    if moved or drew:
        moved, drew = _depend(before, x, given, moved, drew and key is None)
    _require_obeyed(bool(normed), moved, drew, batch_stats, key)
    return y


def _replaced(module: nnx.Module, kind: Any, before: list[Any]) -> bool:
    """Returns whether a call has put other arrays in place of a module's."""
    return any(a is not b for a, b in zip(before, _held(module, kind), strict=True))


def _depend(
    before: tuple, x: Any, given: dict[str, Any], moved: bool, drew: bool
) -> tuple[bool, bool]:
    """Returns whether a call's statistics depend on its input, and what it returns on
    random numbers."""

    # Under `nnx.jit`, `nnx.remat` and scans every array comes back as another one, and
    # what a program computes says whether it has changed.
    graph, random, rest = before

    def run(x: Any, random: Any, rest: Any) -> tuple[Any, Any]:
        module = nnx.merge(graph, random, rest, copy=True)
        return module(x, **given), nnx.state(module, nnx.BatchStat)

    args = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (x, random, rest)
    )
    of_x, of_random = [True, False, False], [False, True, False]
    return (
        moved and depends_on(lambda *a: run(*a)[1], of_x, *args),
        drew and depends_on(lambda *a: run(*a)[0], of_random, *args),
    )


def _apart(batch_stats: bool, key: jax.Array | None) -> dict[str, bool]:
    """Returns the two switches that Flax's own layers have."""
    return {"deterministic": key is None, "use_running_average": not batch_stats}


def _switches(arguments: Sequence[str], flag: str | None) -> list[str]:
    """Returns the arguments that switch to training, the named one first."""
    return [
        n for n in dict.fromkeys((flag, *FLAGS)) if n is not None and n in arguments
    ]


def _independent(own: Sequence[str]) -> bool:
    """Returns whether norms have one argument and dropout has another."""
    return set(OPPOSITE) <= set(own)


def _given(
    own: Sequence[str], normed: bool, batch_stats: bool, key: jax.Array | None
) -> dict[str, bool]:
    """Returns the values of the switches: where one serves norms and dropout, they agree."""
    training = batch_stats if normed else key is not None
    given = {name: training != (name in OPPOSITE) for name in own}
    return given | (_apart(batch_stats, key) if _independent(own) else {})


def _held(module: nnx.Module, kind: Any) -> list[Any]:
    """Returns the arrays of a module's variables of a kind, in their order."""
    flat = nnx.to_flat_state(nnx.state(module, kind))
    return [leaf.get_value() for _, leaf in flat]


def _drops(module: nnx.Module) -> bool:
    """Returns whether there is anything random in a module."""
    if _held(module, nnx.RngState):
        return True
    return any(isinstance(part, nnx.Dropout) for _, part in nnx.iter_graph(module))


def _require_agreement(
    own: Sequence[str], batch_stats: bool, key: jax.Array | None, way_out: str = ""
) -> None:
    """Raises `InputError` where one argument cannot say what norms and dropout are to do."""
    if own and batch_stats != (key is not None):
        norms = "batch" if batch_stats else "stored"
        raise InputError(
            f"the module's argument {own[0]!r} switches norms and dropout together, and "
            f"here norms use {norms} statistics with dropout {'off' if key is None else 'on'}: "
            "give norm='stored' with dropout='none', or norm='batch' with dropout='all'"
            f"{way_out}"
        )


def _require_obeyed(
    normed: bool, moved: bool, drew: bool, batch_stats: bool, key: jax.Array | None
) -> None:
    """Raises `InputError` for a module that trains when it should not, or the reverse."""
    hint = (
        "it has a switch of its own: name that argument, from_nnx(..., flag=...), or drop "
        f"it, since {SETS}"
    )
    if (moved and not batch_stats) or (drew and key is None):
        raise InputError(f"the module trains (norms or dropout) in evaluation: {hint}")
    if batch_stats and normed and not moved:
        raise InputError(
            f"the module's norms do not use the statistics of the batch: {hint}"
        )


def from_linen(
    module: linen.Module,
    variables: Mapping[str, Any],
    *,
    flag: str | None = None,
    units: UnitTable = {},
    rngs: Sequence[str] = ("dropout",),
) -> Network:
    """Returns a Linen model as a network with the single stage `model`.

    `variables` are those of `module.init`: `params` and, if any, `batch_stats`.
    `flag` names the argument of the module that switches to training, or one of the
    opposite sense (`deterministic`, `use_running_average`); default: `train`, `training`,
    `is_training` and these two, as far as the module has them. With batch statistics in
    the model it is on exactly when norms use them; without, when dropout has a key. rngs:
    the random streams that the model draws from.

    Raises `InputError` for other collections and flags, for a module that takes more than
    one input, and when it is run, where one argument switches norms and dropout and these
    do not agree, where `norm` asks for batch statistics that the module never uses, and for
    a random stream that is not named.
    """
    if not isinstance(module, linen.Module):
        raise InputError(f"module must be a linen.Module, got {type(module).__name__}")
    if not isinstance(variables, Mapping):
        raise InputError(
            f"variables are what module.init returns, got {type(variables).__name__}"
        )
    _require_units(units)
    surplus = set(variables) - {"params", "batch_stats"}
    if "params" not in variables or surplus:
        raise InputError(
            "expected the collections params and batch_stats, found "
            f"{', '.join(sorted(variables)) or 'none'}"
        )
    arguments = list(inspect.signature(module.__call__).parameters)
    if flag is not None and flag not in arguments:
        raise unknown("flag", flag, arguments)
    own = _switches(arguments, flag)
    _require_one_input(WHOLE, module, own)
    require_names(rngs=rngs)

    def keys(key: jax.Array | None) -> dict[str, jax.Array]:
        """The first stream has the stage's own key."""
        if key is None:
            return {}
        return {n: jax.random.fold_in(key, i) if i else key for i, n in enumerate(rngs)}

    def apply(params, stats, x, *, batch_stats, key):
        if stats and own and not _independent(own) and batch_stats != (key is not None):
            trains = {name: name not in OPPOSITE for name in own}
            if _draws(module, params, stats, x, trains):
                _require_agreement(own, batch_stats, key)
        flags = _given(own, bool(stats), batch_stats, key)
        collections = {"params": params} | ({"batch_stats": stats} if stats else {})
        if not batch_stats:
            return _applied(module, collections, x, keys(key), **flags), stats
        moving: dict[str, Any] = {**flags, "mutable": ["batch_stats"]}
        x, new = _applied(module, collections, x, keys(key), **moving)
        before, after = map(jax.tree.leaves, (stats, new["batch_stats"]))
        if all(a is b for a, b in zip(before, after, strict=True)):
            raise InputError(
                "the module's norms do not use the statistics of the batch: give its "
                "argument that switches to training, from_linen(..., flag=...)"
            )
        return x, dict(new["batch_stats"])

    params, stats = dict(variables["params"]), dict(variables.get("batch_stats", {}))
    return Network((Stage(WHOLE, apply),), {WHOLE: params}, {WHOLE: stats}, units)


def _draws(
    module: linen.Module, params: Any, stats: Any, x: Any, flags: dict[str, Any]
) -> bool:
    """Returns whether a module asks for random numbers when it trains; runs nothing."""

    def run(params: Any, stats: Any, x: Any) -> Any:
        collections = {"params": params, "batch_stats": stats}
        return module.apply(collections, x, mutable=["batch_stats"], **flags)

    try:
        jax.eval_shape(run, params, stats, x)
    except InvalidRngError:
        return True
    return False


def _applied(
    module: linen.Module, collections: dict, x: Any, rngs: dict, **settings: Any
) -> Any:
    try:
        return module.apply(collections, x, rngs=rngs or None, **settings)
    except InvalidRngError as error:
        way = "name its random streams, from_linen(..., rngs=('dropout', 'noise'))"
        if not rngs:
            way = (
                "give its argument that switches to training, from_linen(..., flag=...)"
            )
        text = str(error).splitlines()[0].partition(" (https")[0]
        raise InputError(
            f"the module draws random numbers that it has no key for ({text}): {way}"
        ) from None
    except ModifyScopeVariableError:
        raise InputError(
            "the module updates its batch statistics although it was not asked to: give "
            "its argument that switches to training, from_linen(..., flag=...)"
        ) from None


def output_axes(modules: nnx.Module | Mapping[str, nnx.Module]) -> dict[str, int]:
    """Returns how many last axes of each kernel are its outputs, by its path in `from_nnx` of
    the same modules: for `tuning.lora` and `tuning.diff_pruning`."""
    if not isinstance(modules, Mapping):
        modules = {WHOLE: modules}
    return {
        re.escape("/".join(map(str, (stage, *keys, "kernel")))): len(
            getattr(part, "out_features", ())
        )
        if isinstance(part, nnx.LinearGeneral)
        else 1
        for stage, module in modules.items()
        for keys, part in nnx.iter_modules(module)
        if hasattr(part, "kernel")
    }


def _require_units(units: UnitTable) -> None:
    """Raises `InputError` unless units are `{table: {unit: (pattern, ...)}}`."""
    for table, of in units.items():
        if not isinstance(of, Mapping):
            raise InputError(
                f"units are tables by name, {{'fine': {{'early': ('stem',)}}}}: {table!r} "
                f"is a {type(of).__name__}"
            )
        for unit, patterns in of.items():
            if isinstance(patterns, str) or not isinstance(patterns, Sequence):
                raise InputError(
                    f"unit {unit!r} must be a list of patterns of paths, got {patterns!r}"
                )


def _arguments(module: Any) -> list[str]:
    return list(inspect.signature(module).parameters) if callable(module) else []


def _require_one_input(stage: str, module: Any, flags: Sequence[str | None]) -> None:
    """Raises `InputError` unless a module can be called with one input and the flags."""
    if not callable(module):
        raise InputError(f"stage {stage!r} has no __call__: a network calls its stages")
    arguments = [
        p for p in inspect.signature(module).parameters.values() if p.name not in flags
    ]
    some = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in arguments if p.default is p.empty and p.kind not in some]
    if len(needed) <= 1:
        return
    raise InputError(
        f"stage {stage!r} is called with {', '.join(needed)}: a network calls it with its "
        "one input, which may be a dict or a tuple, so wrap it in a module that takes that"
    )

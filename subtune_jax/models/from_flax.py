"""Your own network, as it is: nnx or Linen modules become stages."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
from flax import linen, nnx
from flax.errors import InvalidRngError, ModifyScopeVariableError

from subtune_jax.errors import InputError, unknown
from subtune_jax.models.nnx_stages import split_stages
from subtune_jax.network import Network, Stage, UnitTable

WHOLE = "model"  # the stage of a network adopted in one piece
FLAGS = ("train", "training", "is_training", "deterministic", "use_running_average")


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
    get their keys from the run.

    units: `{table: {unit: patterns of paths}}`. Raises `InputError` for other variables,
    for weights tied across modules, for a module that takes more than one input, and
    when it is run, for one that trains in evaluation.
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
    return network


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
    flags = {"deterministic": key is None, "use_running_average": not batch_stats}
    for name, value in flags.items():
        module.set_attributes(raise_if_not_found=False, **{name: value})
    # An argument of the module's own overrides what nnx sets, so it is given too.
    arguments = inspect.signature(module).parameters
    own = [name for name in (*FLAGS, flag) if name is not None and name in arguments]
    normed, drops = _held(module, nnx.BatchStat), _drops(module)
    apart = set(flags) <= set(own)  # one argument for norms, another for dropout
    if normed and drops and not apart:
        _require_agreement(own, batch_stats, key)
    training = batch_stats if normed else key is not None
    given: dict[str, Any] = {name: training != (name in flags) for name in own}
    given |= flags if apart else {}
    if "rngs" in arguments and not _held(module, nnx.RngState):
        given["rngs"] = None if key is None else nnx.Rngs(key)
    random = _held(module, nnx.RngCount)
    y = module(x, **given)
    _require_obeyed(module, normed, random, batch_stats, key)
    return y


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
    own: Sequence[str], batch_stats: bool, key: jax.Array | None
) -> None:
    """Raises `InputError` where one argument cannot say what norms and dropout are to do."""
    if own and batch_stats != (key is not None):
        norms = "batch" if batch_stats else "stored"
        raise InputError(
            f"the module's argument {own[0]!r} switches norms and dropout together, and "
            f"here norms use {norms} statistics with dropout {'off' if key is None else 'on'}: "
            "give norm='stored' with dropout='none' or norm='batch' with dropout='all', or "
            "drop the argument, since nnx sets the flags of its layers itself"
        )


def _require_obeyed(
    module: nnx.Module,
    stats: list[Any],
    random: list[Any],
    batch_stats: bool,
    key: jax.Array | None,
) -> None:
    """Raises `InputError` for a module that trains when it should not, or the reverse."""
    moved = [
        a is not b for a, b in zip(stats, _held(module, nnx.BatchStat), strict=True)
    ]
    drew = [
        a is not b for a, b in zip(random, _held(module, nnx.RngCount), strict=True)
    ]
    hint = (
        "it has a switch of its own: name that argument, from_nnx(..., flag=...), or drop "
        "it, since nnx sets the flags of its layers itself"
    )
    if (any(moved) and not batch_stats) or (any(drew) and key is None):
        raise InputError(f"the module trains (norms or dropout) in evaluation: {hint}")
    if batch_stats and stats and not any(moved):
        raise InputError(
            f"the module's norms do not use the statistics of the batch: {hint}"
        )


def from_linen(
    module: linen.Module,
    variables: Mapping[str, Any],
    *,
    flag: str | None = None,
    units: UnitTable = {},
) -> Network:
    """Returns a Linen model as a network with the single stage `model`.

    `variables` are those of `module.init`: `params` and, if any, `batch_stats`.
    `flag` names the argument of the module that switches to training, or one of the
    opposite sense (`deterministic`, `use_running_average`); default: `train`, `training`,
    `is_training` or one of these two, where the module has it. With batch statistics in
    the model it is on exactly when norms use them, and dropout runs only then; without, it
    is on when dropout has a key. Raises `InputError` for other collections and flags, and for a
    module that takes more than one input.
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
    flag = flag or next((name for name in FLAGS if name in arguments), None)
    _require_one_input(WHOLE, module, () if flag is None else (flag,))
    opposite = flag in ("deterministic", "use_running_average")

    def apply(params, stats, x, *, batch_stats, key):
        training = batch_stats if stats else key is not None
        if stats and flag is not None and batch_stats != (key is not None):
            if _draws(module, params, stats, x, {flag: not opposite}):
                _require_agreement([flag], batch_stats, key)
        flags = {} if flag is None else {flag: training != opposite}
        rngs = None if key is None else {"dropout": key}
        collections = {"params": params} | ({"batch_stats": stats} if stats else {})
        if not batch_stats:
            return _applied(module, collections, x, rngs=rngs, **flags), stats
        x, new = _applied(
            module, collections, x, rngs=rngs, mutable=["batch_stats"], **flags
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


def _applied(module: linen.Module, collections: dict, x: Any, **settings) -> Any:
    try:
        return module.apply(collections, x, **settings)
    except ModifyScopeVariableError:
        raise InputError(
            "the module updates its batch statistics although it was not asked to: give "
            "its argument that switches to training, from_linen(..., flag=...)"
        ) from None


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

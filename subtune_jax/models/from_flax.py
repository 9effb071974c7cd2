"""Your own network, as it is: nnx or Linen modules become stages."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen, nnx
from flax.errors import ModifyScopeVariableError

from subtune_jax.errors import InputError, unknown
from subtune_jax.models.nnx_stages import split_stages
from subtune_jax.network import Network, Stage, UnitTable

WHOLE = "model"  # the stage of a network adopted in one piece
FLAGS = ("train", "training", "is_training", "deterministic", "use_running_average")


def from_nnx(
    modules: nnx.Module | Mapping[str, nnx.Module], units: UnitTable = {}
) -> Network:
    """Returns an nnx model as a network: a dict of modules, or one for the whole model.

    The modules are called in order, each on the output of the one before. Dropout and
    norms follow the flags `deterministic` and `use_running_average` that nnx sets on
    every submodule, and arguments of `__call__` with these names or `train`, `training`,
    `is_training` and `rngs`, which get the same. A whole model is the single stage
    `model`: selecting works as ever, but no prefix can be cached or shared. `nnx.Param`
    leaves are parameters and `nnx.BatchStat` leaves statistics; random streams get their
    keys from the run.
    Raises `InputError` for other variables, for weights tied across modules, and for a
    module that takes more than one input.
    """
    if not isinstance(modules, Mapping):
        modules = {WHOLE: modules}
    for name, module in modules.items():
        if not isinstance(module, nnx.Module):
            raise InputError(
                f"stage {name!r} is a {type(module).__name__}: expected an nnx.Module"
            )
    network = Network(*split_stages(modules, _call_nnx), units)
    for name, module in modules.items():
        _require_one_input(name, module, FLAGS)
    return network


def _call_nnx(
    module: nnx.Module, x: Any, *, batch_stats: bool, key: jax.Array | None
) -> Any:
    flags = {"deterministic": key is None, "use_running_average": not batch_stats}
    for flag, value in flags.items():
        module.set_attributes(raise_if_not_found=False, **{flag: value})
    # An argument of its own goes before what nnx sets: it is given as well.
    normed = bool(jax.tree.leaves(nnx.state(module, nnx.BatchStat)))
    training = batch_stats if normed else key is not None
    given: dict[str, Any] = {**dict.fromkeys(FLAGS, training), **flags}
    if key is not None and not jax.tree.leaves(nnx.state(module, nnx.RngState)):
        given["rngs"] = nnx.Rngs(key)
    arguments = inspect.signature(module.__call__).parameters
    return module(x, **{n: value for n, value in given.items() if n in arguments})


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


def _applied(module: linen.Module, collections: dict, x: Any, **settings) -> Any:
    try:
        return module.apply(collections, x, **settings)
    except ModifyScopeVariableError:
        raise InputError(
            "the module updates its batch statistics although it was not asked to: give "
            "its argument that switches to training, from_linen(..., flag=...)"
        ) from None


def _require_one_input(stage: str, module: Any, flags: Sequence[str]) -> None:
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

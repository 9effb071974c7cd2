"""Your own network, as it is: nnx or Linen modules become stages."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen, nnx

from subtune_jax.errors import InputError, unknown
from subtune_jax.models.nnx_stages import split_stages
from subtune_jax.network import Network, Stage, UnitTable

WHOLE = "model"  # the stage of a network adopted in one piece


def from_nnx(
    modules: nnx.Module | Mapping[str, nnx.Module], units: UnitTable = {}
) -> Network:
    """Returns an nnx model as a network: a dict of modules, or one for the whole model.

    The modules are called in order, each on the output of the one before. Dropout and
    norms follow the flags `deterministic` and `use_running_average` that nnx sets on
    every submodule. A whole model is the single stage `model`: selecting works as
    ever, but no prefix can be cached or shared. `nnx.Param` leaves are parameters and
    `nnx.BatchStat` leaves statistics; random streams get their keys from the run.
    Raises `InputError` for other variables, and for weights tied across modules.
    """
    if not isinstance(modules, Mapping):
        modules = {WHOLE: modules}
    for name, module in modules.items():
        if not isinstance(module, nnx.Module):
            raise InputError(
                f"stage {name!r} is a {type(module).__name__}: expected an nnx.Module"
            )
    return Network(*split_stages(modules, _call_nnx), units)


def _call_nnx(
    module: nnx.Module, x: Any, *, batch_stats: bool, key: jax.Array | None
) -> Any:
    flags = {"deterministic": key is None, "use_running_average": not batch_stats}
    for flag, value in flags.items():
        module.set_attributes(raise_if_not_found=False, **{flag: value})
    return module(x)


def from_linen(
    module: linen.Module,
    variables: Mapping[str, Any],
    *,
    flag: str | None = None,
    units: UnitTable = {},
) -> Network:
    """Returns a Linen model as a network with the single stage `model`.

    `variables` are those of `module.init`: `params` and, if any, `batch_stats`.
    `flag` names the argument of the module that switches to training: `train`, or
    one of the opposite sense, `deterministic`. With batch statistics in the model it
    is on exactly when norms use them, and dropout runs only then; without, it is on
    when dropout has a key. Raises `InputError` for other collections and flags.
    """
    surplus = set(variables) - {"params", "batch_stats"}
    if "params" not in variables or surplus:
        raise InputError(
            "expected the collections params and batch_stats, found "
            f"{', '.join(sorted(variables)) or 'none'}"
        )
    known = list(inspect.signature(module.__call__).parameters)
    if flag is not None and flag not in known:
        raise unknown("flag", flag, known)
    opposite = flag in ("deterministic", "use_running_average")

    def apply(params, stats, x, *, batch_stats, key):
        training = batch_stats if stats else key is not None
        flags = {} if flag is None else {flag: training != opposite}
        rngs = None if key is None else {"dropout": key}
        collections = {"params": params} | ({"batch_stats": stats} if stats else {})
        if not batch_stats:
            return module.apply(collections, x, rngs=rngs, **flags), stats
        x, new = module.apply(
            collections, x, rngs=rngs, mutable=["batch_stats"], **flags
        )
        return x, dict(new["batch_stats"])

    params, stats = dict(variables["params"]), dict(variables.get("batch_stats", {}))
    return Network((Stage(WHOLE, apply),), {WHOLE: params}, {WHOLE: stats}, units)

"""A network beside a frozen copy of itself, under one head (SubTuning, siamese tuning)."""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp

from subtune_jax.errors import InputError
from subtune_jax.head import linear, linear_params
from subtune_jax.network import Network, Stage, UnitTable, require_network

FROZEN = "frozen_"  # the name of a copied stage begins with it


def siamese(network: Network, fork: str, num_classes: int) -> Network:
    """Returns the network whose stages from `fork` on stand beside frozen copies.

    logits = [f_0(x), f(x)] W + b: f_0 is the network as it was pretrained, f the one whose
    units train, and the head of zeros reads the features of both. Stages `frozen_NAME`
    are the copies; they come first, so that they and the shared prefix are made once.
    Select by the names of stages: a pattern inside them (`norm1`) matches the copies as
    well. Raises `InputError` for a stage that
    is none of the body's.
    """
    require_network(network)
    *body, head = network.stages
    names = [stage.name for stage in body]
    if fork not in names:
        raise InputError(f"fork must be a stage of {', '.join(names)}, got {fork!r}")
    at = names.index(fork)
    copies = [Stage(FROZEN + s.name, _on("frozen", s.apply)) for s in body[at:]]
    tuned = [Stage(s.name, _on("tuned", s.apply)) for s in body[at:]]
    features = network.params[head.name]["kernel"].shape[0]
    new = {name: network.params[name.removeprefix(FROZEN)] for name, _ in copies}
    stats = {name: network.stats[name.removeprefix(FROZEN)] for name, _ in copies}
    zeros = jax.nn.initializers.zeros
    ends = Stage("fork", _fork), Stage("join", _join)
    own = {head.name: linear_params(None, 2 * features, num_classes, zeros)}
    return network._replace(
        stages=(
            *body[:at],
            ends[0],
            *copies,
            *tuned,
            ends[1],
            Stage(head.name, linear),
        ),
        params={**network.params, **new, "fork": {}, "join": {}, **own},
        stats={**network.stats, **stats, "fork": {}, "join": {}, head.name: {}},
        units=_units(network.units, [stage.name for stage in copies]),
    )


def _units(tables: UnitTable, copies: list[str]) -> UnitTable:
    """Returns the tables with a unit for each copy in `fine`, where every leaf stands."""
    fine = {**tables.get("fine", {}), **{name: (name,) for name in copies}}
    return {**tables, "fine": fine}


def _fork(params, stats, x, *, batch_stats, key):
    return {"frozen": x, "tuned": x}, stats


def _join(params, stats, x, *, batch_stats, key):
    return jnp.concatenate([x["frozen"], x["tuned"]], axis=-1), stats


@lru_cache(1024)  # equal layers go on sharing one function
def _on(part: str, apply: Callable) -> Callable:
    def run(params, stats, x, *, batch_stats, key):
        y, stats = apply(params, stats, x[part], batch_stats=batch_stats, key=key)
        return {**x, part: y}, stats

    return run

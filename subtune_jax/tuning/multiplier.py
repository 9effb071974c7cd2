"""The Lagrange multiplier of the constrained diff pruning: how far it rises in a step."""

from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.network import Params
from subtune_jax.tuning.gates import (
    GATES,
    MULTIPLIER,
    expected_nonzero,
    gate_of,
    log_alphas,
)

CUT = 0.25  # by which log odds fall in a step, times the rate, while gates close
REACH = 2.0  # the most that m moves in a step, times the rate; Newton's line ends there
FAR = 20.0  # log alpha - m of a gate that is open, or shut, for good


def multiplier_penalty(trainable: Params, fixed: Any, params: Params) -> jax.Array:
    """Returns m times Newton's step to the constraint, a function of m alone: by `ascent` m
    rises while too many gates are expected to be open."""
    rest = jax.lax.stop_gradient(trainable)
    values = tree.flatten(rest)
    own, _ = log_alphas(values)
    size = sum(log_alpha.size for log_alpha in own.values())
    if not size:  # all gates rest, and so does the constraint
        return 0 * trainable[MULTIPLIER]

    def error(m: jax.Array) -> jax.Array:
        live = {**rest, MULTIPLIER: m}
        expected = expected_nonzero(live, gate_of(fixed), moved=True)
        return _log_odds(expected / size) - _log_odds(fixed[GATES]["share"])

    # Late in a run most gates are open or shut for good, and a unit of m moves few of them:
    # without Newton's division the task's gradient, which moves those, would win.
    odds, slope = jax.value_and_grad(error)(rest[MULTIPLIER])
    cut = fixed[GATES]["cut"]
    step = jnp.clip(odds, -cut, cut) / jnp.maximum(-slope, 1e-6)
    moved = jnp.any(jnp.stack([jnp.any(values[f"{path}/w"] != 0) for path in own]))
    return trainable[MULTIPLIER] * jnp.where(moved, _bounded(step, own), 0)


def _bounded(step: jax.Array, own: dict[str, jax.Array]) -> jax.Array:
    """Returns a step within reach, that ends where all gates are open, or all are shut."""
    # Where the share cannot be reached m would run away.
    lowest = jnp.min(jnp.stack([jnp.min(x) for x in own.values()])) - FAR
    highest = jnp.max(jnp.stack([jnp.max(x) for x in own.values()])) + FAR
    step = jnp.clip(step, -REACH, REACH)
    return jnp.clip(step, jnp.minimum(lowest, 0), jnp.maximum(highest, 0))


def _log_odds(share: jax.Array) -> jax.Array:
    """Returns logit(share), finite at 0 and 1."""
    share = jnp.clip(share, 1e-9, 1 - 1e-6)
    return jnp.log(share) - jnp.log1p(-share)

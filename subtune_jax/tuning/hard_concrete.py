"""Hard-concrete gates: random numbers in [0, 1], often exactly 0 or 1, with a gradient.

z = min(1, max(0, s (r - l) + l)),   s = sigmoid((log u - log(1 - u) + log_alpha) / T)

with u uniform on (0, 1), an interval (l, r) wider than [0, 1] and a temperature T. Of
Louizos et al. 2018; diff pruning has l = -1.5, r = 1.5 and T = 1 (its section 3.1). All
functions are jitted, element by element, in float32 or wider: of 16 bits, one draw in 256
would be the last before 1. Gates have the type of `log_alpha`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subtune_jax.errors import InputError, require_positive


class HardConcrete(NamedTuple):
    """What all gates share: the interval's ends, l and r in the paper, and the temperature."""

    left: Any = -1.5
    right: Any = 1.5
    temperature: Any = 1.0


def require_gate(gate: HardConcrete) -> None:
    """Raises `InputError` unless left < 0 and right > 1, without which a gate is never
    exactly 0 or never exactly 1, and for a temperature that is not positive."""
    left, right, temperature = gate
    if not -float("inf") < left < 0 or not 1 < right < float("inf"):
        raise InputError(
            f"the interval of the gates is ({left}, {right}): it must begin below 0 and "
            "end above 1, as (-1.5, 1.5) does, so that gates can close and open"
        )
    require_positive(temperature=temperature)


@jax.jit
def sample(key: jax.Array, log_alpha: jax.Array, gate: HardConcrete) -> jax.Array:
    """Returns one draw of every gate."""
    noise = logistic(key, log_alpha.size, log_alpha.dtype).reshape(log_alpha.shape)
    return opened(noise, log_alpha, gate)


def logistic(key: jax.Array, size: int, dtype: Any) -> jax.Array:
    """Returns log u - log(1 - u) of so many u, in float32 or wider: what gates are drawn
    from."""
    # The official code keeps u within (1e-4, 1 - 1e-4). Its nearly shut gates then open less
    # often than E[L0] says: at log_alpha = -8 in 0.74 of the cases, at -9.5 never. Half a
    # step of the grid of floats keeps u from 0 and 1 as well, and is exact.
    dtype = jnp.promote_types(dtype, jnp.float32)
    u = jax.random.uniform(key, (size,), dtype) + jnp.finfo(dtype).eps / 2
    return jnp.log(u) - jnp.log1p(-u)


def opened(noise: jax.Array, log_alpha: jax.Array, gate: HardConcrete) -> jax.Array:
    """Returns the gates for this noise, in the type of `log_alpha`."""
    return _stretched(noise + log_alpha, gate, gate.temperature).astype(log_alpha.dtype)


@jax.jit
def deterministic(log_alpha: jax.Array, gate: HardConcrete) -> jax.Array:
    """Returns min(1, max(0, sigmoid(log_alpha) (r - l) + l)): the gates without noise.

    Louizos et al. evaluate with it; diff pruning draws once instead.
    """
    return _stretched(_wide(log_alpha), gate, 1.0).astype(log_alpha.dtype)


@jax.jit
def probability_nonzero(log_alpha: jax.Array, gate: HardConcrete) -> jax.Array:
    """Returns P(z > 0) = sigmoid(log_alpha - T log(-l / r)) of every gate, in float32 or
    wider."""
    log_alpha = _wide(log_alpha)
    left, right, temperature = (jnp.asarray(x, log_alpha.dtype) for x in gate)
    return jax.nn.sigmoid(log_alpha - temperature * jnp.log(-left / right))


@jax.jit
def expected_l0(log_alpha: jax.Array, gate: HardConcrete) -> jax.Array:
    """Returns the expected number of gates that are not 0."""
    return jnp.sum(probability_nonzero(log_alpha, gate))


def _stretched(logit: jax.Array, gate: HardConcrete, temperature: Any) -> jax.Array:
    ends = (gate.left, gate.right, temperature)
    left, right, t = (jnp.asarray(x, logit.dtype) for x in ends)
    wide = jax.nn.sigmoid(logit / t) * (right - left) + left
    # Not `jnp.clip`: at an edge its slope is a half, and the paper's is 0 there.
    return jnp.where(wide <= 0, 0, jnp.where(wide >= 1, 1, wide)).astype(logit.dtype)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

"""The gates of a run of diff pruning, as they stand in its trainable tree: drawn, counted.

`PATH/log_alpha` and `PATH/group_log_alpha` beside the differences `PATH/w`, and under a
constraint the `multiplier`, which lowers log alpha of all elements.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.tuning.hard_concrete import (
    HardConcrete,
    deterministic,
    logistic,
    opened,
    probability_nonzero,
)

GATES, MULTIPLIER = "gates", "multiplier"  # groups of the optimizer


def gate_of(fixed: Any) -> HardConcrete:
    """Returns the gate of a run, from its fixed values."""
    return HardConcrete(*(fixed[GATES][name] for name in HardConcrete._fields))


def gates_of(
    values: dict[str, Any], gate: HardConcrete, key: jax.Array | None
) -> dict[str, jax.Array]:
    """Returns z z_g of every gated leaf; drawn if there is a key. The task's gradient
    does not reach the multiplier."""
    held = {p: jax.lax.stop_gradient(x) for p, x in values.items() if p == MULTIPLIER}
    own, groups = log_alphas(values | held)
    if key is None:
        z, zg = (
            {p: deterministic(x, gate) for p, x in a.items()} for a in (own, groups)
        )
    else:
        noise = _noise(key, [*own.values(), *groups.values()])
        z, zg = (
            {p: opened(next(noise), x, gate) for p, x in a.items()}
            for a in (own, groups)
        )
    return {path: x * zg[path] if path in zg else x for path, x in z.items()}


def _noise(key: jax.Array, arrays: Sequence[jax.Array]) -> Iterator[jax.Array]:
    """Yields what gates are drawn from, in the shapes of arrays."""
    # One draw, cut apart. With a key for each leaf a small encoder's step takes 53 s to
    # compile instead of 26: the rounds of the generator are written out for every leaf.
    ends = np.cumsum([x.size for x in arrays])
    dtype = jnp.result_type(*arrays)
    whole = jax.lax.optimization_barrier(logistic(key, int(ends[-1]), dtype))
    for part, x in zip(jnp.split(whole, ends[:-1].tolist()), arrays, strict=True):
        yield part.reshape(x.shape).astype(x.dtype)


def log_alphas(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns log alpha of elements and of groups by the path of their leaf; those of
    elements are lowered by the multiplier, which only the constraint moves."""
    ends = "/log_alpha", "/group_log_alpha"
    own, groups = (
        {p.removesuffix(end): x for p, x in values.items() if p.endswith(end)}
        for end in ends
    )
    if MULTIPLIER in values:
        m = values[MULTIPLIER]
        own = {path: x - m.astype(x.dtype) for path, x in own.items()}
    return own, groups


def expected_nonzero(
    trainable: Any,
    gate: HardConcrete = HardConcrete(),
    l0: str = "product",
    *,
    moved: bool = False,
) -> jax.Array:
    """Returns E[L0] of the gates of a run, as `result.trainable` has them.

    moved: counts the gates of elements with w != 0 alone, which is E||z z_g w||_0: where w
    is 0 (embeddings of tokens that no example has) an open gate changes nothing.
    """
    values = tree.flatten(trainable)
    own, groups = log_alphas(values)
    sums = [jnp.zeros(())]  # where nothing that has gates trains
    for path, log_alpha in own.items():
        p, q = probability_nonzero(log_alpha, gate), jnp.ones(())
        if moved:
            p = jnp.where(values[f"{path}/w"] != 0, p, 0)
        if path in groups:
            q = probability_nonzero(groups[path], gate)
        plain = l0 == "product" or path not in groups
        sums.append(jnp.sum(p * q) if plain else jnp.sum(p) + jnp.sum(q))
    return jnp.sum(jnp.stack(sums))

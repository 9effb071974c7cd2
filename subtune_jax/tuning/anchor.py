"""Starting-point penalties: tuned weights are pulled to their pretrained values."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp

from subtune_jax.errors import require_positive
from subtune_jax.network import Params
from subtune_jax.tuning.method import Tuning
from subtune_jax.tuning.subset import subset


@cache
def l2_sp(strength: float, free: tuple[str, ...] = ("head",)) -> Tuning:
    """Returns subset tuning with the penalty (strength / 2) ||theta - theta_0||_2^2.

    The sum runs over the trainable leaves outside the `free` stages: a new head's start
    is no pretrained value. Xuhong, Grandvalet and Davoine 2018, "Explicit inductive bias for
    transfer learning" (recalled). Raises `InputError` unless strength > 0.
    """
    require_positive(strength=strength)
    return _anchored(strength / 2, jnp.square, free)


@cache
def l1_sp(strength: float, free: tuple[str, ...] = ("head",)) -> Tuning:
    """Returns subset tuning with the penalty strength * ||theta - theta_0||_1.

    Over the trainable leaves outside the `free` stages, as `l2_sp`; the "L1 regularize"
    baseline of surgical fine-tuning (papers/surgical.md 2.6). Raises `InputError`
    unless strength > 0.
    """
    require_positive(strength=strength)
    return _anchored(strength, jnp.abs, free)


def _anchored(scale: float, size: Callable, free: tuple[str, ...]) -> Tuning:
    def penalty(trainable: Params, params: Params) -> jax.Array:
        body = {
            stage: leaves for stage, leaves in trainable.items() if stage not in free
        }
        base = {stage: params[stage] for stage in body}
        terms = jax.tree.map(
            lambda w, w0: 0.0 if w is None else jnp.sum(size(w - w0)),
            body,
            base,
            is_leaf=lambda x: x is None,
        )
        return scale * sum(jax.tree.leaves(terms), start=jnp.float32(0))

    return subset._replace(penalty=penalty)

"""Starting-point penalties: tuned weights are pulled to their pretrained values."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.errors import require_positive
from subtune_jax.network import Labels, Params
from subtune_jax.tuning.method import Ended, Parts, Tuning, leaf_groups
from subtune_jax.tuning.subset import init as selected
from subtune_jax.tuning.subset import materialize
from subtune_jax.tuning.subset import take_over as still_live


def l2_sp(strength: float, free: Sequence[str] = ("head",)) -> Tuning:
    """Returns subset tuning with the penalty (strength / 2) ||theta - theta_0||_2^2.

    The sum runs over the trainable leaves outside the `free` groups: the start of a new
    head is not a pretrained value. Xuhong, Grandvalet and Davoine 2018, "Explicit
    inductive bias for transfer learning" (recalled). Raises `InputError` unless
    strength > 0.
    """
    require_positive(strength=strength)
    return _anchored(strength / 2, jnp.square, tuple(free))


def l1_sp(strength: float, free: Sequence[str] = ("head",)) -> Tuning:
    """Returns subset tuning with the penalty strength * ||theta - theta_0||_1.

    Over the trainable leaves outside the `free` groups, as `l2_sp`; the "L1 regularize"
    baseline of surgical fine-tuning (Lee et al. 2023). Raises `InputError`
    unless strength > 0.
    """
    require_positive(strength=strength)
    return _anchored(strength, _absolute, tuple(free))


def _anchored(scale: float, size: Callable, free: tuple[str, ...]) -> Tuning:
    """The strength is a fixed value at every leaf, 0 at a free one: no strength and no
    choice of free groups compiles again."""

    def strengths(labels: Labels, trainable: Params) -> Params:
        groups = leaf_groups(trainable, labels)
        return jax.tree.map(lambda g: jnp.float32(0 if g in free else scale), groups)

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Parts:
        trainable = selected(params, labels).trainable
        return Parts(trainable, strengths(labels, trainable))

    def take_over(
        ended: Ended, params: Params, labels: Labels, key: jax.Array | None = None
    ) -> Parts:
        trainable = still_live(ended, params, labels, key).trainable
        return Parts(trainable, strengths(labels, trainable))

    return Tuning(init, leaf_groups, materialize, _penalty(size), take_over)


def _absolute(x: jax.Array) -> jax.Array:
    """Returns |x| with the slope sign(x): 0 at 0, where that of `jnp.abs` is 1 and would
    push a weight that is at its anchor."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


@cache
def _penalty(size: Callable) -> Callable:
    return partial(_distance, size)


def _distance(
    size: Callable, trainable: Params, fixed: Any, params: Params
) -> jax.Array:
    """Returns the sum over trainable leaves of strength * sum(size(w - w_0))."""
    base, strengths = tree.flatten(params), tree.flatten(fixed)
    terms = [
        strengths[path] * jnp.sum(size(w - base[path]))
        for path, w in tree.flatten(trainable).items()
    ]
    return sum(terms, start=jnp.float32(0))

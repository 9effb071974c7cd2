"""Diff pruning: a change of the weights that is pushed to be 0 almost everywhere.

theta = theta_0 + z * z_g * w,   minimized: loss + strength * E||z * z_g * w||_0

w and the gates z (one per element) and z_g (one per group of elements) train; gates are
hard concrete. Guo, Rush and Kim 2021, sections 3.1 and 3.2.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.network import Labels, Params
from subtune_jax.tuning.axes import output_axes
from subtune_jax.tuning.gates import (
    GATES,
    MULTIPLIER,
    expected_nonzero,
    gate_of,
    gates_of,
)
from subtune_jax.tuning.hard_concrete import HardConcrete, require_gate
from subtune_jax.tuning.method import Ended, Parts, Tuning, leaf_groups, no_penalty
from subtune_jax.tuning.multiplier import CUT, multiplier_penalty
from subtune_jax.tuning.subset import init as selected

STRUCTURES = ("none", "leaf", "neuron")
L0 = ("product", "additive")
LOG_ALPHA = 5.0  # of all gates at the start (paper): 99 % of them are not 0


def diff_pruning(
    strength: float,
    *,
    structure: str = "leaf",
    l0: str = "product",
    log_alpha: float = LOG_ALPHA,
    gate: HardConcrete = HardConcrete(),
    free: Sequence[str] = ("head",),
    axes: Mapping[str, int] = {},
) -> Tuning:
    """Returns the tuning of gated differences with the penalty strength * E[L0].

    w starts at 0 and all gates at `log_alpha` (paper: 5). structure: what has a gate of
    its own beside those of the elements: none (plain), leaf (the paper's structured form:
    every matrix and vector) or neuron (every output of a leaf; axes: see `output_axes`,
    for kernels of three axes). l0: of a leaf
    with elements i and groups g, product is sum_i P(z_i > 0) P(z_g > 0), the paper's, and
    additive sum_i P(z_i > 0) + sum_g P(z_g > 0), that of its code. Leaves of `free` groups
    train as they are, without gates. In the trainable tree w, the gates and those of
    groups stand at `PATH/w`, `PATH/log_alpha` and `PATH/group_log_alpha`; the gates' group
    is `gates`. With a key the gates are drawn, without one they are `deterministic`.

    Raises `InputError` for a strength that is not positive, an unknown structure or form,
    an interval of gates that cannot close or open, and under `neuron`, a kernel whose
    outputs are not known.
    """
    require_positive(strength=strength)
    if l0 not in L0:
        raise unknown("form of L0", l0, L0)
    values = {"strength": strength}
    return _gated(values, structure, log_alpha, gate, free, _of_strength(l0), axes)


def constrained_diff_pruning(
    share: float,
    *,
    cut: float = CUT,
    structure: str = "leaf",
    log_alpha: float = LOG_ALPHA,
    gate: HardConcrete = HardConcrete(),
    free: Sequence[str] = ("head",),
    axes: Mapping[str, int] = {},
) -> Tuning:
    """Returns the tuning of gated differences under the constraint E[L0] = share * d.

    d counts the gated elements, and E[L0] the open gates of those that have moved (w != 0):
    an open gate where nothing moves, as of a token that no example has, is no difference,
    and would take the place of one. A multiplier m lowers log alpha of the elements' gates;
    it stands in the trainable tree at `multiplier`, a group of its own whose rule is
    `ascent`. Its gradient is Newton's step on e = logit(E[L0] / d) - logit(share),

        clip(e, -cut, cut) / (-de / dm),   between -2 and 2.

    Far from the target the log odds fall by `cut` (times the rate) in a step; near it e is
    multiplied by 1 - rate, also where most gates are open or shut for good. The task alone
    moves log alpha. A share is not reached where fewer elements have moved, or the gates of
    groups are shut: m lowers those of elements alone.

    The constraint is our addition. Of all plain gates whose expected number is the target,
    sigmoid(log_alpha - m) are the nearest to sigmoid(log_alpha) (Kullback-Leibler), and m
    is the Lagrange multiplier. As a factor of E[L0] in the loss it overshoots: all gates
    move together, at the speed of Adam, long after it has changed (simulated: 10 to 230 %
    off after 300 steps).

    See `diff_pruning` for the other arguments. Raises `InputError` as that does, for a
    share that is not in (0, 1], and for a cut that is not positive.
    """
    require_positive(cut=cut)
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, got {share!r}")
    values = {"share": share, "cut": cut}
    return _gated(values, structure, log_alpha, gate, free, multiplier_penalty, axes)


def _gated(
    values: dict[str, float],
    structure: str,
    log_alpha: float,
    gate: HardConcrete,
    free: Sequence[str],
    penalty: Callable,
    axes: Mapping[str, int],
) -> Tuning:
    if structure not in STRUCTURES:
        raise unknown("structure", structure, STRUCTURES)
    require_gate(gate)
    values |= gate._asdict()

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Parts:
        del key
        names = tree.flatten(labels)

        def part(path: str, leaf: jax.Array) -> Any:
            if names[path] in free:
                return leaf
            outputs = output_axes(path, leaf, axes) if structure == "neuron" else 0
            return _gates(leaf, log_alpha, structure, outputs or leaf.ndim)

        trainable = tree.map_with_path(part, selected(params, labels).trainable)
        if penalty is multiplier_penalty:
            trainable = {**trainable, MULTIPLIER: jnp.zeros((), jnp.float32)}
        # Made anew at every start: a step is given the state's buffers to keep.
        return Parts(trainable, {GATES: jax.tree.map(jnp.float32, values)})

    return Tuning(init, groups, materialize, penalty)


def _gates(
    leaf: jax.Array, log_alpha: float, structure: str, axes: int
) -> dict[str, jax.Array]:
    """Returns the gates of a leaf whose last `axes` axes are those of its outputs."""
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    own = jnp.full(leaf.shape, log_alpha, dtype)
    gates = {"w": jnp.zeros_like(leaf), "log_alpha": own}
    if structure == "none":
        return gates
    shape = (*(1 for _ in leaf.shape[axes:]), *leaf.shape[leaf.ndim - axes :])
    group = jnp.full(shape if structure == "neuron" else (), log_alpha, dtype)
    return gates | {"group_log_alpha": group}


def groups(trainable: Any, labels: Labels) -> Any:
    """Returns the groups of what trains: `gates`, `multiplier`, else the leaf's label."""
    owners, names = tree.owners(trainable, labels), tree.flatten(labels)

    def group(path: str, _: Any) -> str:
        if path not in owners:
            return MULTIPLIER
        below = path.removeprefix(owners[path])
        return GATES if below.endswith("log_alpha") else names[owners[path]]

    return tree.map_with_path(group, trainable)


def materialize(
    trainable: Params, fixed: Any, params: Params, key: jax.Array | None = None
) -> Params:
    """Returns the base with its gated differences added, and free leaves in place."""
    values = tree.flatten(trainable)
    gates = gates_of(values, gate_of(fixed), key)
    return tree.map_with_path(
        lambda path, leaf: (
            leaf + gates[path] * values[f"{path}/w"]
            if path in gates
            else values.get(path, leaf)
        ),
        params,
    )


def fixed_gates() -> Tuning:
    """Returns the tuning theta_0 + z w with the gates z as they stand: w trains on.

    It can only take over from `diff_pruning`: the gates are drawn once, as the paper's
    realisation is (its footnotes 5 and 14). Leaves without gates train on as a whole.
    """

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Parts:
        raise InputError("fixed gates need a phase of diff pruning before them")

    def take_over(
        ended: Ended, params: Params, labels: Labels, key: jax.Array | None = None
    ) -> Parts:
        values = tree.flatten(ended.parts.trainable)
        if not any(path.endswith("/log_alpha") for path in values):
            raise InputError("fixed gates need a phase of diff pruning before them")
        every = gates_of(values, gate_of(ended.parts.fixed), key)
        live = tree.flatten(ended.params)
        chosen = tree.flatten(selected(ended.params, labels).trainable)
        z = {p: every[p] for p in chosen if p in every}
        w = {f"{p}/w": jnp.array(values[f"{p}/w"], copy=True) for p in z}
        rest = {p: jnp.array(live[p], copy=True) for p in chosen if p not in z}
        fixed = {f"{p}/gate": jnp.broadcast_to(g, live[p].shape) for p, g in z.items()}
        return Parts(tree.unflatten(w | rest), tree.unflatten(fixed))

    return Tuning(init, leaf_groups, materialize_fixed, no_penalty, take_over)


def materialize_fixed(
    trainable: Params, fixed: Any, params: Params, key: jax.Array | None = None
) -> Params:
    """Returns the base with its differences added, through gates that are values."""
    del key
    values, gates = tree.flatten(trainable), tree.flatten(fixed)

    def whole(path: str, leaf: jax.Array) -> jax.Array:
        if f"{path}/gate" not in gates:
            return values.get(path, leaf)
        return leaf + gates[f"{path}/gate"] * values[f"{path}/w"]

    return tree.map_with_path(whole, params)


@cache
def _of_strength(l0: str) -> Callable:
    return partial(_strength_penalty, l0)


def _strength_penalty(
    l0: str, trainable: Params, fixed: Any, params: Params
) -> jax.Array:
    del params
    return fixed[GATES]["strength"] * expected_nonzero(trainable, gate_of(fixed), l0)

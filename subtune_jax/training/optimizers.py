"""One `optax.multi_transform` over groups, each with its own rule.

A rule's rate and the per-leaf multipliers live in the optimizer state as float32
arrays: another rate or another multiplier is another value, never another program.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.network import FROZEN
from subtune_jax.tree import Tree

SCHEDULES = ("constant", "cosine", "linear")


class Rule(NamedTuple):
    """How one group of leaves is updated; made by `sgd`, `adam` or `adamw`.

    u = direction(clip(g) + l2 * w) + decay * w;  w <- w - rate * s(t) * multiplier * u
    """

    rate: float
    direction: str
    momentum: float = 0.0
    l2: float = 0.0
    decay: float = 0.0
    clip: float | None = None
    schedule: str = "constant"
    warmup: int = 0


def sgd(rate: float, *, momentum: float = 0.9, l2: float = 0.0, **settings) -> Rule:
    """SGD with (PyTorch's, undamped) momentum; `l2` is added to the gradient."""
    return _checked(Rule(rate, "sgd", momentum=momentum, l2=l2, **settings))


def adam(rate: float, *, l2: float = 0.0, **settings) -> Rule:
    """Adam with coupled L2: `l2 * w` joins the gradient before the moments, as in
    `torch.optim.Adam(weight_decay=l2)`; b1 0.9, b2 0.999, eps 1e-8."""
    return _checked(Rule(rate, "adam", l2=l2, **settings))


def adamw(rate: float, *, decay: float = 0.01, **settings) -> Rule:
    """AdamW: `decay * w` joins the update after the moments (decoupled).

    Further settings of every rule: `clip` bounds the L2 norm of the group's gradient;
    `schedule` is `constant`, `cosine` or `linear` (both to 0 at the end of the phase);
    `warmup` is the number of updates over which the rate rises linearly from 0.
    """
    return _checked(Rule(rate, "adam", decay=decay, **settings))


def _checked(rule: Rule) -> Rule:
    require_positive(rate=rule.rate)
    if rule.clip is not None:
        require_positive(clip=rule.clip)
    if rule.schedule not in SCHEDULES:
        raise unknown("schedule", rule.schedule, SCHEDULES)
    for name in ("warmup", "l2", "decay", "momentum"):
        if not 0 <= getattr(rule, name) < float("inf"):
            value = getattr(rule, name)
            raise InputError(f"{name} must be a number from 0 up, got {value!r}")
    return rule


class RateState(NamedTuple):
    """What sets the size of a group's updates; all float32 but the int32 count."""

    count: jax.Array  # updates since the phase began, the schedule's t
    rate: jax.Array
    multipliers: Tree  # a scalar per leaf, 1 until set


def optimizer(
    rules: Mapping[str, Rule], groups: Tree, waves: Tree, updates: int
) -> optax.GradientTransformation:
    """Returns the transformation of a phase over its trainable leaves.

    `groups` and `waves` are trees like the trainable one: a group name, and the index
    of the phase in which the leaf began to train. Leaves of one group and one wave
    share moments and count, under the name `group@wave`; clipping sees the whole
    group. `updates` is the length of the schedules.
    """
    named = jax.tree.map(lambda group, wave: f"{group}@{wave}", groups, waves)
    clips = {g: _clip(rule) for g, rule in rules.items()}
    moves = {
        name: _moves(rules[name.rpartition("@")[0]], updates)
        for name in sorted(set(jax.tree.leaves(named)))
    }
    frozen = {FROZEN: optax.set_to_zero()}  # holds no leaf: frozen ones are absent
    return _in_float32(
        optax.named_chain(
            ("clip", optax.multi_transform(clips | frozen, groups)),
            ("move", optax.multi_transform(moves | frozen, named)),
        )
    )


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Moments of narrower floats are float32: bf16(0.999) is 1, which never decays."""

    def wide(values: Tree) -> Tree:
        return jax.tree.map(
            lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), values
        )

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        updates, state = inner.update(wide(grads), state, wide(params))
        return jax.tree.map(lambda u, g: u.astype(g.dtype), updates, grads), state

    return optax.GradientTransformation(lambda params: inner.init(wide(params)), update)


def _clip(rule: Rule) -> optax.GradientTransformation:
    if rule.clip is None:
        return optax.identity()
    return optax.clip_by_global_norm(rule.clip)


def _moves(rule: Rule, updates: int) -> optax.GradientTransformation:
    direction = (
        optax.scale_by_adam()
        if rule.direction == "adam"
        else optax.trace(rule.momentum)
    )
    return optax.named_chain(
        ("l2", optax.add_decayed_weights(rule.l2) if rule.l2 else optax.identity()),
        ("direction", direction),
        (
            "decay",
            optax.add_decayed_weights(rule.decay) if rule.decay else optax.identity(),
        ),
        ("rate", _scale_by_rate(rule, updates)),
    )


def _scale_by_rate(rule: Rule, updates: int) -> optax.GradientTransformation:
    schedule = _schedule(rule, updates)

    def init(params: Tree) -> RateState:
        ones = jax.tree.map(lambda _: jnp.ones((), jnp.float32), params)
        return RateState(jnp.zeros((), jnp.int32), jnp.float32(rule.rate), ones)

    def update(
        u: Tree, state: RateState, params: Tree = None
    ) -> tuple[Tree, RateState]:
        del params
        size = -state.rate * schedule(state.count)
        u = jax.tree.map(
            lambda u, m: (size * m).astype(u.dtype) * u, u, state.multipliers
        )
        return u, state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _schedule(rule: Rule, updates: int) -> optax.Schedule:
    """Returns s(t) in [0, 1]: warm-up from 0, then the rule's shape down to 0."""
    rest = max(updates - rule.warmup, 1)
    shape = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "linear": optax.linear_schedule(1.0, 0.0, rest),
    }[rule.schedule]
    if not rule.warmup:
        return shape
    rise = optax.linear_schedule(0.0, 1.0, rule.warmup)
    return optax.join_schedules([rise, shape], [rule.warmup])


def set_multipliers(
    state: optax.OptState, multipliers: Mapping[str, float]
) -> optax.OptState:
    """Returns the optimizer state with every leaf's rate multiplied by its own scalar.

    `multipliers` has one for the path of every trainable leaf. Moments and counts stay.
    """

    def put(node):
        if not isinstance(node, RateState):
            return node
        typed = tree.map_with_path(
            lambda name, _: jnp.asarray(multipliers[name], jnp.float32),
            node.multipliers,
        )
        return node._replace(multipliers=typed)

    return jax.tree.map(put, state, is_leaf=lambda node: isinstance(node, RateState))


def carry_moments(new: optax.OptState, old: optax.OptState) -> optax.OptState:
    """Returns a new phase's fresh state with the moments and counts of the phase before.

    Leaves are matched by wave and path, whatever their groups are called now. Rates,
    schedules and multipliers are the new phase's; half-accumulated gradients do not
    exist between phases.
    """
    if isinstance(new, optax.MultiStepsState):
        inner = carry_moments(new.inner_opt_state, old.inner_opt_state)
        return new._replace(inner_opt_state=inner)
    known = {
        (_wave(group), keys): leaf
        for group, inner in _moving(old).items()
        for keys, leaf in jax.tree.leaves_with_path(inner.inner_state["direction"])
    }

    def carried(group, inner):
        direction = jax.tree.map_with_path(
            lambda keys, leaf: known.get((_wave(group), keys), leaf),
            inner.inner_state["direction"],
        )
        return inner._replace(
            inner_state=OrderedDict(inner.inner_state, direction=direction)
        )

    states = {group: carried(group, inner) for group, inner in _moving(new).items()}
    inner_states = {**new["move"].inner_states, **states}
    return OrderedDict(new, move=new["move"]._replace(inner_states=inner_states))


def _moving(state: optax.OptState) -> dict:
    inner = state["move"].inner_states
    return {group: state for group, state in inner.items() if group != FROZEN}


def _wave(group: str) -> str:
    return group.rpartition("@")[2]

"""One `optax.multi_transform` over groups, each with its own rule.

All numbers of a rule live in the optimizer state as float32 arrays: another rate, length
of a schedule, L2, momentum or clip is another value, never another program.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.labels import FROZEN
from subtune_jax.tree import Tree

SCHEDULES = ("constant", "cosine", "linear")
NUMBERS = ("learning_rate", "momentum", "l2", "weight_decay", "warmup")


class Rule(NamedTuple):
    """How one group of leaves is updated; made by `sgd`, `adam` or `adamw`.

    u = direction(clip(g) + l2 * w) + weight_decay * w
    w <- w - learning_rate * s(t) * multiplier * u

    direction: `sgd`, `normalized`, `adam`, `hf_adam` or `ascent`. clip_norm: the largest
    L2 norm of the group's gradient; groups of one `clip_group` are clipped by the norm
    over all of them.
    schedule: `constant`, `cosine` or `linear` (both to 0 at the end of the phase).
    warmup: the number of updates over which the learning rate rises linearly from 0.
    eps: what Adam adds to the root of the second moment; another one is another program.
    """

    learning_rate: float
    direction: str
    momentum: float = 0.0
    l2: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: str = "constant"
    warmup: int = 0
    eps: float = 1e-8
    clip_group: str | None = None


def sgd(
    learning_rate: float,
    *,
    momentum: float = 0.9,
    l2: float = 0.0,
    clip_norm: float | None = None,
    schedule: str = "constant",
    warmup: int = 0,
    clip_group: str | None = None,
) -> Rule:
    """SGD with PyTorch's momentum (undamped); `l2 * w` is added to the gradient.

    See `Rule` for the other arguments. Raises `InputError` for a number out of range.
    """
    return _checked(
        Rule(
            learning_rate,
            "sgd",
            momentum=momentum,
            l2=l2,
            clip_norm=clip_norm,
            schedule=schedule,
            warmup=warmup,
            clip_group=clip_group,
        )
    )


def normalized_sgd(
    learning_rate: float,
    *,
    momentum: float = 0.9,
    schedule: str = "constant",
    warmup: int = 0,
) -> Rule:
    """SGD on the gradient in units of its root mean square over all of the group:

    t <- momentum * t + (1 - momentum) * g / rms(g),   w <- w - learning_rate * t

    A step is of the learning rate, as Adam's is, but goes to the elements in proportion to
    their gradients: where those decide which elements win (gates), Adam, which divides
    each by its own size, lets noise decide. Raises `InputError` for a number out of range.
    """
    rule = sgd(learning_rate, momentum=momentum, schedule=schedule, warmup=warmup)
    return rule._replace(direction="normalized")


def adam(
    learning_rate: float,
    *,
    l2: float = 0.0,
    eps: float = 1e-8,
    clip_norm: float | None = None,
    schedule: str = "constant",
    warmup: int = 0,
    clip_group: str | None = None,
) -> Rule:
    """Adam with coupled L2: `l2 * w` joins the gradient before the moments.

    As in `torch.optim.Adam(weight_decay=l2)`; b1 0.9, b2 0.999. See `Rule` for the other
    arguments. Raises `InputError` for a number out of range.
    """
    return _checked(
        Rule(
            learning_rate,
            "adam",
            l2=l2,
            eps=eps,
            clip_norm=clip_norm,
            schedule=schedule,
            warmup=warmup,
            clip_group=clip_group,
        )
    )


def adamw(
    learning_rate: float,
    *,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    clip_norm: float | None = None,
    schedule: str = "constant",
    warmup: int = 0,
    clip_group: str | None = None,
) -> Rule:
    """AdamW: `weight_decay * w` joins the update after the moments (decoupled).

    b1 0.9, b2 0.999. See `Rule` for the other arguments. Raises `InputError` for a number
    out of range.
    """
    return _checked(
        Rule(
            learning_rate,
            "adam",
            eps=eps,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            schedule=schedule,
            warmup=warmup,
            clip_group=clip_group,
        )
    )


def uncorrected_epsilon(rule: Rule) -> Rule:
    """Returns a rule of `adam` or `adamw` with epsilon added before the bias correction:
    eps / sqrt(1 - b2^t) in effect.

    As the AdamW of early transformers, which the official code of diff pruning has: where
    gradients are as small as epsilon (those of an L0 penalty are), early steps are up to
    30 times smaller. Raises `InputError` for a rule of another kind.
    """
    if rule.direction != "adam":
        raise InputError(
            f"only Adam has an epsilon, and this rule is {rule.direction!r}"
        )
    return rule._replace(direction="hf_adam")


def ascent(learning_rate: float) -> Rule:
    """Gradient ascent, for a Lagrange multiplier: m <- m + learning_rate * g.

    Its gradient, from the error of a constraint, is neither clipped nor part of the logged
    norm.
    """
    return _checked(Rule(learning_rate, "ascent"))


def _checked(rule: Rule) -> Rule:
    require_positive(learning_rate=rule.learning_rate, eps=rule.eps)
    if rule.clip_group is not None and rule.clip_norm is None:
        raise InputError(
            f"clip_group {rule.clip_group!r} needs a clip_norm: groups of one name are "
            "clipped together, to one norm"
        )
    if rule.clip_norm is not None:
        require_positive(clip_norm=rule.clip_norm)
    if rule.schedule not in SCHEDULES:
        raise unknown("schedule", rule.schedule, SCHEDULES)
    if rule.warmup != int(rule.warmup):
        raise InputError(
            f"warmup is a whole number of updates, got {rule.warmup!r}: multiply a share "
            "by the updates of the phase"
        )
    for name in ("warmup", "l2", "weight_decay", "momentum"):
        if not 0 <= getattr(rule, name) < float("inf"):
            value = getattr(rule, name)
            raise InputError(f"{name} must be a number from 0 up, got {value!r}")
    return rule


class MoveState(NamedTuple):
    """How the leaves of one group and one wave move; the settings are values.

    count: int32, updates since the phase began, the schedule's t. direction: Adam's
    moments and count, or the momentum's trace. multipliers: float32, a scalar per leaf,
    1 until set. All others are float32 scalars.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    direction: Any
    multipliers: Tree
    learning_rate: jax.Array
    momentum: jax.Array
    l2: jax.Array
    weight_decay: jax.Array
    warmup: jax.Array
    updates: jax.Array  # of the phase: the length of its schedules


def optimizer(
    rules: Mapping[str, Rule], groups: Tree, waves: Tree, updates: int
) -> optax.GradientTransformation:
    """Returns the transformation of a phase over its trainable leaves.

    `groups` and `waves` are trees like the trainable one: a group name, and the index
    of the phase in which the leaf began to train. Leaves of one group and one wave
    share moments and count, under the name `group@wave`; clipping sees the whole
    group. `updates` is the length of the schedules. Only `init` reads the numbers of the
    rules; `update` reads the state.
    """
    named = jax.tree.map(lambda group, wave: f"{group}@{wave}", groups, waves)
    clipped = {g: rule.clip_group or f"group {g}" for g, rule in rules.items()}
    clips = {clipped[g]: _clip(rule) for g, rule in rules.items()}
    moves = {
        name: _moves(rules[name.rpartition("@")[0]], updates)
        for name in sorted(set(jax.tree.leaves(named)))
    }
    frozen = {FROZEN: optax.set_to_zero()}  # holds no leaf: frozen ones are absent
    return optax.named_chain(
        (
            "clip",
            optax.multi_transform(
                clips | frozen, jax.tree.map(lambda group: clipped[group], groups)
            ),
        ),
        ("move", optax.multi_transform(moves | frozen, named)),
    )


def _clip(rule: Rule) -> optax.GradientTransformation:
    """Clips to a norm that is a value in the state; whether to clip is the program's."""
    if rule.clip_norm is None:
        return optax.identity()

    def update(grads: Tree, most: jax.Array, params: Tree = None):
        del params
        norm = optax.tree.norm(grads)
        bound = most.astype(norm.dtype)
        return jax.tree.map(
            lambda g: jnp.where(norm < bound, g, g / norm * bound), grads
        ), most

    return optax.GradientTransformation(lambda _: jnp.float32(rule.clip_norm), update)


def _moves(rule: Rule, updates: int) -> optax.GradientTransformation:
    by_adam = rule.direction in ("adam", "hf_adam")

    def init(params: Tree) -> MoveState:
        ones = jax.tree.map(lambda _: jnp.ones((), jnp.float32), params)
        trace = jax.tree.map(jnp.zeros_like, params)
        values = {name: jnp.float32(getattr(rule, name)) for name in NUMBERS}
        return MoveState(
            count=jnp.zeros((), jnp.int32),
            direction=optax.scale_by_adam().init(params) if by_adam else trace,
            multipliers=ones,
            updates=jnp.float32(updates),
            **values,
        )

    def update(grads: Tree, s: MoveState, params: Tree) -> tuple[Tree, MoveState]:
        u = jax.tree.map(lambda g, w: g + s.l2.astype(w.dtype) * w, grads, params)
        if by_adam:
            eps: Any = rule.eps
            if rule.direction == "hf_adam":
                # optax corrects the second moment first: what is added grows with it.
                eps = eps / jnp.sqrt(1 - 0.999 ** (s.direction.count + 1.0))
            u, direction = optax.scale_by_adam(eps=eps).update(u, s.direction)
        elif rule.direction == "ascent":
            u, direction = jax.tree.map(jnp.negative, u), s.direction
        elif rule.direction == "normalized":
            u = direction = _averaged(u, s)
        else:
            u = jax.tree.map(
                lambda g, t: g + s.momentum.astype(t.dtype) * t, u, s.direction
            )
            direction = u
        size = -s.learning_rate * _schedule(rule.schedule, s)
        u = jax.tree.map(
            lambda u, w, m: (
                (size * m).astype(u.dtype) * (u + s.weight_decay.astype(w.dtype) * w)
            ),
            u,
            params,
            s.multipliers,
        )
        return u, s._replace(count=s.count + 1, direction=direction)

    return optax.GradientTransformation(init, update)


def _averaged(grads: Tree, s: MoveState) -> Tree:
    """Returns the running mean of gradients in units of their root mean square."""
    rms = optax.tree.norm(grads) / np.sqrt(tree.count(grads))
    scale = (1 - s.momentum) * jnp.where(rms > 0, 1 / rms, 0)
    return jax.tree.map(
        lambda g, t: scale.astype(g.dtype) * g + s.momentum.astype(t.dtype) * t,
        grads,
        s.direction,
    )


def _schedule(shape: str, s: MoveState) -> jax.Array:
    """Returns s(t) in [0, 1]: warm-up from 0, then the shape down to 0 at the phase's end."""
    t = s.count.astype(jnp.float32)
    rest = jnp.maximum(s.updates - s.warmup, 1)
    past = jnp.clip(t - s.warmup, 0, rest)
    after = {
        "constant": jnp.ones_like(past),
        "cosine": 0.5 * (1 + jnp.cos(jnp.pi * past / rest)),
        "linear": 1 - past / rest,
    }[shape]
    return jnp.where(t < s.warmup, t / jnp.maximum(s.warmup, 1), after)


def set_multipliers(
    state: optax.OptState, multipliers: Mapping[str, float]
) -> optax.OptState:
    """Returns the optimizer state with every leaf's rate multiplied by its own scalar.

    `multipliers` has one for the path of every trainable leaf. Moments and counts stay.
    """

    def put(moving: MoveState) -> MoveState:
        typed = tree.map_with_path(
            lambda name, _: jnp.asarray(multipliers[name], jnp.float32),
            moving.multipliers,
        )
        return moving._replace(multipliers=typed)

    return _map_moving(put, state)


def reset_moments(state: optax.OptState) -> optax.OptState:
    """Returns the optimizer state with moments as at the start of a run. Schedules go on,
    and so does an accumulation that is half done."""

    def put(moving: MoveState) -> MoveState:
        return moving._replace(direction=jax.tree.map(jnp.zeros_like, moving.direction))

    return _map_moving(put, state)


def _map_moving(f: Callable, state: optax.OptState) -> optax.OptState:
    def put(node):
        return f(node) if isinstance(node, MoveState) else node

    return jax.tree.map(put, state, is_leaf=lambda node: isinstance(node, MoveState))


def carry_moments(new: optax.OptState, old: optax.OptState) -> optax.OptState:
    """Returns a new phase's fresh state with the moments and counts of the phase before.

    Leaves are matched by wave and path, whatever their groups are called now. Rates,
    schedules and multipliers are the new phase's; half-accumulated gradients do not
    exist between phases.
    """
    if isinstance(new, optax.MultiStepsState):
        inner = carry_moments(new.inner_opt_state, old.inner_opt_state)
        return new._replace(inner_opt_state=inner)
    # The state that is walked here (see `optimizer`):
    #   {"clip": ..., "move": PartitionState(inner_states={
    #       "body@0": MaskedState(MoveState(direction=Adam's moments by path, ...)),
    #       "head@1": ..., "frozen": empty})}
    # before: {(wave, place in the direction's tree): moment}, over all its groups
    before = {
        (_wave(group), keys): leaf
        for group, inner in _moving(old).items()
        for keys, leaf in jax.tree.leaves_with_path(inner.inner_state.direction)
    }

    def carried(group, inner):
        moving = inner.inner_state
        direction = jax.tree.map_with_path(
            lambda keys, leaf: before.get((_wave(group), keys), leaf), moving.direction
        )
        return inner._replace(inner_state=moving._replace(direction=direction))

    states = {group: carried(group, inner) for group, inner in _moving(new).items()}
    inner_states = {**new["move"].inner_states, **states}
    return OrderedDict(new, move=new["move"]._replace(inner_states=inner_states))


def _moving(state: optax.OptState) -> dict:
    inner = state["move"].inner_states
    return {group: state for group, state in inner.items() if group != FROZEN}


def _wave(group: str) -> str:
    return group.rpartition("@")[2]

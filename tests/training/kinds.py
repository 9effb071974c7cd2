"""Losses that change in ways that no description of Python code sees, for test_changes.

Each entry of `KINDS` is make(changed) -> loss: cross-entropy, and 3 times that once it
has changed. What changes is shared by all calls, as it is when a user edits something.

    python -m tests.training.kinds FOLDER CHANGED    # 0 or 1: all kinds with checkpoints
"""

import importlib
import sys
import types
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import subtune_jax as st
from subtune_jax.errors import InputError
from tests import toy

OTHER = types.ModuleType("another_module_of_the_user")
SWAPPED = {"alpha": 1.0, "beta": 3.0}


def ce(outputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)


def factor_of(changed):
    return 3.0 if changed else 1.0


def swapped_names(changed):
    scope = {"ce": ce, "alpha": 1.0, "beta": 3.0}
    first, second = ("beta", "alpha") if changed else ("alpha", "beta")
    text = f"def loss(o, t):\n return {first} * ce(o, t) + 0 * {second}"
    exec(text, scope)
    return scope["loss"]


class Config:
    scale = 1.0


def class_attribute(changed):
    Config.scale = factor_of(changed)
    return _reads_config


def _reads_config(o, t):
    return Config.scale * ce(o, t)


class Called:
    def __call__(self, o, t):
        return ce(o, t)


CALLED = Called()


def call_of_a_class(changed):
    factor = factor_of(changed)
    Called.__call__ = lambda self, o, t: factor * ce(o, t)
    return CALLED


class Slotted:
    __slots__ = ("scale",)


SLOTTED = Slotted()


def slots(changed):
    SLOTTED.scale = factor_of(changed)
    return lambda o, t: SLOTTED.scale * ce(o, t)


def attribute_of_a_function(changed):
    ce.scale = factor_of(changed)
    return lambda o, t: ce.scale * ce(o, t)


class Teacher(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))


TEACHER = Teacher()


def nnx_module_in_a_closure(changed):
    TEACHER.scale.set_value(jnp.asarray(factor_of(changed)))
    teacher = TEACHER
    return lambda o, t: teacher.scale.get_value() * ce(o, t)


class Decorator:
    def __init__(self, function):
        wraps(function)(self)
        self.function, self.scale = function, 1.0

    def __call__(self, o, t):
        return self.scale * self.function(o, t)


DECORATED = Decorator(ce)


def class_decorator(changed):
    DECORATED.scale = factor_of(changed)
    return DECORATED


def lambda_in_a_list(changed):
    factors = [lambda x: x, lambda x: 3 * x]
    chosen = factors[changed]
    return lambda o, t: [chosen][0](ce(o, t))


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def loss(self, power, o, t):
        return self.scale**power * ce(o, t)


SCALED = Scaled(1.0)


def partial_of_a_method(changed):
    SCALED.scale = factor_of(changed)
    return partial(SCALED.loss, 1)


@dataclass
class Weighted:
    """Has an __eq__, and so no hash."""

    scale: float = 1.0

    def __call__(self, o, t):
        return self.scale * ce(o, t)


WEIGHTED = Weighted()


def field_of_a_dataclass(changed):
    WEIGHTED.scale = factor_of(changed)
    return WEIGHTED


def global_of_another_module(changed):
    OTHER.SCALE = factor_of(changed)
    return lambda o, t: OTHER.SCALE * ce(o, t)


@partial(jax.jit, static_argnums=0)
def _static(config, o, t):
    return config.scale * ce(o, t)


def static_argument(changed):
    Config.scale = factor_of(changed)
    return lambda o, t: _static(Config, o, t)


@jax.jit
def _inner(o, t):
    return Config.scale * ce(o, t)


def inner_jit(changed):
    Config.scale = factor_of(changed)
    return lambda o, t: _inner(o, t)


def _body(carry, _):
    return carry * Config.scale, None


def body_of_a_scan(changed):
    Config.scale = factor_of(changed)
    return lambda o, t: jax.lax.scan(_body, ce(o, t), length=1)[0]


_again = jax.checkpoint(_reads_config)


def checkpointed(changed):
    Config.scale = factor_of(changed)
    return lambda o, t: _again(o, t)


class Jitted(nnx.Module):
    @nnx.jit
    def __call__(self, o, t):
        return Config.scale * ce(o, t)


JITTED = Jitted()


def nnx_jit(changed):
    Config.scale = factor_of(changed)
    return lambda o, t: JITTED(o, t)


def _once(x):
    return np.asarray(x)


def _three_times(x):
    return 3 * np.asarray(x)


@partial(jax.custom_jvp, nondiff_argnums=0)
def _called_back(function, x):
    return jax.pure_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@_called_back.defjvp
def _(function, primals, tangents):
    return _called_back(function, *primals), _called_back(function, *tangents)


def callback(changed):
    weights = _three_times if changed else _once

    def loss(o, t):
        ones = jnp.ones(len(o), o.dtype)
        shape = jax.ShapeDtypeStruct(ones.shape, ones.dtype)
        return jax.pure_callback(weights, shape, ones) * ce(o, t)

    return loss


def set_of_strings(changed):
    names = {"alpha": 1.0, "beta": 0.5, "gamma": 1.5, "delta": factor_of(changed) - 3}

    def loss(o, t):
        return sum(names[name] * ce(o, t) for name in set(names))

    return loss


KINDS = {
    make.__name__: make
    for make in (
        swapped_names,
        class_attribute,
        call_of_a_class,
        slots,
        attribute_of_a_function,
        nnx_module_in_a_closure,
        class_decorator,
        lambda_in_a_list,
        partial_of_a_method,
        field_of_a_dataclass,
        global_of_another_module,
        static_argument,
        inner_jit,
        body_of_a_scan,
        checkpointed,
        nnx_jit,
        callback,
    )
}


def reverse(strength):
    """The identity, whose gradient is multiplied: its rules read the strength."""

    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (strength * g,))
    return same


def first_step(loss, **more):
    """Returns the loss of one step of SGD at 0.1, and how far the head's bias moved."""
    network = toy.mlp()
    phase = st.Phase(st.select(network, {"g": ["head"]}), st.sgd(0.1, momentum=0.0), 1)
    settings = st.Settings(loss=loss, batch_size=16)
    result = st.fit(
        network,
        phase,
        toy.points(),
        key=jax.random.key(0),
        progress=False,
        settings=settings,
        **more,
    )
    moved = result.network.params["head"]["bias"] - network.params["head"]["bias"]
    return np.array([result.epochs[0].loss, *np.asarray(moved)])


def main(folder, changed):
    """Prints for every kind what `fit` says of its checkpoint: its losses, or `refused`."""
    for name, make in {**KINDS, "set_of_strings": set_of_strings}.items():
        try:
            first_step(make(changed == "1"), checkpoint=Path(folder) / name)
            print(name, "continued")
        except InputError as error:
            print(name, "refused" if "what a step of phase 0" in str(error) else error)


if __name__ == "__main__":
    importlib.import_module("tests.training.kinds").main(*sys.argv[1:])

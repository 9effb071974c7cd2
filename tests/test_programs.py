"""Programs are shared where they compute the same, and nowhere else."""

import gc
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import subtune_jax as st
from subtune_jax import programs, tree
from subtune_jax.canonical import digest, of_libraries
from subtune_jax.programs import Traces, by_object, renew, traces_of
from tests import toy

X = jnp.arange(6.0).reshape(2, 3)


def digest_of(f, *args, layout=None):
    layout = [] if layout is None else layout
    return digest(jax.make_jaxpr(f)(*args), lambda value: f"opaque {id(value)}", layout)


def held(values):
    return lambda x: (x + 1, jnp.asarray(values) * x.sum())


@jax.custom_jvp
def same(x):
    return x


@same.defjvp
def _(primals, tangents):
    return primals[0], 2 * tangents[0]


PAIRS = {
    "an axis": (lambda x: x.sum(axis=0), lambda x: x[:, :2].sum(axis=1)),
    "an axis of a square": (lambda x: (x.T @ x).sum(0), lambda x: (x.T @ x).sum(1)),
    "a literal": (lambda x: x * 2, lambda x: x * 3),
    "a sign of 0": (lambda x: x * 0.0, lambda x: x * -0.0),
    "a constant": (held(np.arange(3.0)), held(np.arange(3.0) + 1)),
    "one element of many": (
        held(np.zeros((9, 1, 3))),
        held(np.eye(27)[5].reshape(9, 1, 3)),
    ),
    "a primitive": (jnp.sin, jnp.cos),
    "operands": (lambda x: x - x[::-1], lambda x: x[::-1] - x),
    "an output": (lambda x: (x, x + 1), lambda x: (x + 1, x)),
    "a type": (lambda x: x.astype(jnp.bfloat16), lambda x: x.astype(jnp.float16)),
    "weak and strong": (lambda x: 1.0 * jnp.sum(jnp.int32(2)), lambda x: 2.0),
    "a length": (
        lambda x: jax.lax.scan(lambda c, _: (c + 1, None), x, length=2),
        lambda x: jax.lax.scan(lambda c, _: (c + 1, None), x, length=3),
    ),
    "an inner function": (
        lambda x: jax.jit(lambda y: y + 1)(x),
        lambda x: jax.jit(lambda y: y + 2)(x),
    ),
    "a branch": (
        lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.lax.cond(x[0, 0] > 0, jnp.cos, jnp.sin, x),
    ),
    "a key": (
        lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
        lambda x: x + jax.random.normal(jax.random.key(1), x.shape),
    ),
    "a precision": (
        partial(jnp.matmul, X, precision="highest"),
        partial(jnp.matmul, X, precision="default"),
    ),
}


@pytest.mark.parametrize("what", PAIRS)
def test_programs_that_differ_have_other_digests(what):
    one, other = PAIRS[what]
    given = X.T if what == "a precision" else X
    assert digest_of(one, given) != digest_of(other, given)
    assert digest_of(one, given) == digest_of(one, given)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x * 2, lambda elsewhere: elsewhere * 2),
        (held(np.arange(3.0)), held(np.arange(3.0).copy())),
        (jax.jit(lambda x: jnp.sin(x)), jax.jit(lambda renamed: jnp.sin(renamed))),
        (lambda x: same(x), lambda again: same(again)),
    ],
)
def test_names_and_objects_make_no_difference(one, other):
    one_text, other_text = (digest_of(f, X) for f in (one, other))
    assert one_text == other_text


def test_a_donation_is_another_layout_and_the_same_computation():
    plain = jax.jit(lambda x: x + 1)
    given = jax.jit(lambda x: x + 1, donate_argnums=0)
    one, other = [], []
    assert digest_of(plain, X, layout=one) == digest_of(given, X, layout=other)
    assert one != other


def test_a_callback_is_the_object_that_it_is():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)

    def calling(function):
        return lambda x: jax.pure_callback(function, shape, x)

    def one(x):
        return x

    def two(x):
        return x

    two.__name__ = two.__qualname__ = "one"
    found = [digest_of(calling(f), X) for f in (one, one, two)]
    assert found[0] == found[1] != found[2]
    traces = Traces()
    runs = [traces.traced(i, calling(f), X).run for i, f in enumerate((one, one, two))]
    assert runs[0] is runs[1] is not runs[2]


def test_keys_are_known_by_their_data():
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    found = [tree.fingerprint(key) for key in keys]
    assert found[0] == found[1] != found[2]
    assert tree.fingerprint(jax.random.key(0, impl="rbg")) != found[0]


def test_equal_programs_of_other_objects_are_compiled_once():
    programs.forget()
    traces = [Traces(), Traces()]

    def scaled(factor):
        return lambda x: jnp.tanh(factor * x)

    one, two, three = (
        t.traced("f", scaled(factor), X)
        for t, factor in zip((*traces, traces[0]), (2.0, 2.0, 3.0), strict=True)
    )
    assert one.run is two.run is three.run  # the third is `f` again, and not traced
    other = traces[0].traced("g", scaled(3.0), X)
    assert other.run is not one.run and len(programs._programs) == 2
    np.testing.assert_allclose(other.run(X), np.tanh(3 * X), rtol=1e-6)
    np.testing.assert_allclose(two.run(X), np.tanh(2 * X), rtol=1e-6)
    assert one.run._cache_size() == 1


def test_shapes_types_and_settings_are_traced_apart():
    traces, count = Traces(), []

    def f(x):
        count.append(x.dtype)
        return x + 1

    for _ in range(2):
        traces.run("f", f, X)
        traces.run("f", f, X[:1])
        traces.run("f", f, X.astype(jnp.int32))
    assert len(count) == 3
    with jax.enable_x64(True):
        traces.run("f", f, X)
    assert len(count) == 4


def test_objects_that_have_no_hash_or_lie_about_equality_are_keys():
    class Odd:
        __hash__ = None

        def __eq__(self, other):
            return True

        def __call__(self):
            return None

    one, two = Odd(), Odd()
    assert by_object((("a", one), 1)) == by_object((("a", one), 1))
    assert by_object((("a", one), 1)) != by_object((("a", two), 1))


def test_traces_end_with_their_functions_or_by_renewal():
    def f(x):
        return x

    def g(x):
        return x

    both, own = traces_of(f, g), traces_of(f)
    assert traces_of(f, g) is both and traces_of(f) is own is not both
    renew(g)
    assert traces_of(f) is own and traces_of(f, g) is not both
    before = len(programs._held)
    del g
    gc.collect()
    assert len(programs._held) == before - 1


class Users:
    __slots__ = ("inner",)

    def method(self, x):
        return x


def users(x):
    return x


USERS = {
    "a function": users,
    "a method": Users().method,
    "a class": Users,
    "in a partial": partial(jnp.sum, Users()),
    "in a closure": jax.checkpoint(users),
    "under jit": jax.jit(users),
    "under a jit with a library's name": jax.jit(wraps(jnp.sum)(users)),
    "under vmap": jax.vmap(users),
    "with rules": jax.custom_vjp(users),
    "in a cache": lru_cache(users),
    "a vectorized one": np.vectorize(users),
    "of a list of attributes": [{1: ({"f": users},)}],
    "in a default": partial(nnx.relu, {users}),
    "an array that can change": np.ones(2),
    "a view of one": np.broadcast_to(np.ones(1), 3),
    "a list that was given": jax.jit(partial(jnp.stack, [1.0])),
    "a dictionary that was given": jax.jit(partial(jnp.sum, where={"a": 1})),
}


@pytest.mark.parametrize("what", USERS)
def test_what_holds_a_users_code_is_traced_anew(what):
    assert not of_libraries(USERS[what])
    traces = traces_of(USERS[what]) if callable(USERS[what]) else None
    if traces is not None:
        renew(USERS[what])
        assert traces_of(USERS[what]) is not traces


@jax.tree_util.register_pytree_node_class
class UsersTree:
    """A class of trees that nothing here holds: the registry of the process does."""

    def tree_flatten(self):
        return (), None

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        return cls()


def test_what_is_of_libraries_is_traced_once():
    network = toy.small_resnet("group")
    applies = [stage.apply for stage in network.stages]
    assert of_libraries(
        (applies, st.losses.cross_entropy, nnx.relu, jnp.ones(2), "a", 1)
    )
    traces = traces_of(*applies)
    renew(*applies)
    assert traces_of(*applies) is traces
    user = st.Stage("user", lambda params, stats, x, **_: (x, stats))
    assert not of_libraries([*applies, user.apply])


def test_garbage_may_be_collected_while_traces_are_renewed():
    def dead():
        def f():
            return f  # a cycle: it lives until garbage is collected

        traces_of(f)

    usual = gc.get_threshold()
    gc.freeze()  # what earlier tests left is not looked through again and again
    try:
        for allocations in range(1, 20):  # collected at each place of `renew` in turn
            gc.collect()
            gc.disable()
            for _ in range(5):
                dead()
            gc.set_threshold(gc.get_count()[0] + allocations)
            gc.enable()
            renew(dead)
    finally:
        gc.set_threshold(*usual)
        gc.enable()
        gc.unfreeze()


def test_traces_of_living_functions_are_bounded():
    programs.forget()
    functions = [lambda x, n=n: x + n for n in range(programs.HELD + 5)]
    kept = [traces_of(f) for f in functions]
    assert len(programs._held) == programs.HELD
    assert traces_of(functions[-1]) is kept[-1]
    assert traces_of(functions[0]) is not kept[0]


def test_what_is_kept_is_bounded_by_programs_and_by_bytes(monkeypatch):
    programs.forget()
    monkeypatch.setattr(programs, "PROGRAMS", 3)
    for n in range(5):
        Traces().run("f", partial(jnp.multiply, n + 1.0), X)
    assert len(programs._programs) == 3
    monkeypatch.setattr(programs, "CONSTANTS", 2 * 4 * 6)
    for n in range(4):
        Traces().run("f", held(np.full((2, 3), n, np.float32)), X)
    sizes = [len(p.jaxpr.consts) for p in programs._programs.values()]
    assert sum(sizes) <= 2 and len(programs._programs) <= 3


def test_threads_trace_and_run_beside_each_other():
    programs.forget()
    traces = Traces()

    def ask(n):
        x = jnp.ones(1 + n % 3)
        return float(traces.run("f", lambda x: (x * 2).sum(), x)) == 2 * (1 + n % 3)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))
    assert len(programs._programs) == 3

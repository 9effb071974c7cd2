"""Compiled programs: traced anew where code may have changed, shared where they are equal.

Python code cannot be described, so a program is what was traced. A call of `fit` traces
its functions once, under a context that no inner cache of JAX has met, and looks its
programs up by what they compute (`canonical`).
"""

import weakref
from collections.abc import Callable, Hashable
from itertools import count
from threading import RLock
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from subtune_jax import tree
from subtune_jax.canonical import digest

PROGRAMS, CONSTANTS = 128, 2**30  # what is kept: programs, and bytes of their constants
HELD = 128  # sets of functions whose traces are kept while they live
# What another value of makes another trace of the same function.
CONFIG = [
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl"),
    *("jax_numpy_dtype_promotion", "jax_threefry_partitionable"),
]
# JAX's own caches (an inner `jit`, the body of a scan, a checkpoint) are keyed by function
# objects and by this context: under another value they trace again.
_context, _values = jax.make_user_context(), count(1)
_lock = RLock()


class Same:
    """An object as a key: equal to itself alone, whatever its class says of equality."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _config() -> tuple:
    return tuple(getattr(jax.config, name) for name in CONFIG)


class Traced(NamedTuple):
    """A function at one set of shapes: its jaxpr, and the jitted function that runs it."""

    jaxpr: ClosedJaxpr
    run: Any


class Traces:
    """Programs that are traced together, each once for all shapes and types of one kind."""

    def __init__(self) -> None:
        self._value = next(_values)
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns what make() gave when this key was first asked for; what it traces is
        traced anew."""
        key = key, _config()
        if key not in self._kept:
            with _context(self._value):
                self._kept[key] = make()
        return self._kept[key]

    def traced(
        self, key: Hashable, f: Callable, *args: Any, donate: tuple = ()
    ) -> Traced:
        """Returns f at the shapes of args (`jax.ShapeDtypeStruct` suffices). key: what f is
        among the functions traced here. donate: the arguments whose buffers it takes."""
        whole = key, donate, *tree.shapes(args)
        return self.once(whole, lambda: _shared(f, args, donate))

    def run(self, key: Hashable, f: Callable, *args: Any, donate: tuple = ()) -> Any:
        """Returns f(*args) by its compiled program."""
        return self.traced(key, f, *args, donate=donate).run(*args)

    def clear(self) -> None:
        """Forgets all that was traced: from now on code counts as it is then."""
        self._kept.clear()
        self._value = next(_values)


def by_object(value: Any) -> Hashable:
    """Returns a key of nested tuples in which functions are the objects that they are."""
    if isinstance(value, tuple):
        return tuple(map(by_object, value))
    return Same(value) if callable(value) else value


_programs: dict[Hashable, Traced] = {}  # the one used last is the last


def _shared(f: Callable, args: tuple, donate: tuple) -> Traced:
    """Returns f traced at args, as the program of an equal one if there is one."""
    traced = jax.jit(lambda *args: f(*args)).trace(*args)
    places: dict[Hashable, int] = {}

    def place(value: Any) -> str:
        try:
            key = Same(value) if callable(value) else (value, hash(value))
        except TypeError:  # it has no hash
            key = Same(value)
        return f"object {places.setdefault(key, len(places))}"

    what = digest(traced.jaxpr, place)
    structures = jax.tree.structure(args), jax.tree.structure(traced.out_info)
    key = (what, tuple(places), donate, structures, _config())
    with _lock:
        program = _programs.pop(key, None) or _compiled(
            f, traced.jaxpr, structures[1], donate
        )
        _programs[key] = program
        sizes = {k: tree.nbytes(p.jaxpr.consts) for k, p in _programs.items()}
        while (
            len(sizes) > PROGRAMS or len(sizes) > 1 and sum(sizes.values()) > CONSTANTS
        ):
            del _programs[(oldest := next(iter(sizes)))], sizes[oldest]
    return program


def _compiled(f: Callable, jaxpr: ClosedJaxpr, out: Any, donate: tuple) -> Traced:
    flat = jaxpr_as_fun(jaxpr)

    def run(*args: Any) -> Any:
        return jax.tree.unflatten(out, flat(*jax.tree.leaves(args)))

    run.__name__ = getattr(getattr(f, "func", f), "__name__", "run")  # for a profiler
    return Traced(jaxpr, jax.jit(run, donate_argnums=donate))


_held: dict[tuple[int, ...], tuple[Traces, list]] = {}


def traces_of(*functions: Callable) -> Traces:
    """Returns the traces of these objects, kept while they live and until `renew`: a value
    that they read and that changes in place is seen after the next `fit`."""
    key = tuple(map(id, functions))
    with _lock:
        if key in _held:
            _held[key] = _held.pop(key)  # used last
        else:
            gone = lambda _: _held.pop(key, None)  # noqa: E731
            _held[key] = Traces(), [_reference(f, gone) for f in functions]
            for oldest in list(_held)[:-HELD]:
                _held.pop(oldest, None)
        return _held[key][0]


def _reference(value: Any, gone: Callable) -> Any:
    try:
        return weakref.ref(value, gone)
    except TypeError:  # an object with slots is held
        return value


def renew(*functions: Callable) -> None:
    """Forgets the traces of what has one of these objects among its functions."""
    changed = set(map(id, functions))
    with _lock:
        # A list: whenever Python collects garbage, the entries of what died are dropped.
        for key in list(_held):
            if changed & set(key):
                _held.pop(key, None)


def forget() -> None:
    """Drops all programs that are kept here."""
    with _lock:
        _programs.clear()
        _held.clear()

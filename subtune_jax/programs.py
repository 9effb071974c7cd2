"""Compiled programs: traced anew where code may have changed, shared where they are equal.

Python code cannot be described, so a program is what was traced. A call of `fit` traces
its functions once, under a context that no inner cache of JAX has met, and looks its
programs up by what they compute (`canonical`).
"""

import weakref
from collections.abc import Callable, Hashable
from itertools import count
from operator import attrgetter
from threading import RLock
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from subtune_jax import tree
from subtune_jax.canonical import digest, of_libraries

PROGRAMS, CONSTANTS = 128, 2**30  # what is kept: programs, and bytes of their constants
HELD = 128  # sets of functions whose traces are kept while they live
# Another value of a setting may make another trace of the same function.
_config = attrgetter(*sorted(n for n in jax.config.values if hasattr(jax.config, n)))
# JAX's own caches (an inner `jit`, the body of a scan, a checkpoint) are keyed by function
# objects and by this context: under another value they trace again.
_context, _values = jax.make_user_context(), count(1)
_lock = RLock()


class Traced(NamedTuple):
    """A function at one set of shapes: its jaxpr, and the jitted function that runs it."""

    jaxpr: ClosedJaxpr
    run: Any


class Traces:
    """Programs that are traced together, each once for all shapes and types of one kind."""

    def __init__(self) -> None:
        self._value = next(_values)
        self._kept: dict[Hashable, tuple] = {}

    def once(self, key: Any, code: Any, make: Callable, *shapes: Hashable) -> Any:
        """Returns what make() gave when this key was first asked for at these shapes. The
        code that it traces is traced anew, unless it is all of libraries. Functions in the
        key are the objects that they are."""
        place = by_object(key), shapes, _config(jax.config)
        if place not in self._kept:
            # Half the time of a trace goes to functions of jnp that were traced before.
            with _context(0 if of_libraries(code) else self._value):
                self._kept[place] = make(), key  # what has an id there lives
        return self._kept[place][0]

    def traced(self, key: Any, f: Callable, *args: Any, donate: tuple = ()) -> Traced:
        """Returns f at the shapes of args (`jax.ShapeDtypeStruct` suffices). key: what f is
        among the functions traced here. donate: the arguments whose buffers it takes."""
        shapes = donate, *tree.shapes(args)
        return self.once(key, f, lambda: _shared(f, args, donate), *shapes)

    def run(self, key: Any, f: Callable, *args: Any, donate: tuple = ()) -> Any:
        """Returns f(*args) by its compiled program."""
        return self.traced(key, f, *args, donate=donate).run(*args)

    def clear(self) -> None:
        """Forgets all that was traced: from now on code counts as it is then."""
        self._kept.clear()
        self._value = next(_values)


def by_object(value: Any) -> Hashable:
    """Returns a key of nested tuples in which functions are the objects that they are,
    whatever their classes say of equality."""
    if isinstance(value, tuple):
        return tuple(map(by_object, value))
    return ("object", id(value)) if callable(value) else value


_programs: dict[Hashable, Traced] = {}  # the one used last is the last


def _shared(f: Callable, args: tuple, donate: tuple) -> Traced:
    """Returns f traced at args, as the program of an equal one if there is one."""
    traced = jax.jit(lambda *args: f(*args)).trace(*args)
    out = jax.tree.structure(traced.out_info)
    layout: list = [donate, jax.tree.structure(args), out, _config(jax.config)]
    # What no text can stand for lives as long as the program that holds it.
    key = digest(traced.jaxpr, lambda one: f"object {id(one)}", layout), *layout
    with _lock:
        if key not in _programs:
            run = jax.jit(_function(f, traced.jaxpr, out), donate_argnums=donate)
            _programs[key] = Traced(traced.jaxpr, run)
        program = _programs[key] = _programs.pop(key)
        sizes = {k: tree.nbytes(p.jaxpr.consts) for k, p in _programs.items()}
        for oldest in list(sizes)[:-1]:
            if len(_programs) > PROGRAMS or sum(sizes.values()) > CONSTANTS:
                del _programs[oldest], sizes[oldest]
    return program


def _function(f: Callable, jaxpr: ClosedJaxpr, out: Any) -> Callable:
    flat = jaxpr_as_fun(jaxpr)

    def run(*args: Any) -> Any:
        return jax.tree.unflatten(out, flat(*jax.tree.leaves(args)))

    run.__name__ = getattr(getattr(f, "func", f), "__name__", "run")  # for a profiler
    return run


_held: dict[tuple[int, ...], tuple[Traces, list, bool]] = {}


def traces_of(*functions: Callable, lasting: bool = False) -> Traces:
    """Returns the traces of these objects, kept while they live and until `renew`: a value
    that they read and that changes in place is seen after the next `fit`. lasting: `renew`
    leaves them, which only check (shapes); those of libraries' code too."""

    def gone(_: Any) -> None:
        _held.pop(key, None)

    key = (lasting, *map(id, functions))
    with _lock:
        held = _held.pop(key, None)
        if held is None:
            stays = lasting or of_libraries(functions)
            held = Traces(), [_weak(f, gone) for f in functions], stays
        _held[key] = held  # the one used last is the last
        for oldest in list(_held)[:-HELD]:
            _held.pop(oldest, None)
        return held[0]


def _weak(value: Any, gone: Callable) -> Any:
    # An object with slots is held.
    return weakref.ref(value, gone) if type(value).__weakrefoffset__ else value


def renew(*functions: Callable) -> None:
    """Forgets the traces of what has one of these objects among its functions."""
    changed = set(map(id, functions))
    with _lock:
        # A list: whenever Python collects garbage, the entries of what died are dropped.
        for key in list(_held):
            *_, stays = _held.get(key, (True,))
            if not stays and changed & set(key):
                _held.pop(key, None)


def forget() -> None:
    """Drops all programs that are kept here."""
    with _lock:
        _programs.clear()
        _held.clear()

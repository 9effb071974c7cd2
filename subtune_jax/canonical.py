"""What values and traced programs are, in texts that are the same in every process.

The text of a jaxpr will not do: closed-over arrays that differ print alike, the names of
inner functions stand in it, and a callback is its name.
"""

import dataclasses
import enum
import gc
import hashlib
import inspect
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import Mesh, Sharding

from subtune_jax import tree

# Names, rules of differentiation that were not needed (JAX makes new `out_trees` of them in
# each trace), and what a remat was told to keep.
DROPPED = "name debug_info jvp_jaxpr_fun fwd_jaxpr_thunk bwd policy out_trees".split()
# How a program is laid out on devices. Another layout computes the same.
LAYOUT = """ctx_mesh mesh sharding out_sharding donated_invars inline in_shardings keep_unused
    out_shardings in_layouts out_layouts compiler_options_kvs""".split()
PLAIN = str | int | float | complex | bytes | None | PurePath | range | slice | np.dtype
PLAIN |= enum.Enum | jax.tree_util.PyTreeDef
LIBRARIES = tuple(sysconfig.get_paths()[k] for k in ("stdlib", "purelib", "platlib"))
LIBRARIES += (f"{Path(__file__).parent}{os.sep}", "<frozen")


def hashed(value: Any) -> str:
    """Returns the SHA-256 of a value's `repr`, as 64 hex digits."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def plain(value: Any, inner: Callable[[Any], str]) -> str | None:
    """Returns the text of an array, a plain value or a container, `None` for others: a
    user's class has methods. inner(item): the text of an item."""
    name, items = type(value).__name__, value
    if type(value) in (int, str, bool, type(None)):  # most are
        return f"{name} {value!r}"
    if isinstance(value, np.ndarray | np.generic | jax.Array) and value.dtype != object:
        return f"array{value.shape} {tree.fingerprint(value)}"
    if type(value) not in (tuple, list) and not of_library(type(value)):
        return None
    if isinstance(value, PLAIN) or hasattr(value, "itemsize"):  # of a dtype
        return f"{name} {value!r}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):  # in its order: a loop over it may compute with that
        items = (*value.items(), getattr(value, "default_factory", None))
    if isinstance(items, tuple | list):
        return f"{name}({', '.join(map(inner, items))})"
    if isinstance(value, set | frozenset):
        return f"{name}({', '.join(sorted(map(inner, value)))})"
    return None


def of_library(value: Any) -> bool:
    """Returns whether a function, class or module is of this library, of Python, or was
    installed: such code changes with its version alone."""
    name = str(getattr(value, "__module__", None) or getattr(value, "__name__", ""))
    homes = [sys.modules.get(one) for one in (name, name.partition(".")[0])]
    file = next(filter(None, (getattr(home, "__file__", None) for home in homes)), None)
    if inspect.isfunction(value):
        file = value.__code__.co_filename
    if file is None or file.startswith(LIBRARIES):
        return file is not None or name in sys.builtin_module_names
    # Of `pip install --target` and `--user` a list of files lies beside the package. Taken
    # for a user's, all of jax would be described.
    roots = [folder for folder in Path(file).parents if str(folder) in sys.path][:1]
    tops = [Path(file).relative_to(root).parts[0].removesuffix(".py") for root in roots]
    return any(list(roots[0].glob(f"{top}-*/RECORD")) for top in tops)


def of_libraries(value: Any) -> bool:
    """Returns whether all code that a value holds is of libraries, and no array in it and no
    argument that it was given can change: what was traced of it never becomes stale."""
    held, seen = [value], dict[int, Any]()
    while held:
        one = held.pop()
        # A jitted function holds the registry of all classes of trees, a user's among them.
        if id(one) in seen or isinstance(one, type(jax.tree_util.default_registry)):
            continue
        seen[id(one)] = one
        if isinstance(one, np.ndarray) and (
            one.flags.writeable or one.base is not None
        ):
            return False
        if isinstance(one, partial):
            given = *one.args, *one.keywords.values()
            if any(isinstance(item, dict | list | set | bytearray) for item in given):
                return False
        if isinstance(one, type | types.ModuleType | types.FunctionType):
            if not of_library(one):
                return False
            if isinstance(one, types.FunctionType):
                held += one.__closure__, one.__defaults__, one.__kwdefaults__, vars(one)
        else:
            held += gc.get_referents(one)
    return True


def digest(program: ClosedJaxpr, other: Callable[[Any], str], layout: list) -> str:
    """Returns a SHA-256 of a program, as 64 hex digits.

    In it are variables, numbered in their order, with dtypes, shapes and weak types;
    primitives with their parameters; and the bytes of literals and constants. other(value):
    the text of a parameter that is no plain value (a callback). layout: shardings, meshes
    and donations, which are left out, are added to it.
    """
    texts: dict[int, str] = {}  # of inner jaxprs: those of jnp's functions stand often

    def text(value: Any) -> str:
        if isinstance(value, Mesh | Sharding):
            layout.append(value)
            return "laid out"
        if not isinstance(value, ClosedJaxpr | Jaxpr):
            return plain(value, text) or other(value)
        if id(value) not in texts:
            texts[id(value)] = _text(value, text, layout)
        return texts[id(value)]

    return text(program)


_kind = lru_cache(4096)(str)  # of a type: half of a digest's time were these texts


def _text(whole: Any, text: Callable[[Any], str], layout: list) -> str:
    jaxpr, numbers = getattr(whole, "jaxpr", whole), dict[Any, int]()

    def atom(one: Any) -> tuple:
        if isinstance(one, Literal):
            # A scalar; of its bytes, as 0.0 is not -0.0.
            what: Any = np.asarray(one.val, getattr(one.aval, "dtype", None)).tobytes()
        elif one in numbers:  # its type is told
            return (numbers[one],)
        else:
            what = numbers[one] = len(numbers)
        return what, _kind(one.aval)

    def equation(eqn: Any) -> list:
        params = [(n, v) for n, v in sorted(eqn.params.items()) if n not in DROPPED]
        layout.extend(v for n, v in params if n in LAYOUT)
        own = [(n, text(v)) for n, v in params if n not in LAYOUT]
        given, gives = [atom(v) for v in eqn.invars], [atom(v) for v in eqn.outvars]
        return [eqn.primitive.name, own, given, gives]

    consts = [text(const) for const in getattr(whole, "consts", ())]
    takes = [atom(v) for v in (*jaxpr.constvars, *jaxpr.invars)]
    eqns = [equation(eqn) for eqn in jaxpr.eqns]
    return hashed((consts, takes, eqns, [atom(v) for v in jaxpr.outvars]))

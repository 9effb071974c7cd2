"""What a traced program computes, as a digest: the same for equal programs.

The text of a jaxpr will not do: closed-over arrays that differ print alike, the names of
inner functions stand in it, and a callback is its name.
"""

import dataclasses
import enum
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import Mesh, Sharding

# Names, rules of differentiation that were not needed, and what a remat was told to keep.
DROPPED = {"name", "debug_info", "jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "policy"}
DROPPED |= {"out_trees"}  # of rules; JAX makes a new function of it in each trace
# How a program is laid out on devices. Another layout computes the same.
LAYOUT = {"ctx_mesh", "mesh", "sharding", "out_sharding", "donated_invars", "inline"}
LAYOUT |= {"in_shardings", "out_shardings", "in_layouts", "out_layouts", "keep_unused"}
LAYOUT |= {"compiler_options_kvs"}


def digest(
    program: ClosedJaxpr, opaque: Callable[[Any], str], *, layout: bool = True
) -> str:
    """Returns a SHA-256 of a program, as 64 hex digits.

    In it are variables, numbered in their order, with dtypes, shapes and weak types;
    primitives with their parameters; and the bytes of literals and constants.
    opaque(value) says what a parameter of an unknown kind is (a callback), and if `layout`,
    what the shardings, meshes and donations are; else they are left out.
    """
    inner: dict[int, str] = {}  # jaxprs that stand in many places (of jnp's functions)

    def said(value: Any) -> str:
        kind = type(value)
        if isinstance(value, ClosedJaxpr | Jaxpr):
            if id(value) not in inner:
                inner[id(value)] = of_jaxpr(value)
            return inner[id(value)]
        if value is None or isinstance(value, bool | str | bytes):
            return repr(value)
        if isinstance(value, enum.Enum | jax.tree_util.PyTreeDef):
            return str(value)
        if isinstance(value, int | float | complex):
            return f"{'int' if isinstance(value, int) else 'float'} {value}"
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return array(value)
        if hasattr(value, "itemsize"):
            return f"dtype {value}"
        if isinstance(value, Mapping | set | frozenset):
            items = value.items() if isinstance(value, Mapping) else value
            return f"{{{', '.join(sorted(map(said, items)))}}}"
        if isinstance(value, tuple | list):
            return f"({', '.join(map(said, value))})"
        if isinstance(value, Mesh | Sharding):
            return opaque(value) if layout else "laid out"
        if dataclasses.is_dataclass(value) and kind.__module__.startswith("jax"):
            own = [getattr(value, field.name) for field in dataclasses.fields(value)]
            return f"{kind.__name__}{said(own)}"
        return opaque(value)

    def of_jaxpr(whole: ClosedJaxpr | Jaxpr) -> str:
        jaxpr: Any = getattr(whole, "jaxpr", whole)
        numbers, total = dict[Any, int](), hashlib.sha256()

        def atom(one: Any) -> str:
            if isinstance(one, Literal):
                name = array(np.asarray(one.val, getattr(one.aval, "dtype", None)))
            else:
                name = str(numbers.setdefault(one, len(numbers)))
            return f"{name}:{one.aval} {getattr(one.aval, 'weak_type', False)}"

        def write(kind: str, *parts: str) -> None:
            total.update("\n".join([kind, *parts, ""]).encode())

        write("holds", *map(array, getattr(whole, "consts", ())))
        write("takes", *map(atom, (*jaxpr.constvars, *jaxpr.invars)))
        for eqn in jaxpr.eqns:
            params = sorted(eqn.params.items())
            own = [(n, said(v)) for n, v in params if n not in DROPPED | LAYOUT]
            laid = [(n, opaque(v)) for n, v in params if layout and n in LAYOUT]
            write(eqn.primitive.name, *(f"{n} {text}" for n, text in own + laid))
            write("of", *map(atom, eqn.invars))
            write("is", *map(atom, eqn.outvars))
        write("gives", *map(atom, jaxpr.outvars))
        return total.hexdigest()

    return of_jaxpr(program)


def array(value: Any) -> str:
    """Returns the dtype, shape and SHA-256 of an array; of keys, that of their data."""
    dtype = value.dtype
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    plain = np.ascontiguousarray(value)
    return f"{dtype}{plain.shape} {hashlib.sha256(plain.tobytes()).hexdigest()}"

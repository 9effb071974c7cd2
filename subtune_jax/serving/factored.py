"""Kernels that stay W + A B: a product with one is computed without adding them up.

A stage is any function; what it does with a kernel is read from its jaxpr. Where all of it
is to contract the kernel's first axis, x (W + A B) becomes x W + (x A) B: W is shared by
all rows of a batch, and A and B can be each row's own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal

from subtune_jax import tree

CALLS = ("jit", "pjit", "closed_call")  # primitives that hold a jaxpr of their own


class NotFactored(Exception):
    """A kernel is used in another way than in a product."""


class Kernel(NamedTuple):
    """W + A B, with A [rows, rank] and B [rank, outputs]."""

    w: Any
    a: Any
    b: Any


def factored(
    f: Callable, factors: Mapping[str, tuple[Any, Any]], params: Any, *rest: Any
) -> Any:
    """Returns f(params, *rest), where the kernels at the paths of `factors` are W + A B.

    Raises `NotFactored` where f does anything but contract such a kernel's rows.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(params, *rest)
    paths = list(tree.flatten(params))
    leaves = jax.tree.leaves((params, *rest))
    values = [
        Kernel(leaf, *factors[path]) if path in factors else leaf
        for path, leaf in zip(paths, leaves, strict=False)
    ]
    values += leaves[len(paths) :]
    outputs = _walk(closed.jaxpr, closed.consts, values)
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


def _walk(jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    held = dict(zip(jaxpr.constvars, consts, strict=True))
    held |= dict(zip(jaxpr.invars, values, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else held[atom]

    for eqn in jaxpr.eqns:
        given = [read(atom) for atom in eqn.invars]
        kernels = any(isinstance(x, Kernel) for x in given)
        outputs = (_with_kernels if kernels else _plain)(eqn, given)
        held |= dict(zip(eqn.outvars, outputs, strict=True))
    results = [read(atom) for atom in jaxpr.outvars]
    if any(isinstance(x, Kernel) for x in results):
        raise NotFactored("a kernel is an output")
    return results


def _plain(eqn: Any, given: list[Any]) -> list[Any]:
    outputs = eqn.primitive.bind(*given, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _with_kernels(eqn: Any, given: list[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in CALLS:
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        return _walk(inner.jaxpr, inner.consts, given)
    if name == "convert_element_type":
        (kernel,) = given
        return [Kernel(*(x.astype(params["new_dtype"]) for x in kernel))]
    if name == "dot_general":
        return [_product(eqn, *given)]
    raise NotFactored(f"a kernel goes into {name}")


def _product(eqn: Any, x: Any, kernel: Any) -> Any:
    (left, right), batch = eqn.params["dimension_numbers"]
    rows = tuple(right) == (0,) and len(left) == 1 and not any(batch)
    if isinstance(x, Kernel) or not rows or kernel.w.ndim != 2:
        raise NotFactored("a kernel is contracted over other axes than its rows")
    # The contracted axis of x goes, and the outputs of W come last.
    low = jax.lax.dot_general(x, kernel.a, eqn.params["dimension_numbers"])
    change = low @ kernel.b
    (y,) = [eqn.primitive.bind(x, kernel.w, **eqn.params)]
    return y + change.astype(y.dtype)

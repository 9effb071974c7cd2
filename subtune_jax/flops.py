"""Contraction FLOPs of a function, counted from the shapes in its jaxpr.

A contraction (`dot_general`, convolution) costs F = 2 x multiply-adds. Positions in
padding or between dilated elements are not multiply-adds, unless `padding` asks for them:
the tables of papers count them. A scan's body counts as often as it runs.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Var


def contraction_flops(f: Callable, *args: Any) -> int:
    """Returns the contraction FLOPs of f(*args); shapes and dtypes suffice as `args`."""
    return trained_flops(f, [False] * len(args), *args)


def depends_on(f: Callable, marked: Sequence[Any], *args: Any) -> bool:
    """Returns whether any output of f(*args) is computed from a marked argument.

    `marked` is as `depends` of `trained_flops`.
    """
    return any(_count(jax.make_jaxpr(f)(*args).jaxpr, _flags(marked, args))[1])


def trained_flops(
    f: Callable, depends: Sequence[Any], *args: Any, padding: bool = False
) -> int:
    """Returns the least FLOPs of f(*args) with reverse-mode gradients.

    `depends` has, for each argument, True or a tree of booleans: whether its leaves
    depend on a trainable one. A contraction costs F forward, and F once more for each
    operand that depends on a trainable leaf, since only those need a cotangent.
    """
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    return _count(jaxpr, _flags(depends, args), padding)[0]


def _flags(depends: Sequence[Any], args: Sequence[Any]) -> list[bool]:
    """Returns a flag for every leaf of the arguments."""
    pairs = zip(depends, args, strict=True)
    spread = (
        [d] * len(jax.tree.leaves(arg)) if isinstance(d, bool) else d
        for d, arg in pairs
    )
    return [flag for flags in spread for flag in jax.tree.leaves(flags)]


def _count(
    jaxpr: Jaxpr, flags: Sequence[bool], padding: bool = False
) -> tuple[int, list[bool]]:
    """Returns the FLOPs of a jaxpr and which of its outputs depend on a trainable leaf."""
    depends = dict(zip(jaxpr.invars, flags, strict=True))

    def of(atom) -> bool:
        return isinstance(atom, Var) and depends.get(atom, False)

    total = 0
    for eqn in jaxpr.eqns:
        inputs = [of(atom) for atom in eqn.invars]
        flops, outputs = _equation(eqn, inputs, padding)
        total += flops
        depends.update(zip(eqn.outvars, outputs, strict=True))
    return total, [of(atom) for atom in jaxpr.outvars]


def _equation(eqn, inputs: list[bool], padding: bool) -> tuple[int, list[bool]]:
    if eqn.primitive.name in _MULTIPLY_ADDS:
        flops = 2 * _MULTIPLY_ADDS[eqn.primitive.name](eqn, padding)
        return flops * (1 + sum(inputs[:2])), [any(inputs)] * len(eqn.outvars)
    if eqn.primitive.name == "scan":
        return _scan(eqn, inputs, padding)
    # Calls (jit, remat, custom_jvp) hold one inner jaxpr with the equation's own inputs; a
    # cond holds one for each branch, and its first input says which. A primitive with an
    # inner jaxpr of other inputs (a reduction's combiner) does no contraction.
    inner = [j for value in eqn.params.values() for j in _jaxprs(value)]
    if eqn.primitive.name == "cond":  # the dearest branch
        inputs = inputs[1:]
    elif len(inner) != 1 or len(inner[0].invars) != len(inputs):  # no plain call
        return 0, [any(inputs)] * len(eqn.outvars)
    counts = [_count(j, inputs, padding) for j in inner]
    outputs = zip(*(found for _, found in counts), strict=True)
    return max(flops for flops, _ in counts), [any(found) for found in outputs]


def _scan(eqn, inputs: list[bool], padding: bool) -> tuple[int, list[bool]]:
    body, (consts, carry) = eqn.params["jaxpr"], _scan_sizes(eqn.params)
    while True:  # a carry that depends on a trainable leaf once does so ever after
        flops, outputs = _count(body.jaxpr, inputs, padding)
        state = [a or b for a, b in zip(inputs[consts:], outputs[:carry], strict=False)]
        if state == inputs[consts : consts + carry]:
            return flops * eqn.params["length"], outputs
        inputs = [*inputs[:consts], *state, *inputs[consts + carry :]]


def _scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """Returns how many inputs of a scan are constants, and how many are carried."""
    if "num_consts" in params:  # until jax 0.10
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return []


def _dot(eqn, padding: bool) -> int:
    del padding  # it has none
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return prod(eqn.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)


def _convolution(eqn, padding: bool) -> int:
    p, (lhs, rhs) = eqn.params, (v.aval.shape for v in eqn.invars[:2])
    numbers, out = p["dimension_numbers"], eqn.outvars[0].aval.shape
    spatial = zip(
        numbers.lhs_spec[2:],
        numbers.rhs_spec[2:],
        numbers.out_spec[2:],
        p["window_strides"],
        p["padding"],
        p["lhs_dilation"],
        p["rhs_dilation"],
        strict=True,
    )
    positions = prod(
        out[o] * rhs[k]
        if padding
        else _pairs(lhs[i], rhs[k], out[o], stride, pads[0], hole, spread)
        for i, k, o, stride, pads, hole, spread in spatial
    )
    batch = lhs[numbers.lhs_spec[0]] // p["batch_group_count"]
    return batch * positions * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]]


def _pairs(
    size: int, kernel: int, out: int, stride: int, before: int, hole: int, spread: int
) -> int:
    """Returns how many (output, kernel) pairs of one axis meet a real input element."""
    places = (
        o * stride + k * spread - before for o in range(out) for k in range(kernel)
    )
    return sum(0 <= at <= (size - 1) * hole and at % hole == 0 for at in places)


_MULTIPLY_ADDS = {"dot_general": _dot, "conv_general_dilated": _convolution}

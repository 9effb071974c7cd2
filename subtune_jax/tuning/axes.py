"""Which axes of a kernel are its outputs."""

import re
from collections.abc import Mapping
from typing import Any

from subtune_jax.errors import InputError, require_whole

NO_KERNELS = (
    "bias",
    "scale",
)  # leaves of one number for each output, whatever their axes


def output_axes(path: str, leaf: Any, axes: Mapping[str, int]) -> int:
    """Returns how many of a kernel's last axes are its outputs; 0 for what is no kernel.

    A leaf of two axes has one, and so has a kernel of a convolution over two axes or more
    [height, width, inputs, outputs]. Of three axes [inputs, heads, width] has two,
    [heads, width, outputs] and [width, inputs, outputs] have one, and the shape does not
    say which it is: axes, `{pattern of paths: number of outputs' axes}`, has to. Raises
    `InputError` where it does not, and for a number that is not from 1 to the axes less one.
    """
    if path.rpartition("/")[2] in NO_KERNELS or leaf.ndim < 2:
        return 0
    for pattern, count in axes.items():
        if re.fullmatch(pattern, path):
            require_whole(**{f"axes of {pattern!r}": count})
            if count >= leaf.ndim:
                raise InputError(
                    f"{path!r} has {leaf.ndim} axes, and {count} of them are given as its "
                    "outputs: one at least is of its inputs"
                )
            return count
    if leaf.ndim == 3 and leaf.shape[0] > 1:
        raise InputError(
            f"{path!r} has shape {list(leaf.shape)}, and whether one or two of its axes are "
            f"outputs is not known: give axes={{{path!r}: 1}} or 2 "
            "(models.output_axes(module) has those of an nnx module)"
        )
    return 1

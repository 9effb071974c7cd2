"""What a network can take, checked once when data are taken: not in a step, and not late.

A compiler may drop a NaN, an index past a table reads its last row, and pixels from 0 to
1 are nearly black to a network that divides by 255: all of them give numbers that look
whole.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import Ragged
from subtune_jax.errors import InputError
from subtune_jax.network import Network, Pixels, Tokens


def require_inputs(network: Network, data: Dataset) -> None:
    """Raises `InputError` for data that the network would take and misread.

    Inputs and targets must be as many, and inputs finite; what a network with a `source`
    reads must be pixels from 0 to 255 of its channels, or ids inside its tables. Images
    that are read when they are taken are not read for that.
    """
    require_pairs(data)
    require_finite(data)
    reads = None if network.source is None else network.source.reads
    if isinstance(reads, Pixels):
        _require_pixels(reads, data.x)
    if isinstance(reads, Tokens):
        _require_tokens(reads, data.x)


def require_numbers(targets: Any) -> None:
    """Raises `InputError` for targets that are not numbers, such as the names of classes."""
    values = np.asarray(targets)
    if values.dtype.kind in "OUS":
        first = f": the first is {str(values.ravel()[0])!r}" if values.size else ""
        raise InputError(f"targets must be numbers (classes from 0 up){first}")


def require_pairs(data: Dataset) -> None:
    """Raises `InputError` unless every input array has a row for every target."""
    for leaf in jax.tree.leaves(data.x):
        rows = len(leaf) if hasattr(leaf, "__len__") else len(data.y)
        if rows != len(data.y):
            raise InputError(f"there are {rows} inputs and {len(data.y)} targets")


def require_finite(data: Dataset) -> None:
    """Raises `InputError` for an input in memory that is NaN or infinite."""
    for path, values in _in_memory(data.x).items():
        inexact = jnp.issubdtype(values.dtype, jnp.inexact)  # bfloat16 too
        if inexact and not np.isfinite(values).all():
            name = f"input {path!r}" if path else "the inputs"
            raise InputError(f"{name} must be finite numbers: some are NaN or infinite")


def _require_pixels(reads: Pixels, x: Any) -> None:
    for values in _in_memory(x).values():
        if values.ndim != 4 or values.shape[-1] != reads.channels:
            raise InputError(
                f"the inputs have shape {list(values.shape)}: the network takes images "
                f"[examples, height, width, {reads.channels}]"
            )
        low, high = np.min(values, initial=0), np.max(values, initial=0)
        scaled = values.dtype.kind == "f" and 0 < high <= 1
        if scaled or low < 0 or high > 255:
            raise InputError(
                f"the inputs are from {low:g} to {high:g}: the network takes pixels from "
                "0 to 255 and scales them itself"
            )


def _require_tokens(reads: Tokens, x: Any) -> None:
    rows = {"input_ids": reads.vocab_size, "token_type_ids": reads.type_vocab_size}
    if not isinstance(x, dict) or "input_ids" not in x:
        raise InputError("the network takes texts: a dict with input_ids, see `texts`")
    for name, values in _in_memory(x).items():
        low, high = np.min(values, initial=0), np.max(values, initial=0)
        if name in rows and (low < 0 or high >= rows[name]):
            raise InputError(
                f"{name} are {low} to {high}: the network's table has {rows[name]} rows, "
                f"so 0 to {rows[name] - 1} are expected (is this its own tokenizer?)"
            )


def _in_memory(x: Any) -> dict[str, np.ndarray]:
    leaves = {
        path: leaf.values if isinstance(leaf, Ragged) else leaf
        for path, leaf in tree.flatten(x).items()
    }
    arrays = {p: v for p, v in leaves.items() if isinstance(v, np.ndarray | jax.Array)}
    return {path: np.asarray(values) for path, values in arrays.items()}

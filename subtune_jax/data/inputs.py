"""What a network can take, checked once when data are taken: not in a step, and not late.

A compiler may drop a NaN, an index past a table reads its last row, and pixels from 0 to
1 are nearly black to a network that divides by 255: all of them give numbers that look
whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import Ragged
from subtune_jax.data.classes import require_matched
from subtune_jax.dry_run import output_shapes
from subtune_jax.errors import InputError, require_type
from subtune_jax.head import features
from subtune_jax.losses import is_of_classes, require_classes
from subtune_jax.network import Network, Pixels, Tokens, require_network

ENCODE = "data.encode makes token ids of texts"


def require_data(
    network: Network,
    data: Dataset,
    loss: Callable | None = None,
) -> None:
    """Raises `InputError` for data that the network cannot take, or would misread.

    Targets must be an array of numbers, one row for each row of the inputs, and under
    cross-entropy classes of the network's outputs; where both have names, the
    same ones in the same order. Inputs: see `require_inputs`.
    """
    require_network(network)
    require_type(Dataset, data=data)
    require_targets(data.y)
    rows, outputs = _checked(network, data.x)
    require_pairs(rows, data.y)
    require_matched(data, network)
    if loss is not None and is_of_classes(loss):
        if network.stages[-1].apply is features:
            raise InputError(
                "the network gives features and has no head: replace_head(network, "
                "num_classes, key) gives it one"
            )
        require_classes(np.asarray(data.y), outputs)


def require_inputs(network: Network, x: Any) -> int:
    """Returns the number of inputs; raises `InputError` for those that cannot be.

    Inputs are arrays with as many rows, at least one, and finite; what a network with a
    `source` reads must be pixels from 0 to 255 of its channels, or ids inside its tables;
    and every stage must take the shapes and types it is given. Images that are read when
    they are taken are not read for that, but for the first.
    """
    return _checked(network, x)[0]


def _checked(network: Network, x: Any) -> tuple[int, Any]:
    """Returns the number of inputs, and the shape of the outputs for one of them."""
    require_network(network)
    rows = require_rows(x)
    require_finite(x)
    reads = None if network.source is None else network.source.reads
    if isinstance(reads, Pixels):
        _require_pixels(reads, x)
    if isinstance(reads, Tokens):
        _require_tokens(reads, x)
    outputs = output_shapes(network, _first(x))
    if not hasattr(outputs, "shape"):
        raise InputError(
            f"the network returns a {type(outputs).__name__}: expected one array, with a "
            "row for each example"
        )
    return rows, outputs


def require_pairs(rows: int, targets: Any) -> None:
    """Raises `InputError` unless there are as many targets as rows of inputs."""
    if rows != len(targets):
        raise InputError(f"there are {rows} inputs and {len(targets)} targets")


def require_targets(targets: Any) -> None:
    """Raises `InputError` for targets that are not an array of numbers, or none at all."""
    if not isinstance(targets, np.ndarray | jax.Array):
        raise InputError(
            f"targets must be an array, got a {type(targets).__name__}: "
            "numpy.asarray makes one"
        )
    if targets.dtype.kind in "OUS":
        first = f": the first is {str(targets.ravel()[0])!r}" if targets.size else ""
        raise InputError(f"targets must be numbers (classes from 0 up){first}")
    if jnp.issubdtype(targets.dtype, jnp.inexact) and not np.isfinite(targets).all():
        raise InputError("targets must be finite numbers: some are NaN or infinite")
    if not targets.ndim or not len(targets):
        raise InputError(
            f"there are no examples: the targets have shape {list(targets.shape)}"
        )


def require_rows(x: Any) -> int:
    """Returns the number of rows that all arrays of the inputs have.

    Raises `InputError` for inputs that are not arrays of numbers, differ in their number
    of rows, or have none.
    """
    if isinstance(x, list):
        raise InputError(
            "inputs must be an array with the example first, got a list: numpy.asarray "
            "makes one"
        )
    if x is None:
        raise InputError("expected inputs, got None")
    rows = {}
    for path, leaf in tree.flatten(x).items():
        name = f"input {path!r}" if path else "inputs"
        if isinstance(leaf, str):
            raise InputError(f"{name} is a text: {ENCODE}")
        if not isinstance(leaf, np.ndarray | jax.Array) and not hasattr(leaf, "only"):
            raise InputError(
                f"{name} must be an array with the example first, got a "
                f"{type(leaf).__name__}: numpy.asarray makes one"
            )
        if getattr(leaf, "dtype", np.dtype(int)).kind in "OUS":
            raise InputError(f"{name} must be numbers, got {leaf.dtype} ({ENCODE})")
        rows[path] = len(leaf) if getattr(leaf, "ndim", 1) else 0
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{path} {count}" for path, count in rows.items())
        raise InputError(f"the inputs have different numbers of rows: {counts}")
    if not any(rows.values()):
        raise InputError("there are no examples: the inputs are empty")
    return next(iter(rows.values()))


def _first(x: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[np.arange(1)], x)


def require_finite(x: Any) -> None:
    """Raises `InputError` for an input in memory that is NaN or infinite."""
    for path, values in _in_memory(x).items():
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
        raise InputError(f"the network takes texts as a dict with input_ids: {ENCODE}")
    if "attention_mask" not in x:
        raise InputError(
            "the inputs have no attention_mask, 1 at tokens and 0 at padding: the inputs "
            f"are {', '.join(x)} ({ENCODE})"
        )
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

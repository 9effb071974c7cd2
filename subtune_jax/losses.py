"""Losses per example, and their mean over a batch: shapes are checked when traced.

A loss of [batch, 1], or weights of that shape, would broadcast to a mean that is wrong
by the size of the batch, in silence.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from subtune_jax.errors import InputError


def require_rows(batch: Any) -> None:
    """Raises `InputError` unless a batch has a target and a weight for every example."""
    if getattr(batch.y, "dtype", np.dtype(object)).kind in "OUS":
        raise InputError("the targets of a batch must be numbers (classes from 0 up)")
    rows, weights = jnp.shape(batch.y)[0], jnp.shape(batch.weight)
    inputs = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch.x)}
    if inputs != {rows}:
        raise InputError(
            f"a batch has {', '.join(map(str, sorted(inputs)))} inputs and {rows} "
            "targets: expected as many"
        )
    if weights != (rows,):
        raise InputError(
            f"the weights of a batch have shape {list(weights)}: expected one number per "
            f"example, [{rows}]"
        )


def require_classes(labels: Any, outputs: Any) -> None:
    """Raises `InputError` unless labels are classes of the outputs [..., classes].

    They are whole numbers from 0 up, one for each row of outputs. Numbers are looked at
    where labels are in NumPy; of others, shape and type.
    """
    rows, classes = tuple(outputs.shape[:-1]), outputs.shape[-1]
    shape, dtype = tuple(jnp.shape(labels)), labels.dtype
    if len(shape) != len(rows):
        one_hot = shape[:-1] == rows or (len(shape) == 2 and len(rows) == 1)
        hint = ": of one-hot rows, take labels.argmax(-1)" if one_hot else ""
        raise InputError(
            f"labels have shape {list(shape)} for outputs {list(outputs.shape)}: "
            f"expected one class per example{hint}"
        )
    if not jnp.issubdtype(dtype, jnp.integer):
        raise InputError(
            f"labels are {dtype}: expected an integer type, as labels.astype(int) has it"
        )
    if not isinstance(labels, np.ndarray):
        return
    low, high = np.min(labels, initial=0), np.max(labels, initial=0)
    if low < 0 or high >= classes:
        raise InputError(
            f"labels are {np.min(labels)} to {high}: the network has {classes} outputs, "
            f"so labels 0 to {classes - 1} are expected (see replace_head)"
        )


def per_example(loss: Callable, outputs: Any, targets: Any) -> jax.Array:
    """Returns loss(outputs, targets), float[batch].

    Raises `InputError` where outputs and targets differ in number, and for a loss of
    another shape.
    """
    rows = _rows(targets)
    if _rows(outputs) != rows:
        raise InputError(
            f"the network made {_rows(outputs)} outputs for {rows} targets: expected one "
            "for each"
        )
    values = loss(outputs, targets)
    if jnp.shape(values) != (rows,):
        name = getattr(loss, "__name__", "the loss")
        shapes = [list(jnp.shape(jax.tree.leaves(v)[0])) for v in (outputs, targets)]
        raise InputError(
            f"{name} returned shape {list(jnp.shape(values))} for outputs {shapes[0]} "
            f"and targets {shapes[1]}: expected one number per example, [{rows}]"
        )
    return values


def weighted_mean(values: jax.Array, weight: Any) -> jax.Array:
    """Returns sum(weight * values) / sum(weight), both float[batch]. Values of weight 0 do
    not count, whatever they are."""
    counted = jnp.where(weight > 0, values, 0)
    return jnp.sum(counted * weight) / jnp.sum(weight)


def _rows(values: Any) -> int:
    return jax.tree.leaves(values)[0].shape[0]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns -log softmax(logits)[label], float[batch]; labels are int[batch].

    Raises `InputError` for labels of another shape or type, when traced.
    """
    require_classes(labels, logits)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def label_smoothing(amount: float) -> Callable:
    """Returns the loss (1 - amount) * cross-entropy + amount * mean over classes of
    -log softmax(logits), float[batch] (Szegedy et al. 2016, recalled).

    Raises `InputError` for an amount that is not from 0 up to 1.
    """
    if not 0 <= amount < 1:
        raise InputError(f"amount must be from 0 up to 1, got {amount!r}")
    return partial(_smoothed, amount)


def _smoothed(amount: float, logits: jax.Array, labels: jax.Array) -> jax.Array:
    uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1 - amount) * cross_entropy(logits, labels) + amount * uniform


def is_of_classes(loss: Callable) -> bool:
    """Returns whether targets of a loss are classes of the outputs."""
    return loss is cross_entropy or getattr(loss, "func", None) is _smoothed


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean over outputs of (output - target)^2, float[batch]."""
    if outputs.shape != targets.shape:
        raise InputError(
            f"outputs {outputs.shape} and targets {targets.shape} differ in shape"
        )
    return ((outputs - targets) ** 2).reshape(len(outputs), -1).mean(axis=1)


def span_cross_entropy(logits: jax.Array, spans: jax.Array) -> jax.Array:
    """Returns -(log softmax(logits_0)[start] + log softmax(logits_1)[end]) / 2 over the
    tokens, float[batch]; logits are [batch, tokens, 2], spans int[batch, 2] (both ends
    are in it)."""
    return cross_entropy(jnp.moveaxis(logits, 1, 2), spans).mean(axis=1)


def entropy(logits: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Returns H(softmax(logits)) per example, float[batch], in nats.

    The loss of TENT (Wang et al. 2021).
    """
    del targets
    return _entropy(jax.nn.log_softmax(logits))


def marginal_entropy(logits: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Returns H(mean over the batch of softmax(logits)) at every row, float[batch].

    The loss of MEMO over the copies of one image (Zhang, Levine and Finn 2022): a mean
    of probabilities, taken in log space. One batch is one image; no padding rows.
    """
    del targets
    mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(logits))
    return jnp.full(len(logits), _entropy(mean))


def _entropy(log_p: jax.Array) -> jax.Array:
    """Returns -sum p log p over the last axis; finite where a p is 0."""
    log_p = jnp.maximum(log_p, jnp.finfo(log_p.dtype).min)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

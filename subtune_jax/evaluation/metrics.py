"""Losses per example (jitted) and metrics over a whole set (NumPy)."""

from collections.abc import Callable

import jax
import numpy as np
import optax

Metric = Callable[[np.ndarray, np.ndarray], float]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns -log softmax(logits)[label], float[batch]; labels are int[batch]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean over outputs of (output - target)^2, float[batch]."""
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs {outputs.shape} and targets {targets.shape} differ in shape"
        )
    return ((outputs - targets) ** 2).reshape(len(outputs), -1).mean(axis=1)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of rows whose largest logit is the label, in percent."""
    return 100 * float(np.mean(np.argmax(logits, axis=-1) == labels))


def worst_group_accuracy(groups: np.ndarray) -> Metric:
    """Returns the metric min over groups of accuracy, in percent; `groups` is int[rows]."""

    def metric(logits: np.ndarray, labels: np.ndarray) -> float:
        return min(
            accuracy(logits[groups == g], labels[groups == g])
            for g in np.unique(groups)
        )

    return metric

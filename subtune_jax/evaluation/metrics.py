"""Losses per example (jitted) and metrics over a whole set (NumPy)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
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


def span_cross_entropy(logits: jax.Array, spans: jax.Array) -> jax.Array:
    """Returns -(log softmax(logits_0)[start] + log softmax(logits_1)[end]) / 2 over the
    tokens, float[batch]; logits are [batch, tokens, 2], spans int[batch, 2] (both ends
    are in it)."""
    return cross_entropy(jnp.moveaxis(logits, 1, 2), spans).mean(axis=1)


def span_accuracy(logits: np.ndarray, spans: np.ndarray) -> float:
    """Returns the share of texts whose start and end both have the largest logit, in
    percent."""
    return 100 * float(np.mean((np.argmax(logits, axis=1) == spans).all(axis=1)))


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


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the F1 score of class 1, in percent (0 where nothing is or is called 1)."""
    from sklearn.metrics import f1_score

    return 100 * float(f1_score(labels, np.argmax(logits, axis=-1), zero_division=0))


def matthews(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns Matthews' correlation of classes, in percent (0 where one is constant)."""
    from sklearn.metrics import matthews_corrcoef

    return 100 * float(matthews_corrcoef(labels, np.argmax(logits, axis=-1)))


def pearson(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Returns Pearson's correlation of numbers, in percent (0 where one is constant)."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, outputs, targets)


def spearman(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Returns Spearman's rank correlation of numbers, in percent (0 where one is
    constant)."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, outputs, targets)


def _correlation(f: Callable, outputs: np.ndarray, targets: np.ndarray) -> float:
    one, other = np.ravel(outputs), np.ravel(targets)
    constant = np.ptp(one) == 0 or np.ptp(other) == 0
    return 0.0 if constant else 100 * float(f(one, other)[0])


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}

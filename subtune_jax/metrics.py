"""Losses per example (jitted) and metrics over a whole set (NumPy).

A metric raises `InputError` for targets that are not those of its outputs in shape, and is
NaN where an output is: a network without numbers has no score.
"""

from collections.abc import Callable

import numpy as np

from subtune_jax.errors import InputError, require_package

Metric = Callable[[np.ndarray, np.ndarray], float]


def span_accuracy(logits: np.ndarray, spans: np.ndarray) -> float:
    """Returns the share of texts whose start and end both have the largest logit, in
    percent."""
    right = (_classes(logits, spans, axis=1) == spans).all(axis=1)
    return _whole(logits, 100 * float(np.mean(right)))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of rows whose largest logit is the label, in percent."""
    right = _classes(logits, labels) == labels
    return _whole(logits, 100 * float(np.mean(right)))


def worst_group_accuracy(groups: np.ndarray) -> Metric:
    """Returns the metric min over groups of accuracy, in percent; `groups` is int[rows]."""
    own = np.asarray(groups)

    def metric(logits: np.ndarray, labels: np.ndarray) -> float:
        _require_shape("labels", labels, np.shape(groups))
        scores = [accuracy(logits[own == g], labels[own == g]) for g in np.unique(own)]
        return float(np.min(scores))

    return metric


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the F1 score of class 1 of two, in percent (0 if class 1 never occurs or is
    never predicted). Raises `InputError` for outputs of other than two classes."""
    score = require_package("sklearn.metrics", "F1").f1_score
    called = _classes(logits, labels)
    if np.shape(logits)[-1] != 2:
        raise InputError(
            f"f1 is of class 1 beside class 0, and the outputs are of "
            f"{np.shape(logits)[-1]} classes: expected two (matthews takes more)"
        )
    return _whole(logits, 100 * float(score(labels, called, zero_division=0)))


def matthews(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns Matthews' correlation of classes, in percent (0 where one is constant)."""
    score = require_package("sklearn.metrics", "Matthews' correlation")
    called = _classes(logits, labels)
    return _whole(logits, 100 * float(score.matthews_corrcoef(labels, called)))


def pearson(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Returns Pearson's correlation of numbers, in percent (0 where one is constant)."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, outputs, targets)


def spearman(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Returns Spearman's rank correlation of numbers, in percent (0 where one is
    constant)."""
    from scipy.stats import rankdata

    # Not spearmanr, which takes twice as long for a p-value: intervals draw thousands.
    def ranked(*values: np.ndarray) -> tuple[float]:
        return (np.corrcoef(*map(rankdata, values))[0, 1],)

    return _correlation(ranked, outputs, targets)


def _correlation(f: Callable, outputs: np.ndarray, targets: np.ndarray) -> float:
    # In float64: of narrower numbers the sums lose digits.
    one, other = (np.ravel(np.asarray(v)).astype(float) for v in (outputs, targets))
    if one.size != other.size:
        raise InputError(
            f"the outputs have shape {list(np.shape(outputs))}, and the targets "
            f"{list(np.shape(targets))}: expected one number per example in both"
        )
    if not np.isfinite(other).all():
        raise InputError("the targets must be finite numbers: some are NaN or infinite")
    if np.isinf(one).any():
        raise InputError("the outputs must be finite numbers: some are infinite")
    if np.isnan(one).any():
        return float("nan")
    constant = np.ptp(one) == 0 or np.ptp(other) == 0
    return 0.0 if constant else 100 * float(f(one, other)[0])


def _classes(logits: np.ndarray, labels: np.ndarray, axis: int = -1) -> np.ndarray:
    """Returns the places of the largest logits; the labels must be of their shape."""
    if not np.size(logits):
        raise InputError("there are no examples to score")
    if np.ndim(logits) < 2:
        raise InputError(
            f"the outputs have shape {list(np.shape(logits))}: expected [examples, classes]"
        )
    if np.asarray(labels).dtype.kind not in "iu":
        raise InputError(
            f"labels are {np.asarray(labels).dtype}: expected an integer type, as "
            "labels.astype(int) has it"
        )
    places, classes = np.argmax(logits, axis=axis), np.shape(logits)[axis]
    _require_shape("labels", labels, places.shape)
    low, high = np.min(labels), np.max(labels)
    if low < 0 or high >= classes:
        raise InputError(
            f"labels are {low} to {high}: the outputs are of {classes} classes, so "
            f"labels 0 to {classes - 1} are expected"
        )
    return places


def _require_shape(name: str, values: np.ndarray, expected: tuple[int, ...]) -> None:
    if np.shape(values) != tuple(expected):
        raise InputError(
            f"the {name} have shape {list(np.shape(values))}: expected {list(expected)}"
        )


def _whole(outputs: np.ndarray, score: float) -> float:
    return float("nan") if np.isnan(outputs).any() else score


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}

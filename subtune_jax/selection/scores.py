"""Scores of tensors, units or blocks from gradients: which ones want to move?

Every score is a function of (network, batches, loss) to `{name: value}`, float, where a
name is a leaf's path or, with `groups` (`{path: unit}`, see `unit_groups`), a unit's.
`loss(outputs, targets) -> float[batch]`. Gradients are of the mean loss, at the
network's parameters, with stored statistics and without dropout; batches of one shape
compile once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.network import Labels, Network, forward, trainable_half
from subtune_jax.selection.labels import match

Score = dict[str, float]
Groups = Mapping[str, str]
SNR_MODES = ("per_example", "microbatch", "official")


def unit_groups(network: Network, table: str) -> dict[str, str]:
    """Returns `{path: unit}` of a unit table; leaves in no unit are left out."""
    if table not in network.units:
        raise unknown("unit table", table, network.units)
    units = network.units[table]
    return {path: unit for unit in units for path in match(network, f"{table}:{unit}")}


def relative_gradient_norm(
    network: Network, batches: Iterable, loss: Callable, groups: Groups | None = None
) -> Score:
    """Returns RGN_i = mean over batches of ||g_i||_2 / ||theta_i||_2.

    Of a unit: of all its tensors as one vector. A tensor or unit of norm 0 has RGN 0,
    where the official code divides by zero. papers/surgical.md 2.4.
    """
    squares = _by_name(jax.tree.map(_squares, network.params), groups)
    sums = _sums(network, batches, _batch_sums(network.stages, loss, _squares), groups)
    return _mean(
        {
            name: np.sqrt(value / squares[name]) if squares[name] else 0.0
            for name, value in s.items()
        }
        for s in sums
    )


def signal_to_noise(
    network: Network,
    batches: Iterable,
    loss: Callable,
    groups: Groups | None = None,
    *,
    mode: str = "per_example",
    micro: int = 8,
) -> Score:
    """Returns SNR_i, the mean over entries of (mean g)^2 / Var(g), mean over batches.

    Mean and variance (unbiased) are over the examples of a batch (`per_example`) or
    over its micro-batches of `micro` examples, fewer where that would not make two
    (`microbatch`), with 1e-8 added to the variance. A batch of one example has none and
    is left out. `official` is what the paper's code computes: the mean over entries of
    g^2 / (Var over output channels of g + 1e-8), with g the batch gradient; tensors
    with one output channel have SNR 0 there (its code gives NaN). Of a unit: the mean
    over its entries. papers/surgical.md 2.5. Raises `InputError` for another mode, and
    where no batch has two examples.
    """
    require_positive(micro=micro)
    if mode not in SNR_MODES:
        raise unknown("SNR mode", mode, SNR_MODES)
    if mode == "official":
        run = _batch_sums(network.stages, loss, _official_ratios)
        return _entry_means(network, batches, run, groups)
    most = 1 if mode == "per_example" else micro

    def run(params, stats, batch):
        size = min(most, _examples(batch) // 2)
        return _example_sums(network.stages, loss, _snr_ratios(size))(
            params, stats, batch
        )

    whole = (batch for batch in batches if _examples(batch) >= 2)
    return _entry_means(network, whole, run, groups)


def fisher(
    network: Network, batches: Iterable, loss: Callable, groups: Groups | None = None
) -> Score:
    """Returns the empirical Fisher information, mean over entries and examples of g^2.

    g is the gradient of one example's loss at its given label.
    """
    run = _example_sums(network.stages, loss, _mean_squares)
    return _entry_means(network, batches, run, groups)


def fisher_elements(
    network: Network, batches: Iterable, loss: Callable, labels: Labels
) -> Any:
    """Returns the empirical Fisher information of every element that is not frozen,
    float32, half a tree: the mean over examples of g^2, mean over batches."""
    run = _example_sums(network.stages, loss, _element_squares)
    half, total, count = trainable_half(network.params, labels), None, 0
    for batch in batches:
        found = run(network.params, network.stats, batch, half)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        count += 1
    if not count:
        raise InputError("a score needs a batch")
    return jax.tree.map(lambda leaf: leaf / count, total)


def magnitude(network: Network, groups: Groups | None = None) -> Score:
    """Returns the root mean square of the weights, which does not grow with their number."""
    squares = _by_name(jax.tree.map(_squares, network.params), groups)
    counts = _by_name(jax.tree.map(lambda leaf: leaf.size, network.params), groups)
    return {name: float(np.sqrt(squares[name] / counts[name])) for name in squares}


def rank_agreement(scores: Mapping[str, Score]) -> dict[tuple[str, str], float]:
    """Returns Spearman's rank correlation of every two scores over their common names.

    NaN where a score is the same for all of them, or there are fewer than two.
    """
    from scipy.stats import spearmanr

    def correlation(one: Score, two: Score) -> float:
        names = [name for name in one if name in two]
        pair = [[score[name] for name in names] for score in (one, two)]
        if any(len(set(values)) < 2 for values in pair):
            return float("nan")
        return float(spearmanr(*pair)[0])

    return {(a, b): correlation(scores[a], scores[b]) for a in scores for b in scores}


@cache
def _batch_sums(stages, loss: Callable, reduce: Callable) -> Callable:
    """Returns the jitted tree of `reduce(gradient of a batch's mean loss)`."""

    def mean_loss(params, stats, batch):
        losses = loss(forward(stages, params, stats, batch.x)[0], batch.y)
        return jnp.sum(losses * batch.weight) / jnp.sum(batch.weight)

    return jax.jit(lambda *args: jax.tree.map(reduce, jax.grad(mean_loss)(*args)))


@cache
def _example_sums(stages, loss: Callable, reduce: Callable) -> Callable:
    """Returns the jitted tree of `reduce(gradients, weight)`: a row per example, and
    weight 0 for padding rows, which are the last; of half the parameters, or of all."""

    def one_loss(half, params, stats, x, y):
        x, y = jax.tree.map(lambda leaf: leaf[None], (x, y))
        return loss(forward(stages, tree.combine(half, params), stats, x)[0], y)[0]

    each = jax.vmap(jax.grad(one_loss), in_axes=(None, None, None, 0, 0))

    def run(params, stats, batch, half=None):
        half = params if half is None else half
        grads = each(half, params, stats, batch.x, batch.y)
        return jax.tree.map(lambda g: reduce(g, batch.weight), grads)

    return jax.jit(run)


def _squares(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(values))


def _examples(batch: Any) -> int:
    return int(np.sum(np.asarray(batch.weight) > 0))


def _weighted(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the sum over rows of weight times value."""
    return jnp.sum(values * weight.reshape(-1, *[1] * (values.ndim - 1)), axis=0)


def _mean_squares(grads: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(_weighted(jnp.square(grads), weight)) / jnp.sum(weight)


def _element_squares(grads: jax.Array, weight: jax.Array) -> jax.Array:
    return _weighted(jnp.square(grads), weight) / jnp.sum(weight)


@cache
def _snr_ratios(size: int) -> Callable:
    """Returns the sum over entries of (mean g)^2 / (Var g + 1e-8); a row is `size` examples."""

    def ratios(grads: jax.Array, weight: jax.Array) -> jax.Array:
        rows = len(grads) // size
        means = grads[: rows * size].reshape(rows, size, *grads.shape[1:]).mean(axis=1)
        whole = weight[: rows * size].reshape(rows, size).min(axis=1)
        count = jnp.sum(whole)
        mean = _weighted(means, whole) / count
        noise = _weighted(jnp.square(means - mean[None]), whole) / (count - 1) + 1e-8
        return jnp.sum(jnp.square(mean) / noise)

    return ratios


def _official_ratios(grad: jax.Array) -> jax.Array:
    """Returns the sum of g^2 / (Var(g) + 1e-8), Var over output channels (our last axis)."""
    if grad.ndim == 0 or grad.shape[-1] < 2:
        return jnp.zeros(())
    return jnp.sum(
        jnp.square(grad) / (jnp.var(grad, axis=-1, ddof=1, keepdims=True) + 1e-8)
    )


def _sums(
    network: Network, batches: Iterable, run: Callable, groups: Groups | None
) -> Iterator[Score]:
    """Yields what `run` gives for each batch, by name."""
    for batch in batches:
        yield _by_name(run(network.params, network.stats, batch), groups)


def _entry_means(
    network: Network, batches: Iterable, run: Callable, groups: Groups | None
) -> Score:
    counts = _by_name(jax.tree.map(lambda leaf: leaf.size, network.params), groups)
    mean = _mean(_sums(network, batches, run, groups))
    return {name: value / counts[name] for name, value in mean.items()}


def _by_name(values: Any, groups: Groups | None) -> Score:
    """Returns a tree of scalars by path, or summed by unit; one transfer for all."""
    named: Score = {}
    for path, value in tree.flatten(jax.device_get(values)).items():
        name = path if groups is None else groups.get(path)
        if name is not None:
            named[name] = named.get(name, 0.0) + float(value)
    return named


def _mean(scores: Iterable[Score]) -> Score:
    found = list(scores)
    if not found:
        raise InputError("a score needs a batch (an SNR one of two examples or more)")
    return {name: float(np.mean([score[name] for score in found])) for name in found[0]}

"""Scores of tensors, units or blocks from gradients: which ones want to move?

Every score is a function of (network, batches, loss) to `{name: value}`, float, where a
name is a leaf's path or, with `groups` (the name of a unit table, or `{unit: entries}` as
`select` takes them), a unit's.
What is in no group costs nothing; leaves that are not real floating-point numbers, or
have no elements, have no score. `loss(outputs, targets) -> float[batch]`. Gradients are
of the mean loss, at the network's parameters, with stored statistics and without
dropout; batches of one shape compile once. `chunk`: how many gradients are held at once.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.labels import trainable_half
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Labels, Network, Params, require_network
from subtune_jax.selection.candidates import require_finite_scores
from subtune_jax.selection.gradients import (
    Moments,
    batch_gradient,
    require_batch,
    row_moments,
    scored_half,
)
from subtune_jax.selection.select import match

Score = dict[str, float]
Groups = Mapping[str, Sequence[str]] | str
SNR_MODES = ("per_example", "microbatch", "official")


def unit_groups(network: Network, table: str) -> dict[str, list[str]]:
    """Returns `{unit: paths}` of a unit table; units may share leaves."""
    require_network(network)
    if table not in network.units:
        raise unknown("unit table", table, network.units)
    return {unit: match(network, f"{table}:{unit}") for unit in network.units[table]}


def top(score: Score, count: int) -> list[str]:
    """Returns the `count` names with the highest scores, best first; of equals the first.

    Raises `InputError` unless there are as many, where one of them is 0 (no gradient
    reaches it), and for scores that are not finite.
    """
    if not isinstance(score, Mapping):
        raise InputError(f"a score is a dict of numbers, got {type(score).__name__}")
    if not score:
        raise InputError("there are no scores to choose from")
    if not 0 < count <= len(score):
        raise InputError(f"count must be from 1 to {len(score)} here, got {count!r}")
    require_finite_scores({n: v for n, v in score.items() if not math.isinf(v)})
    best = sorted(score, key=lambda name: -score[name])[:count]
    if score[best[-1]] == 0:
        raise InputError(
            f"the score of {best[-1]!r} is 0, so choosing it would be arbitrary: is a layer "
            "above it at zeros (a new head)? Train that first"
        )
    require_finite_scores(score)
    return best


def relative_gradient_norm(
    network: Network,
    batches: Iterable,
    loss: Callable = cross_entropy,
    groups: Groups | None = None,
) -> Score:
    """Returns RGN_i = mean over batches of ||g_i||_2 / ||theta_i||_2.

    Of a unit: of all its tensors as one vector. A tensor or unit of norm 0 has RGN inf,
    or 0 where its gradient is 0 too; the official code divides by zero.
    Surgical fine-tuning (Lee et al. 2023).
    """
    network, half, groups = _scored(network, groups)
    squares = _by_name(_tree_squares(half), groups)

    def ratio(name: str, square: float) -> float:
        if square == 0 or squares[name] == 0:
            return float("inf") if square else 0.0
        return float(np.sqrt(square / squares[name]))

    found = (batch_gradient(network, loss, _squares, half, b) for b in batches)
    return _mean(
        {name: ratio(name, square) for name, square in _by_name(f, groups).items()}
        for f in found
    )


def signal_to_noise(
    network: Network,
    batches: Iterable,
    loss: Callable = cross_entropy,
    groups: Groups | None = None,
    *,
    mode: str = "per_example",
    micro: int = 8,
    chunk: int = 16,
) -> Score:
    """Returns SNR_i, the mean over entries of (mean g)^2 / Var(g), mean over batches.

    Mean and variance (unbiased) are over the examples of a batch (`per_example`) or
    over its micro-batches of `micro` examples, fewer where that would not make two
    (`microbatch`), with 1e-8 added to the variance. A batch of one example has none and
    is left out. `official` is what the paper's code computes: the mean over entries of
    g^2 / (Var over output channels of g + 1e-8), with g the batch gradient; tensors
    with one output channel have SNR 0 there (its code gives NaN). Of a unit: the mean
    over its entries. Lee et al. 2023. Raises `InputError` for another mode, and
    where no batch has two examples.
    """
    require_positive(micro=micro, chunk=chunk)
    if mode not in SNR_MODES:
        raise unknown("SNR mode", mode, SNR_MODES)
    network, half, groups = _scored(network, groups)
    most = 1 if mode == "per_example" else micro

    def ratios(batch: Any) -> Any:
        if mode == "official":
            return batch_gradient(network, loss, _official_ratios, half, batch)
        # Two rows at least, or there is no variance: a short batch has smaller ones.
        # Padding comes last in a batch, so that whole rows are of examples alone.
        size = min(most, _examples(batch) // 2)
        return _snr_ratios(row_moments(network, loss, half, batch, size, chunk))

    whole = (b for b in batches if mode == "official" or _examples(b) >= 2)
    counts = _by_name(jax.tree.map(lambda leaf: leaf.size, half), groups)
    mean = _mean(_by_name(ratios(batch), groups) for batch in whole)
    return {name: value / counts[name] for name, value in mean.items()}


def fisher(
    network: Network,
    batches: Iterable,
    loss: Callable = cross_entropy,
    groups: Groups | None = None,
    *,
    chunk: int = 16,
) -> Score:
    """Returns the empirical Fisher information, mean over entries and examples of g^2.

    g is the gradient of one example's loss at its given label. All examples count alike,
    in whatever batch they come.
    """
    network, half, groups = _scored(network, groups)
    squares = _fisher(network, batches, loss, half, chunk)
    sums = _by_name(jax.tree.map(jnp.sum, squares), groups)
    counts = _by_name(jax.tree.map(lambda leaf: leaf.size, half), groups)
    return {name: value / counts[name] for name, value in sums.items()}


def fisher_elements(
    network: Network,
    batches: Iterable,
    loss: Callable,
    labels: Labels,
    *,
    chunk: int = 16,
) -> Any:
    """Returns the empirical Fisher information of every element that is not frozen,
    at least float32, half a tree: the mean over all examples of g^2."""
    network = _on_device(network)
    half = scored_half(network.params, tree.flatten(trainable_half(labels, labels)))
    return _fisher(network, batches, loss, half, chunk)


def magnitude(network: Network, groups: Groups | None = None) -> Score:
    """Returns the root mean square of the weights, which does not grow with their number."""
    _, half, groups = _scored(network, groups)
    squares = _by_name(_tree_squares(half), groups)
    counts = _by_name(jax.tree.map(lambda leaf: leaf.size, half), groups)
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


def _scored(
    network: Network, groups: Groups | None
) -> tuple[Network, Params, Mapping[str, Sequence[str]] | None]:
    """Returns the network on its device, the half of its parameters to score, and the
    groups, those of a unit table by its name."""
    network = _on_device(network)
    if groups is None:
        return network, scored_half(network.params), None
    groups = _paths_by_unit(network, groups)
    names = {path for paths in groups.values() for path in paths}
    return network, scored_half(network.params, names), groups


def _paths_by_unit(network: Network, groups: Groups) -> dict[str, list[str]]:
    """Returns the paths of each unit, its entries read as `select` reads them; a whole path
    is that leaf alone."""
    if isinstance(groups, str):
        return unit_groups(network, groups)
    if not isinstance(groups, Mapping):
        raise InputError(
            f"groups are the name of a unit table or a dict of units, got "
            f"{type(groups).__name__}: {{'a': ['block1'], ...}}"
        )
    leaves = tree.flatten(network.params).keys()
    paths_by_unit: dict[str, list[str]] = {}
    for unit, given in groups.items():
        entries = [given] if isinstance(given, str) else given
        paths = [[e] if e in leaves else match(network, e) for e in entries]
        paths_by_unit[unit] = list(
            dict.fromkeys(path for some in paths for path in some)
        )
    return paths_by_unit


def _on_device(network: Network) -> Network:
    """Once: a network in NumPy would travel with every batch."""
    require_network(network)
    params, stats = jax.device_put((network.params, network.stats))
    return network._replace(params=params, stats=stats)


def _fisher(
    network: Network, batches: Iterable, loss: Callable, half: Params, chunk: int
) -> Params:
    require_positive(chunk=chunk)
    total, count = None, 0.0
    for batch in batches:
        moments = row_moments(network, loss, half, batch, 1, chunk)
        squares = _sum_of_squares(moments)
        total = squares if total is None else jax.tree.map(jnp.add, total, squares)
        count += _examples(batch)
    if not count:
        raise InputError("a score needs a batch")
    return _divided(total, tree.beside(np.float32(count), half))


@jax.jit
def _divided(values: Params, count: jax.Array) -> Params:
    return jax.tree.map(lambda value: value / count, values)


@jax.jit
def _sum_of_squares(moments: Moments) -> Params:
    """Returns the sum over rows of g^2."""
    return jax.tree.map(
        lambda m, s: s + jnp.square(m) * moments.count, moments.mean, moments.spread
    )


@jax.jit
def _snr_ratios(moments: Moments) -> Params:
    """Returns, by leaf, the sum over entries of (mean g)^2 / (Var g + 1e-8)."""
    # 1e-8: official code. A dead entry (mean and variance 0) then counts 0, not NaN.

    def ratios(mean: jax.Array, spread: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(mean) / (spread / (moments.count - 1) + 1e-8))

    return jax.tree.map(ratios, moments.mean, moments.spread)


@jax.jit
def _tree_squares(half: Params) -> Params:
    return jax.tree.map(_squares, tree.wide(half))


def _squares(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(values))


def _examples(batch: Any) -> int:
    require_batch(batch)
    return int(np.sum(jax.device_get(batch.weight) > 0))


def _official_ratios(grad: jax.Array) -> jax.Array:
    """Returns the sum of g^2 / (Var(g) + 1e-8), Var over output channels (our last axis)."""
    if grad.ndim == 0 or grad.shape[-1] < 2:
        return jnp.zeros(())
    return jnp.sum(
        jnp.square(grad) / (jnp.var(grad, axis=-1, ddof=1, keepdims=True) + 1e-8)
    )


def _by_name(values: Any, groups: Mapping[str, Sequence[str]] | None) -> Score:
    """Returns a tree of scalars by path, or summed by unit; one transfer for all.

    Units without a leaf that is scored are left out.
    """
    named = {p: float(v) for p, v in tree.flatten(jax.device_get(values)).items()}
    if groups is None:
        return named
    found = {u: [named[p] for p in paths if p in named] for u, paths in groups.items()}
    return {unit: sum(some) for unit, some in found.items() if some}


def _mean(scores: Iterable[Score]) -> Score:
    found = list(scores)
    if not found:
        raise InputError(
            "a score needs a batch (an SNR one of two examples or more); batches that were "
            "read by another score are used up: make them again"
        )
    return {name: float(np.mean([score[name] for score in found])) for name in found[0]}

"""The score of a subset of units: trained on folds of a task, validated on the rest."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.splits import balanced_folds, shuffled_folds
from subtune_jax.data.task import Task
from subtune_jax.errors import InputError, require_function, require_type
from subtune_jax.labels import lowest_trainable
from subtune_jax.memory import forget_programs
from subtune_jax.metrics import Metric
from subtune_jax.network import Network, require_network
from subtune_jax.selection.journal import Score
from subtune_jax.selection.search import ScoreOf, Subset
from subtune_jax.stage_flops import stage_flops
from subtune_jax.training.loop import fit
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import require_key
from subtune_jax.training.predict import evaluate
from subtune_jax.training.settings import Settings, require_settings
from subtune_jax.training.suffix import Cut, kept_cuts, rejoin

CANDIDATES = 64  # whose programs are kept: 8 MB each, of a ResNet-20
PhasesOf = Callable[[Network, Subset, int], Sequence[Phase]]


class Run(NamedTuple):
    """A trained subset: the whole network (`None`: it diverged), the metric, and the FLOPs
    that were spent on it just now."""

    network: Network | None
    value: float
    flops: float


def subset_score(
    task: Task,
    phases_of: PhasesOf,
    *,
    key: jax.Array,
    folds: int | None = 5,
    fold_seed: int = 0,
    balanced: bool = True,
    share: bool = True,
    warm: bool = False,
    settings: Settings = Settings(),
    share_bytes: int = 2**30,
) -> ScoreOf:
    """Returns the function that scores a subset of units, as `greedy` and `profile` ask.

    score(units, fold, seed) trains `phases_of(network, units, examples)` on the other
    folds of `task.train` (so many examples) and returns the metric on this one, after the
    last step, and the contraction FLOPs of training and validation (of what had to be made
    for it just now: features, a parent). folds: how many, drawn
    once from `fold_seed`, by class if `balanced`; `None`: train on `task.train`, validate
    on `task.validation`. The test part stays sealed. A batch is never larger than the
    training part.

    share: the activations of the frozen prefix are made once for all folds, seeds and
    subsets that can use them; a run is then one of the suffix, and `phases_of` is given
    that. share_bytes: what activations may take; a prefix whose own take more is cut
    earlier, and cuts that do not fit beside each other are made again. warm: a subset
    starts from the trained network of all its units but the last, so that phases can be
    short; search with `order="added"`. settings: those of all runs, but for `cache_bytes`
    (SubTuning's have `norm="tuned"`).

    Programs of 64 candidates are kept; then all that the process has compiled are dropped
    (`memory.forget_programs`).

    Raises `InputError` for fewer than 2 folds, or more than there are examples of a class,
    for folds of a task whose metric is of groups, and for `share` with augmentation, or
    with norms or dropout that act in a frozen prefix.
    """
    require_type(Task, task=task)
    require_function(3, phases_of=phases_of)
    require_key(key)
    require_settings(settings)
    if share:
        _require_deterministic(settings)
    if folds is not None and task.metric != "accuracy":
        raise InputError(
            f"folds are scored by accuracy, and the task by {task.metric}: folds=None "
            "validates on its validation part"
        )
    data, split = _split(task, folds, fold_seed, balanced)
    whole = Cut(task.network, data, 0)
    cuts = kept_cuts(task.network, data, share_bytes) if share else lambda stop: whole
    metric = task.metrics["validation"]
    search = _Search(data, split, cuts, phases_of, key, settings, metric, share, {})
    start = Run(task.network, float("nan"), 0.0)
    train = partial(_trained_from, search)
    run_of = _warm(train, start) if warm else partial(train, start)

    def score(units: Subset, fold: int, seed: int) -> Score:
        run = run_of(tuple(units), fold, seed)
        return Score(run.value, run.flops)

    return _forgetful(score)


class _Search(NamedTuple):
    """What all runs of a search share. flops: of a run, by its units and the sizes of its
    parts; it fills up as candidates come."""

    data: tuple[Dataset, ...]
    split: Callable
    cuts: Callable[[int], Cut]
    phases_of: PhasesOf
    key: jax.Array
    settings: Settings
    metric: Metric
    share: bool
    flops: dict[tuple, float]


def _trained_from(
    search: _Search, base: Run, units: Subset, fold: int, seed: int
) -> Run:
    """Returns the run of a subset that starts from a base."""
    assert base.network is not None
    examples = len(search.split(search.data, fold)[0].y)
    phases = search.phases_of(base.network, units, examples)
    if search.share:
        for phase in phases:
            _require_deterministic(_settings_of(phase, search.settings))
    part = search.cuts(_lowest(base.network, phases))
    network = _with_values(part.network, base.network)
    phases = search.phases_of(network, units, examples)
    parts = search.split(part.data, fold)
    size = min(search.settings.batch_size, examples)
    key = jax.random.fold_in(jax.random.fold_in(search.key, seed), fold)
    how = search.settings._replace(batch_size=size)
    flops = _flops(search, units, network, phases, parts)
    tuned, value = _trained(network, phases, parts, search.metric, key, how)
    whole = tuned and rejoin(base.network, tuned)
    return Run(whole, value, base.flops + part.flops + flops)


def _flops(
    search: _Search,
    units: Subset,
    network: Network,
    phases: Sequence[Phase],
    parts: tuple[Dataset, Dataset],
) -> float:
    """Returns the FLOPs of a run; folds and seeds of the same sizes cost alike."""
    examples, scored = sizes = tuple(len(part.y) for part in parts)
    if (units, sizes) not in search.flops:
        size = min(search.settings.batch_size, examples)
        spent = run_flops(network, phases, parts[0], size, scored)
        search.flops[units, sizes] = spent
    return search.flops[units, sizes]


def _warm(train: Callable[..., Run], start: Run) -> Callable[[Subset, int, int], Run]:
    """Returns the function that trains a subset from the run of all its units but the last."""
    # The current subset and the one before it, on each fold: what is kept does not grow
    # with the candidates. After a kill the current subset is trained again.
    parents: dict[tuple, Run] = {}

    def parent(units: Subset, fold: int, seed: int) -> Run:
        if (units, fold, seed) in parents:
            return parents[units, fold, seed]._replace(flops=0.0)
        run = run_of(units, fold, seed)
        for one in [one for one in parents if one[0] not in (units, units[:-1])]:
            del parents[one]
        parents[units, fold, seed] = run
        return run

    def run_of(units: Subset, fold: int, seed: int) -> Run:
        base = parent(units[:-1], fold, seed) if units else start
        return base if base.network is None else train(base, units, fold, seed)

    return run_of


def _forgetful(score: ScoreOf) -> ScoreOf:
    """Returns a score that drops all programs after every `CANDIDATES` subsets."""
    # Each subset has programs of its own, and JAX's caches keep a program after ours have
    # dropped it.
    recent: set[Subset] = set()

    def forgetting(units: Subset, fold: int, seed: int) -> Score:
        subset = tuple(units)
        if subset not in recent and len(recent) == CANDIDATES:
            forget_programs()
            recent.clear()
        recent.add(subset)
        return score(subset, fold, seed)

    return forgetting


def _trained(
    network: Network,
    phases: Sequence[Phase],
    parts: tuple[Dataset, Dataset],
    metric: Metric,
    key: jax.Array,
    settings: Settings,
) -> tuple[Network | None, float]:
    """Returns the network after phases on the first part, and its score on the second."""
    train, validation = parts
    try:
        # Nothing is kept for one run alone: `share` is how a prefix is made once.
        alone = settings._replace(cache_bytes=0)
        result = fit(network, phases, train, key=key, progress=False, settings=alone)
    except ArithmeticError:
        return None, float("nan")
    return result.network, evaluate(result.network, validation, metric)


def run_flops(
    network: Network,
    phases: Sequence[Phase],
    train: Dataset,
    batch_size: int,
    scored: int = 0,
) -> float:
    """Returns the contraction FLOPs of a run that makes nothing once, and of scoring so
    many examples with it.

    sum over phases of steps x (forward pass, and backward pass down to the lowest
    trainable leaf), by `stage_flops` of a batch; a forward pass for each scored example.
    """
    require_network(network)
    batch = train.take(np.arange(batch_size) % len(train.y)).x
    steps = sum(
        phase.steps * sum(stage_flops(network, batch, phase.labels).values())
        for phase in phases
    )
    one = sum(stage_flops(network, train.take(np.arange(1)).x).values())
    return float(steps + scored * one)


def _split(
    task: Task, folds: int | None, seed: int, balanced: bool
) -> tuple[tuple, Callable]:
    """Returns the data sets that a score reads, and split(data, fold) -> (training part,
    validation part) of them or of their features."""
    if folds is None:
        return (task.train, task.validation), lambda data, fold: data
    if balanced:
        parts = balanced_folds(task.train.y, folds, seed)
    else:
        parts = shuffled_folds(len(task.train.y), folds, seed)

    def split(data: Sequence[Dataset], fold: int) -> tuple[Dataset, Dataset]:
        others = np.concatenate([part for i, part in enumerate(parts) if i != fold])
        return data[0].only(others), data[0].only(parts[fold])

    return (task.train,), split


def _lowest(network: Network, phases: Sequence[Phase]) -> int:
    return min(lowest_trainable(network.stages, phase.labels) for phase in phases)


def _with_values(suffix: Network, network: Network) -> Network:
    """Returns the suffix with the values of a network."""
    return suffix._replace(
        params={name: network.params[name] for name in suffix.params},
        stats={name: network.stats[name] for name in suffix.stats},
    )


def _settings_of(phase: Phase, settings: Settings) -> Settings:
    """Returns the settings that a phase runs under."""
    return settings._replace(
        norm=phase.norm or settings.norm, dropout=phase.dropout or settings.dropout
    )


def _require_deterministic(settings: Settings) -> None:
    problem = None
    if settings.augment is not None:
        problem = "augmentation changes the inputs of the frozen prefix"
    elif settings.norm not in ("stored", "tuned"):
        problem = (
            f"norm {settings.norm!r} may use batch statistics in the frozen prefix"
        )
    elif settings.dropout not in ("tuned", "none"):
        problem = f"dropout {settings.dropout!r} may act in the frozen prefix"
    if problem:
        raise InputError(
            f"{problem}, so its features cannot be shared: share=False, or leave it out"
        )

"""Runs of a search: a subset of units on folds and seeds, one by one or as lanes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError
from subtune_jax.labels import (
    lowest_trainable,
    stages_with_batch_stats,
    stages_with_dropout,
)
from subtune_jax.metrics import Metric
from subtune_jax.network import Network, require_network
from subtune_jax.programs import Traces
from subtune_jax.selection.candidates import Subset
from subtune_jax.selection.search import FoldSeed
from subtune_jax.stage_flops import stage_flops
from subtune_jax.training.loop import FitResult, How, train
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import make_plan
from subtune_jax.training.predict import evaluate
from subtune_jax.training.prefix_cache import probe, shapes_after_stages
from subtune_jax.training.settings import Settings
from subtune_jax.training.suffix import Cut, rejoin
from subtune_jax.training.sweep import OtherProgramError, Run, lane_plans, train_lanes

PhasesOf = Callable[[Network, Subset, int], Phase | Sequence[Phase]]
Parts = dict[int, tuple[Dataset, Dataset]]  # by fold: to train on, to validate on


class Trained(NamedTuple):
    """A trained subset: the whole network (`None`: it diverged), the metric, the FLOPs that
    were spent on it just now, and the first stage at which it is not the pretrained network
    any more (`None`: its last one)."""

    network: Network | None
    value: float
    flops: float
    lowest: int | None = None


class Setup(NamedTuple):
    """What all runs of a search share. train: of several runs at once. flops: of a run, by
    its units and the sizes of its parts; it fills up as candidates come."""

    data: tuple[Dataset, ...]
    split: Callable
    cuts: Callable[[int], Cut]
    phases_of: PhasesOf
    key: jax.Array
    settings: Settings
    metric: Metric
    share: bool
    train: Callable[[list["Begun"]], list[FitResult | Exception]]
    flops: dict[tuple, float]
    traces: Traces


class Begun(NamedTuple):
    """A run before its first step: on the suffix of a network, and the two parts of a fold.
    flops: what its features took just now, and what it will take."""

    network: Network
    phases: Sequence[Phase]
    parts: tuple[Dataset, Dataset]
    key: jax.Array
    settings: Settings
    traces: Traces
    flops: float
    lowest: int


def train_subset(
    setup: Setup, bases: Sequence[Trained], units: Subset, places: Sequence[FoldSeed]
) -> list[Trained]:
    """Returns the runs of a subset on folds and seeds, each from a base that can train."""
    parts: Parts = {}
    begun = [
        _begin(setup, parts, base, units, *place)
        for base, place in zip(bases, places, strict=True)
    ]
    runs = []
    for base, one, result in zip(bases, begun, setup.train(begun), strict=True):
        flops = base.flops + one.flops
        if base.network is None or not isinstance(result, FitResult):
            runs.append(Trained(None, float("nan"), flops))
            continue
        value = evaluate(result.network, one.parts[1], setup.metric)
        whole = rejoin(base.network, result.network)
        runs.append(Trained(whole, value, flops, one.lowest))
    return runs


def _begin(
    setup: Setup, parts: Parts, base: Trained, units: Subset, fold: int, seed: int
) -> Begun:
    """Returns a run; `parts` fills up with those of the folds, which their seeds share."""
    assert base.network is not None
    examples = len(setup.split(setup.data, fold)[0].y)
    phases = _phases(setup, base.network, units, examples)
    lowest = _lowest(base.network, phases, setup)
    if setup.share:
        for phase in phases:
            require_deterministic(_settings_of(phase, setup.settings))
    # Kept features are of the pretrained network: below them nothing may have been tuned,
    # by this set or by the one that it starts from.
    lowest = lowest if base.lowest is None else min(lowest, base.lowest)
    part = setup.cuts(lowest)
    network = _with_values(part.network, base.network)
    phases = _phases(setup, network, units, examples)
    if fold not in parts:
        parts[fold] = setup.split(part.data, fold)
    flops = part.flops + _flops(setup, units, network, phases, parts[fold])
    key = jax.random.fold_in(jax.random.fold_in(setup.key, seed), fold)
    # Nothing is kept for one run alone: `share` is how a prefix is made once.
    size = min(setup.settings.batch_size, examples)
    settings = setup.settings._replace(batch_size=size, cache_bytes=0)
    return Begun(
        network, phases, parts[fold], key, settings, setup.traces, flops, lowest
    )


def one_by_one(begun: Sequence[Begun]) -> list[FitResult | Exception]:
    return [_alone(one) for one in begun]


def _alone(one: Begun) -> FitResult | Exception:
    try:
        plan = make_plan(
            one.network,
            one.phases,
            one.parts[0],
            key=one.key,
            settings=one.settings,
            traces=one.traces,
        )
        return train(plan, How(progress=False))
    except ArithmeticError as error:
        return error


def in_lanes(begun: Sequence[Begun]) -> list[FitResult | Exception]:
    """Returns what `fit` gives for each run; those of as many steps run as one sweep."""
    kinds = [_steps(one) for one in begun]
    results: dict[int, FitResult | Exception] = {}
    for kind in dict.fromkeys(kinds):
        lanes = [i for i, own in enumerate(kinds) if own == kind]
        swept = _swept([begun[i] for i in lanes])
        results.update(zip(lanes, swept, strict=True))
    return [results[i] for i in range(len(begun))]


def _steps(one: Begun) -> tuple:
    """Returns the batch size, and the steps of the phases and of an epoch with and without
    its ragged batch."""
    examples, size = len(one.parts[0].y), one.settings.batch_size
    phases = tuple(phase.steps for phase in one.phases)
    return size, phases, examples // size, -(-examples // size)


def _swept(begun: Sequence[Begun]) -> list[FitResult | Exception]:
    """Returns what one sweep of these runs gives, or `fit` for each where they cannot be."""
    first = begun[0]
    runs = [Run(one.phases, one.key, one.network, one.parts[0]) for one in begun]
    try:
        if len(runs) > 1:
            given = first.network, runs, first.parts[0]
            return train_lanes(lane_plans(first.traces, *given, first.settings))
    except OtherProgramError:
        pass  # masks that each run learns have other counts: no lane is like another
    return one_by_one(begun)


def _flops(
    setup: Setup,
    units: Subset,
    network: Network,
    phases: Sequence[Phase],
    parts: tuple[Dataset, Dataset],
) -> float:
    """Returns the FLOPs of a run; folds and seeds of the same sizes cost alike."""
    examples, scored = sizes = tuple(len(part.y) for part in parts)
    if (units, sizes) not in setup.flops:
        size = min(setup.settings.batch_size, examples)
        spent = run_flops(network, phases, parts[0], size, scored)
        setup.flops[units, sizes] = spent
    return setup.flops[units, sizes]


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


def _phases(
    setup: Setup, network: Network, units: Subset, examples: int
) -> tuple[Phase, ...]:
    phases = setup.phases_of(network, units, examples)
    return (phases,) if isinstance(phases, Phase) else tuple(phases)


def _lowest(network: Network, phases: Sequence[Phase], setup: Setup) -> int:
    """Returns the first stage that trains, has dropout, or normalizes by the batch."""
    names, lowest = [stage.name for stage in network.stages], []
    for phase in phases:
        stages, labels = network.stages, phase.labels
        begin, own = (
            lowest_trainable(stages, labels),
            _settings_of(phase, setup.settings),
        )
        acts = [*map(names.index, stages_with_dropout(stages, labels, own.dropout))]
        acts = [i for i in acts if _draws(network, i, begin, setup)]
        normed = stages_with_batch_stats(network.stats, labels, own.norm)
        lowest.append(min([begin, *acts, *map(names.index, normed)]))
    return min(lowest)


def _draws(network: Network, index: int, begin: int, setup: Setup) -> bool:
    """Returns whether a stage below what trains draws random numbers: dropout before a
    tuned layer, or in a stage by name."""
    if index >= begin:
        return False
    x = shapes_after_stages(network, index, setup.data[0].take(np.arange(1)).x)
    name, apply = network.stages[index]
    return probe(apply, network.params[name], network.stats[name], x)[0]


def _with_values(suffix: Network, network: Network) -> Network:
    """Returns the suffix with the values of a network."""
    return suffix._replace(
        params={name: network.params[name] for name in suffix.params},
        stats={name: network.stats[name] for name in suffix.stats},
    )


def _settings_of(phase: Phase, settings: Settings) -> Settings:
    """Returns the settings that a phase runs under."""
    return settings._replace(
        norm=settings.norm if phase.norm is None else phase.norm,
        dropout=settings.dropout if phase.dropout is None else phase.dropout,
    )


def require_deterministic(settings: Settings) -> None:
    """Raises `InputError` for settings that may change a frozen prefix. Stages by name cannot:
    the prefix ends below them."""
    problem = None
    if settings.augment is not None:
        problem = "augmentation changes the inputs of the frozen prefix"
    elif settings.norm == "batch":
        problem = (
            f"norm {settings.norm!r} may use batch statistics in the frozen prefix"
        )
    elif settings.dropout == "all":
        problem = f"dropout {settings.dropout!r} may act in the frozen prefix"
    if problem:
        raise InputError(
            f"{problem}, so its features cannot be shared: share=False, or leave it out"
        )

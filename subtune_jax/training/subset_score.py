"""The score of a subset of units: trained on folds of a task, validated on the rest."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.splits import balanced_folds, shuffled_folds
from subtune_jax.data.task import Task
from subtune_jax.errors import InputError, require_function, require_type
from subtune_jax.memory import forget_programs
from subtune_jax.programs import Traces
from subtune_jax.selection.candidates import Subset
from subtune_jax.selection.journal import Score
from subtune_jax.selection.search import FoldSeed, Scorer
from subtune_jax.training.loop import traces_for
from subtune_jax.training.plan import require_key
from subtune_jax.training.score_identity import score_identity
from subtune_jax.training.settings import Settings, require_settings
from subtune_jax.training.subset_runs import (
    PhasesOf,
    Setup,
    Trained,
    in_lanes,
    one_by_one,
    require_deterministic,
    train_subset,
)
from subtune_jax.training.suffix import Cut, kept_cuts

CANDIDATES = 64  # whose programs are kept: 20 MB each, of a ResNet-20 on a CPU


# (bases, units, places) -> a run for each place; and the same with bases of its own.
TrainedFrom = Callable[[Sequence[Trained], Subset, Sequence[FoldSeed]], list[Trained]]
TrainedOn = Callable[[Subset, Sequence[FoldSeed]], list[Trained]]


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
    lanes: bool | None = None,
) -> Scorer:
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
    starts from the trained network of all its units but the last (the network's last stage,
    its head, begins anew), so that phases can be short; search with `order="added"`.
    settings: those of all runs, but for `cache_bytes`
    (SubTuning's have `norm="tuned"`). lanes: whether the folds and seeds that a search asks
    for together run as one program (`sweep`), where they can: they take the memory of all.
    Default: on an accelerator, unless `settings.place` is given.

    The `Scorer` carries its folds, and what its values depend on: a journal of another
    score is refused. Programs of 64 candidates are kept; then all that the process has
    compiled are dropped
    (`memory.forget_programs`).

    Raises `InputError` for fewer than 2 folds, or more than there are examples of a class,
    for folds of a task whose metric is of groups, for `share` with augmentation, or with
    norms or dropout that act in a frozen prefix, and for lanes that meet a place.
    """
    require_type(Task, task=task)
    require_function(3, phases_of=phases_of)
    require_key(key)
    require_settings(settings)
    if lanes and settings.place is not None:
        raise InputError("lanes fill one device: leave place out of the settings")
    if share:
        require_deterministic(settings)
    if folds is not None and task.metric != "accuracy":
        raise InputError(
            f"folds are scored by accuracy, and the task by {task.metric}: folds=None "
            "validates on its validation part"
        )
    data, split = _split(task, folds, fold_seed, balanced)
    whole = Cut(task.network, data, 0)
    cuts = kept_cuts(task.network, data, share_bytes) if share else lambda stop: whole
    metric = task.metrics["validation"]
    if lanes is None:
        lanes = jax.default_backend() != "cpu" and settings.place is None
    train_all = in_lanes if lanes else one_by_one
    traces = traces_for(task.network)
    setup = Setup(
        data,
        split,
        cuts,
        phases_of,
        key,
        settings,
        metric,
        share,
        train_all,
        {},
        traces,
    )
    start = Trained(task.network, float("nan"), 0.0)
    train = partial(train_subset, setup)
    trained = _warm(train, start) if warm else _cold(train, start)

    def many(units: Subset, places: Sequence[FoldSeed]) -> Iterator[Score]:
        for together in [places] if lanes else [[place] for place in places]:
            for run in trained(units, together):
                yield Score(run.value, run.flops)

    about = partial(
        score_identity,
        task,
        phases_of,
        key,
        (folds, fold_seed, balanced, warm),
        settings,
    )

    def renew() -> None:
        traces.clear()
        traces_for(task.network)

    return Scorer(_forgetful(many, traces), folds or 1, about, renew)


def _cold(train: TrainedFrom, start: Trained) -> TrainedOn:
    """Returns the function that trains every subset from the start."""
    return lambda units, places: train([start] * len(places), units, places)


def _warm(train: TrainedFrom, start: Trained) -> TrainedOn:
    """Returns the function that trains a subset from the run of all its units but the last."""
    # Of the current subset and the one before it, on each fold: what is kept does not grow
    # with the candidates. After a kill the current subset is trained again.
    parents: dict[tuple[Subset, FoldSeed], Trained] = {}

    def parents_of(units: Subset, places: Sequence[FoldSeed]) -> list[Trained]:
        missing = [place for place in places if (units, place) not in parents]
        new = (
            dict(zip(missing, trained(units, missing), strict=True)) if missing else {}
        )
        parents.update({(units, place): run for place, run in new.items()})
        free = {place: parents[units, place]._replace(flops=0.0) for place in places}
        return [new.get(place, free[place]) for place in places]

    def trained(units: Subset, places: Sequence[FoldSeed]) -> list[Trained]:
        bases = parents_of(units[:-1], places) if units else [start] * len(places)
        bases = [_with_last_stage(base, start) for base in bases]
        runs = dict(zip(places, bases, strict=True))
        can = [place for place in places if runs[place].network is not None]
        runs |= zip(can, train([runs[place] for place in can], units, can), strict=True)
        return [runs[place] for place in places]

    def lean(units: Subset, places: Sequence[FoldSeed]) -> list[Trained]:
        runs = trained(units, places)
        for one in [one for one in parents if one[0] not in (units[:-1], units[:-2])]:
            del parents[one]
        return runs

    return lean


def _with_last_stage(base: Trained, start: Trained) -> Trained:
    """Returns a run whose last stage is as at the start."""
    # A head that has fitted the training images leaves the new unit no gradient: on 200
    # images of corrupted CIFAR-10 greedy selection then chose a subset 7 points below
    # exhaustive selection's, and with a head that begins anew one as good.
    if base.network is None or start.network is None:
        return base
    last = start.network.stages[-1].name
    params = {**base.network.params, last: start.network.params[last]}
    return base._replace(network=base.network._replace(params=params))


def _forgetful(
    many: Callable, traces: Traces
) -> Callable[[Subset, Sequence[FoldSeed]], Iterator[Score]]:
    """Returns a score that drops all programs after every `CANDIDATES` subsets."""
    # Each subset has programs of its own, and JAX's caches keep a program after ours have
    # dropped it.
    recent: set[Subset] = set()

    def forgetting(units: Subset, places: Sequence[FoldSeed]) -> Iterator[Score]:
        subset = tuple(units)
        if subset not in recent and len(recent) == CANDIDATES:
            traces.clear()
            forget_programs()
            recent.clear()
        recent.add(subset)
        yield from many(subset, places)

    return forgetting


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

"""Variants of a method tried on validation data, the best of which is tested once."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.task import Task
from subtune_jax.errors import InputError, require_function, require_type
from subtune_jax.metrics import Metric
from subtune_jax.network import Network, require_network
from subtune_jax.programs import Traces
from subtune_jax.training.loop import FitResult, How, traces_for, train
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import make_plan
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.training.settings import Settings, require_settings
from subtune_jax.training.sweep import OtherProgramError, Run, lane_plans, train_lanes


class Trial(NamedTuple):
    """A run of a variant, by its best epoch on validation data.

    value: that epoch's score, `None` where no epoch had one. status: `ok`, `diverged` or
    `failed`, with the error that ended it. steps: those of the run, up to where it
    diverged. seconds: of a lane, its share. trainable, fixed: the values of that epoch, as
    `FitResult` has them; in `Tuned`, the best trial's alone.
    """

    variant: Any
    value: float | None
    epoch: int
    status: str
    steps: int
    seconds: float
    network: Network | None
    trainable: Any = None
    fixed: Any = None
    error: Exception | None = None

    def __repr__(self) -> str:
        score = "no score" if self.value is None else f"{self.value:.4g}"
        end = f"at epoch {self.epoch}" if self.status == "ok" else self.status
        if self.status == "failed":
            end = f"failed ({self.error})"
        return f"Trial({self.variant!r}: {score} {end}, {self.seconds:.0f} s)"


class Tuned(NamedTuple):
    """The best trial, and all of them; `best` is `None` where every run diverged."""

    best: Trial | None
    trials: tuple[Trial, ...]

    def __repr__(self) -> str:
        return f"Tuned(best {self.best!r} of {len(self.trials)} trials)"

    @property
    def network(self) -> Network:
        """The chosen network; raises `ArithmeticError` where every run diverged or failed."""
        if self.best is None or self.best.network is None:
            raise ArithmeticError("every run diverged: try lower learning rates")
        return self.best.network

    def __call__(self, data: Dataset) -> np.ndarray:
        """Returns the chosen network's outputs for all examples, as `test_once` asks."""
        return predict(self.network, data)


def tune(
    network: Network,
    phases_of: Callable[[Any], Phase | Sequence[Phase]],
    variants: Sequence[Any],
    task: Task,
    *,
    key: jax.Array,
    settings: Settings = Settings(),
    checkpoint: str | Path | None = None,
    lanes: bool | None = None,
    resume: str | None = None,
    progress: Callable[[Trial], None] = lambda trial: None,
) -> Tuned:
    """Returns the run of the variant and epoch that score best on `task.validation`.

    phases_of(variant) -> the phases of its run, as `fit` takes them; of equal scores the
    first variant is chosen. All runs start from `key`. lanes: whether all variants run as
    one program (see `sweep`); default: on an accelerator, where they run on one device,
    are not checkpointed and can be lanes. progress(trial) is called after each run. With a
    `checkpoint` folder a run is saved in it, and a finished one is not repeated. A run
    that fails is a failed trial, and the others go on; its error is raised if all fail.
    The other arguments are those of `fit`. Raises `InputError` for no variant, and where
    lanes meet a mesh or a checkpoint.
    """
    require_network(network)
    require_type(Task, task=task)
    require_function(1, phases_of=phases_of)
    if not isinstance(variants, Sequence):
        raise InputError(f"variants must be a list, got {type(variants).__name__}")
    if not variants:
        raise InputError("tune needs at least one variant to try")
    require_settings(settings)
    place = settings.place
    if lanes and (place is not None or checkpoint is not None):
        raise InputError("lanes fill one device: leave place and checkpoint out")
    alone = place is None and checkpoint is None and len(variants) > 1
    alone = alone and jax.default_backend() != "cpu"

    score = partial(validation_score, task.metrics["validation"], task.validation)
    traces = traces_for(network)
    if lanes is not False and alone or lanes:
        runs = [Run(phases_of(variant), key) for variant in variants]
        try:
            trials = _in_lanes(
                traces, network, runs, variants, task.train, score, settings
            )
        except OtherProgramError:
            if lanes:
                raise
        else:
            for trial in trials:
                progress(trial)
            return tuned_of(trials)

    def run(variant: Any, phases: Phase | Sequence[Phase]) -> FitResult:
        plan = make_plan(
            network, phases, task.train, key=key, settings=settings, traces=traces
        )
        folder = Path(checkpoint) / slug(variant) if checkpoint else None
        # `tune` has its own progress.
        return train(plan, How(score, "max", folder, progress=False, resume=resume))

    trials = ()
    for variant in variants:
        trial = tried(run, variant, phases_of)
        progress(trial)
        trials = lean((*trials, trial))
    return tuned_of(trials)


def validation_score(metric: Metric, data: Dataset, candidate: Network) -> float:
    """Returns the metric on validation data; a checkpoint is known by both."""
    return evaluate(candidate, data, metric)


def tried(
    run: Callable[[Any, Any], FitResult], variant: Any, phases_of: Callable
) -> Trial:
    """Returns the trial of a run; whatever its error, other trials go on."""
    begin, phases = time.perf_counter(), ()
    result: FitResult | Exception
    try:
        phases = phases_of(variant)
        result = run(variant, phases)
    except Exception as error:
        result = error
    return trial_of(variant, phases, result, time.perf_counter() - begin)


def tuned_of(trials: tuple[Trial, ...], others: tuple[Trial, ...] = ()) -> Tuned:
    """Returns the best of trials, beside `others` that ended before. Raises the first error
    where all failed and none diverged: it is of what they have in common."""
    every, last = (*others, *trials), trials or others
    if all(one.status == "failed" for one in last):
        raise last[0].error  # type: ignore[misc]
    return Tuned(best_of(trials), lean(every))


def lean(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """Returns the trials, of which only the best has its tuning's values: they may be as
    many as the network's."""
    best = best_of(trials)
    return tuple(
        one if one is best else one._replace(trainable=None, fixed=None)
        for one in trials
    )


def slug(variant: Any) -> str:
    """Returns a variant's name for a folder: its values joined by `_`."""
    values = variant if isinstance(variant, tuple) else (variant,)
    return "_".join(map(str, values))


def _in_lanes(
    traces: Traces,
    network: Network,
    runs: Sequence[Run],
    variants: Sequence[Any],
    data: Dataset,
    score: Callable,
    settings: Settings,
) -> tuple[Trial, ...]:
    begin = time.perf_counter()
    plans = lane_plans(traces, network, runs, data, settings)
    results = train_lanes(plans, score)
    seconds = (time.perf_counter() - begin) / len(runs)
    return tuple(
        trial_of(variant, run.phases, result, seconds)
        for variant, run, result in zip(variants, runs, results, strict=True)
    )


def trial_of(
    variant: Any,
    phases: Phase | Sequence[Phase],
    result: FitResult | Exception,
    seconds: float,
) -> Trial:
    """Returns the trial of a run that ended, or of one that diverged or failed: its best
    epoch before that counts, if there was one."""
    phases = (phases,) if isinstance(phases, Phase) else phases
    status, steps = "ok", sum(phase.steps for phase in phases)
    kept = result if isinstance(result, FitResult) else None
    error = result if isinstance(result, Exception) else None
    if error is not None:
        status = "diverged" if isinstance(error, ArithmeticError) else "failed"
        steps = getattr(error, "step", steps)
        kept = getattr(error, "kept", None)
    trial = Trial(variant, None, 0, status, steps, seconds, None, error=error)
    if kept is None:
        return trial
    return trial._replace(
        value=float(np.nanmax(kept.scores)),
        epoch=kept.epoch,
        network=kept.network,
        trainable=kept.trainable,
        fixed=kept.fixed,
    )


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial with the highest score, the first of equals; `None` without one."""
    scored = [
        (trial.value, -i) for i, trial in enumerate(trials) if trial.value is not None
    ]
    return trials[-max(scored)[1]] if scored else None

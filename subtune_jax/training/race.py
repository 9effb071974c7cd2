"""A race of variants: most are tried for a few steps, and the best go on."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from subtune_jax.data.task import Task
from subtune_jax.errors import InputError, require_function, require_type, require_whole
from subtune_jax.network import Network, require_network
from subtune_jax.training.loop import FitResult, How, traces_for, train
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import make_plan
from subtune_jax.training.resume import AheadError
from subtune_jax.training.settings import Settings, require_settings
from subtune_jax.training.tune import (
    Trial,
    Tuned,
    slug,
    tried,
    tuned_of,
    validation_score,
)

RACE = "race.json"  # beside the runs' checkpoints
TOLD = ("value", "epoch", "status", "steps", "seconds")  # of a trial


def race(
    network: Network,
    phases_of: Callable[[Any, int], Phase | Sequence[Phase]],
    variants: Sequence[Any],
    task: Task,
    *,
    rungs: Sequence[int],
    key: jax.Array,
    halving: int = 3,
    settings: Settings = Settings(),
    checkpoint: str | Path | None = None,
    resume: str | None = None,
    progress: Callable[[Trial], None] = lambda trial: None,
) -> Tuned:
    """Returns the run that scores best on `task.validation` of those that won a race.

    All variants train for `rungs[0]` steps; one of every `halving` of them, rounded up, goes
    on to `rungs[1]` steps, and so on (successive halving, Jamieson and Talwalkar 2016). A
    run goes on where it stopped, so that phases_of(variant, steps) must give phases whose
    last one has a constant rate. What wins is decided by the best epoch so far, of equals
    by the order of the variants. progress(trial) is called after each part of a run; the
    trials of the result are the last one of every variant, in the order of their ends.
    With a `checkpoint` folder the same call goes on after a stop, and a finished race is
    returned at once. The
    other arguments are those of `tune`. Raises `InputError` for no variant and for rungs
    that do not rise.
    """
    require_network(network)
    require_settings(settings)
    require_type(Task, task=task)
    require_function(2, phases_of=phases_of)
    _require_rungs(variants, rungs, halving)

    score = partial(validation_score, task.metrics["validation"], task.validation)
    traces = traces_for(network)

    def trial(variant: Any, steps: int, home: Path) -> Trial:
        """Returns the trial of a part of a run; of one that has gone on since, as told."""

        def run(variant: Any, phases: Any) -> FitResult:
            plan = make_plan(
                network, phases, task.train, key=key, settings=settings, traces=traces
            )
            how = How(score, "max", home / slug(variant), progress=False, resume=resume)
            try:
                return train(plan, how)
            except AheadError:
                if name in told:
                    raise
                return train(plan, how._replace(checkpoint=None))  # raced anew

        told, name = _told_before(home), f"{slug(variant)} {steps}"
        one = tried(run, variant, lambda variant: phases_of(variant, steps))
        if isinstance(one.error, AheadError) and name in told:
            return one._replace(**told[name], error=None)
        if one.status != "failed":
            _tell(home, {**told, name: {f: getattr(one, f) for f in TOLD}})
        return one

    ended: list[Trial] = []
    with TemporaryDirectory() as folder:
        home = Path(checkpoint or folder)
        running = list(variants)
        for steps in rungs[:-1]:
            trials = [_told(trial(one, steps, home), progress) for one in running]
            order = sorted(range(len(trials)), key=lambda i: _rank(trials[i]))
            kept = order[: -(-len(trials) // halving)]
            going = [i for i in sorted(kept) if trials[i].value is not None]
            ended += [trials[i] for i in range(len(trials)) if i not in going]
            running = [trials[i].variant for i in going]
        last = [_told(trial(one, rungs[-1], home), progress) for one in running]
    return tuned_of(tuple(last), tuple(ended))


def _told_before(home: Path) -> dict[str, dict[str, Any]]:
    """Returns what the parts of runs gave, by variant and steps: a run that has gone on no
    longer holds what it was before."""
    file = home / RACE
    try:
        told = json.loads(file.read_text()) if file.is_file() else {}
        return {name: {f: one[f] for f in TOLD} for name, one in told.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{file} is damaged: remove it, and runs that went on are raced anew"
        ) from None


def _tell(home: Path, told: dict[str, dict[str, Any]]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    new = home / f"{RACE}.new"
    new.write_text(json.dumps(told, indent=1))
    os.replace(new, home / RACE)


def _told(trial: Trial, progress: Callable[[Trial], None]) -> Trial:
    progress(trial)
    return trial


def _rank(trial: Trial) -> float:
    """Returns a number that is lowest for the best trial; `sorted` keeps the order of
    equals."""
    return float("inf") if trial.value is None else -trial.value


def _require_rungs(variants: Sequence[Any], rungs: Sequence[int], halving: int) -> None:
    if not isinstance(variants, Sequence) or not variants:
        raise InputError("race needs a list of at least one variant to try")
    if not rungs:
        raise InputError("race needs at least one rung: how many steps until a choice")
    require_whole(**{f"rung {i}": steps for i, steps in enumerate(rungs)})
    require_whole(halving=halving)
    if sorted(set(rungs)) != list(rungs) or halving < 2:
        raise InputError(
            f"rungs must rise and halving be 2 or more, got {list(rungs)} and {halving}"
        )

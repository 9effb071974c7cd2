"""Trials: runs of a method at each of its variants, the best of which is tested once."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.report.results import Row
from experiments.targets import Task
from subtune_jax.data.folders import crop_and_flip
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Network
from subtune_jax.training import mesh
from subtune_jax.training.loop import DivergedError, fit
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate

CHOICES = ("each", "first")  # the seeds that choose among variants


class Fitting(NamedTuple):
    """What all trials of an experiment share."""

    batch_size: int
    norm: str = "stored"
    augment: bool = False
    loss: Callable = cross_entropy


class Trial(NamedTuple):
    """A finished run of a variant: its validation row, and the network (if it has one)."""

    row: Row
    network: Network | None


def choose(
    task: Task,
    fitting: Fitting,
    variants: Sequence[Any],
    make: Callable[[Any], list[Phase]],
    seed: int,
    *,
    devices: int = 1,
    folder: Path | None = None,
    after: Callable[[Network], Iterable[Row]] = lambda network: (),
) -> Iterator[Row]:
    """Yields a validation row per variant, then the test row of the best one and epoch.

    `make(variant)` gives the phases; a variant is a NamedTuple that goes into its row.
    Without variants the network is tested as it is. With a folder, runs are
    checkpointed there, and finished ones not repeated. The rows of `after`, of the
    chosen network, come last.
    """
    begin, tried = time.perf_counter(), []
    for variant in variants:
        saved = None if folder is None else folder / "_".join(map(str, variant))
        tried.append(trial(task, fitting, make(variant), seed, devices, saved))
        tried[-1].row.update(variant._asdict())
        yield tried[-1].row
    best = best_of(tried) if tried else Trial({}, task.network)
    yield chosen_row(task, best) | {"seconds": time.perf_counter() - begin}
    if best.network is not None:
        yield from after(best.network)


def trial(
    task: Task,
    fitting: Fitting,
    made: Sequence[Phase],
    seed: int,
    devices: int,
    checkpoint: Path | None,
) -> Trial:
    """Returns one run; the epoch is the best on validation data, also of a run that
    diverged after it."""
    begin, row = time.perf_counter(), {"split": "validation"}
    try:
        fitted = fit(
            task.network,
            made,
            task.train,
            key=jax.random.key(seed),
            loss=fitting.loss,
            norm=fitting.norm,
            batch_size=fitting.batch_size,
            augment=crop_and_flip() if fitting.augment else None,
            validate=lambda network: evaluate(
                network, task.validation, task.metrics["validation"]
            ),
            place=mesh.placement(devices),
            checkpoint=checkpoint,
        )
        status, steps = "ok", sum(phase.steps for phase in made)
    except (
        DivergedError
    ) as error:  # its best epoch before that counts, if there was one
        fitted, status, steps = error.kept, "diverged", error.step
    except ArithmeticError:  # no epoch had a score: it is lost as well
        fitted, status, steps = None, "diverged", sum(phase.steps for phase in made)
    row |= {"value": None, "status": status, "steps": steps}
    row |= {"seconds": time.perf_counter() - begin}
    if fitted is None:
        return Trial(row, None)
    best = {"value": float(np.nanmax(fitted.scores)), "epoch": fitted.epoch}
    return Trial(row | best, fitted.network)


def best_of(tried: Sequence[Trial]) -> Trial:
    """Returns the best run on validation data, the first of equals; one without a network
    where none has one."""
    whole = [run for run in tried if run.network is not None]
    return max(whole, key=lambda run: run.row["value"]) if whole else Trial({}, None)


def chosen_row(task: Task, best: Trial) -> Row:
    """Returns the test row of a chosen run, or of a network that was not trained."""
    row = {"split": "test", "rate": None, "epoch": 0, "steps": 0}
    if best.network is None:
        return row | {"value": None, "status": "diverged"}
    read = {"split": "test", "value": read_test_once(best.network, task)}
    return row | {"status": "ok"} | best.row | read


def read_test_once(network: Network, task: Task) -> float:
    """Returns the test score in percent, of the one network that was chosen."""
    return evaluate(network, task.test, task.metrics["test"])

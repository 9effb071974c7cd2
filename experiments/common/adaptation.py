"""Runs of a strategy for a new head, and the curves of learning and forgetting that they
leave."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np
import tyro

from experiments.common.flags import Positive, by_data, first, one_of
from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.common.strategies import HEAD, Strategy, new_network, phases_of
from experiments.common.study import Context, choice_of_first_seed
from experiments.common.trials import on_mesh
from subtune_jax.data.task import Task, test_once
from subtune_jax.errors import InputError
from subtune_jax.evaluation import watch_forgetting, with_head_statistics
from subtune_jax.network import Network
from subtune_jax.selection.select import count_trainable
from subtune_jax.training.loop import DivergedError, FitResult, fit
from subtune_jax.training.mesh import placement
from subtune_jax.training.phases import check
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.training.settings import Settings
from subtune_jax.training.watch import Record, early_then_log
from subtune_jax.tree import count

CURVES = (
    "target",
    "source",
    "loss",
    "entropy",
    "energy",
    "energy_initial",
    "energy_learnt",
)


class Job(NamedTuple):
    """A strategy on a target task under a seed."""

    shift: str | None
    method: str
    seed: int


@dataclass(frozen=True)
class Recipe:
    """How a strategy is run; all of it is our choice: the paper could not be read."""

    learning_rates: Annotated[
        tuple[Positive[float], ...] | None,
        *by_data((3e-3,), (3e-4, 1e-3, 3e-3)),
    ] = None
    """Learning rates tried; the best after the last step on validation data is tested."""
    optimizer: Annotated[str, *one_of("adam", "sgd")] = "adam"
    """The rule of all that trains: Adam, or SGD with a momentum of 0.9."""
    steps: Annotated[Positive[int] | None, *by_data(100, 1000)] = None
    """Updates of a run."""
    batch_size: Annotated[Positive[int] | None, *by_data(20, 64)] = None
    """Examples per step."""
    choose: Annotated[str, *one_of("each", "first")] = "first"
    """Which seeds choose a learning rate: each, or the first for all."""

    SMOKE: ClassVar = {"steps": 10, "learning_rates": first}


RecipeFlags = Annotated[Recipe, tyro.conf.OmitArgPrefixes]
Remembered = Callable[[Network], float]


def require_strategies(
    settings: Any, task: Task, strategies: Sequence[Strategy]
) -> None:
    """Raises `InputError` for a mesh or strategies that cannot be, before anything runs."""
    recipe = settings.recipe
    placement(settings.common.mesh)(np.zeros(recipe.batch_size))
    if len(task.train.y) < recipe.batch_size:
        raise InputError(
            f"--batch-size {recipe.batch_size} is more than the {len(task.train.y)} "
            "training examples"
        )
    for strategy in strategies:
        network = new_network(task.network, strategy, jax.random.key(0))
        phases = phases_of(network, strategy, recipe.optimizer, recipe.steps, 1.0)
        check(network, phases, settings_of(strategy, recipe, settings.common.mesh))


def settings_of(strategy: Strategy, recipe: Recipe, mesh: int) -> Settings:
    """Returns what all phases share: a normalized head has the batch's statistics."""
    return Settings(
        batch_size=recipe.batch_size,
        norm=[HEAD] if strategy.normalize != "none" else "stored",
        place=on_mesh(mesh),
    )


def adapted(
    task: Task,
    strategy: Strategy,
    recipe: Recipe,
    rate: float,
    seed: int,
    mesh: int = 1,
    remembered: Remembered | None = None,
) -> tuple[FitResult | DivergedError, Network]:
    """Returns a run, or how it diverged, and the network that it started from; its records
    are there where `remembered` scores the source."""
    start = new_network(task.network, strategy, jax.random.key(seed))
    start, held = with_head_statistics(start, task.train), task.validation
    # A record takes as long as two steps. These are 49 of the first 100 steps: the area
    # under a curve is 0.03 points from that of all of them, and 0.5 at most (126 curves).
    try:
        run: FitResult | DivergedError = fit(
            start,
            phases_of(start, strategy, recipe.optimizer, recipe.steps, rate),
            task.train,
            key=jax.random.key(seed),
            watch=remembered and watch_forgetting(start, held, remembered),
            watch_at=early_then_log(20, 40),
            progress=False,
            settings=settings_of(strategy, recipe, mesh),
        )
    except DivergedError as error:
        run = error
    return run, start


def curve_of(records: Sequence[Record]) -> list[list[float]]:
    """Returns what a row holds of a run: for each record its step and `CURVES`."""
    return [
        [r.step, *(float(f"{r.value[name]:.4g}") for name in CURVES)] for r in records
    ]


def records_of(row: Row) -> list[Record]:
    """Returns the records of a row."""
    return [
        Record(int(step), dict(zip(CURVES, values, strict=True)))
        for step, *values in row["curve"]
    ]


def adapted_rows(
    task: Task,
    strategy: Strategy,
    recipe: Recipe,
    job: Any,
    context: Context,
    *,
    remembered: Remembered,
    about: Row,
    mesh: int = 1,
) -> Iterator[Row]:
    """Yields a row for each learning rate that is tried, and the test row of the best: with
    the curve of its run."""
    choice = choice_of_first_seed(job, context, recipe.choose)
    rates = recipe.learning_rates or ()
    if choice is not None:
        rates = (choice["learning_rate"],)
    about = about | {
        "metric": task.metric,
        "total_params": count(task.network.params),
        "commit": results.commit(),
    }
    # A curve takes as long as the run that it is of, or longer: of several rates the best
    # alone has one, in a second run, which is the same to the last bit.
    watched = remembered if len(rates) == 1 else None
    best: tuple[Row, FitResult] | None = None
    for rate in rates:
        run, row = _tried(task, strategy, recipe, rate, job.seed, mesh, watched)
        context.progress(f"learning_rate {rate:g}: {_described(row)}")
        yield about | row
        if row["status"] == "ok" and (best is None or row["value"] > best[0]["value"]):
            best = row, run
    if best is None:
        yield about | row | {"split": "test", "learning_rate": None, "curve": []}
        return
    row, run = best
    if watched is None:
        run, _ = adapted(
            task, strategy, recipe, row["learning_rate"], job.seed, mesh, remembered
        )
    score = test_once(lambda data: predict(run.network, data), task)[task.metric]
    row = (
        about | row | {"split": "test", "value": score, "curve": curve_of(run.records)}
    )
    context.keep(task.network, run.network, row)
    yield row


def _tried(
    task: Task,
    strategy: Strategy,
    recipe: Recipe,
    rate: float,
    seed: int,
    mesh: int,
    remembered: Remembered | None,
) -> tuple[Any, Row]:
    """Returns a run, and the row of its learning rate."""
    began = time.perf_counter()
    run, start = adapted(task, strategy, recipe, rate, seed, mesh, remembered)
    ended = isinstance(run, FitResult)
    return run, {
        "split": "validation",
        "learning_rate": rate,
        "value": evaluate(run.network, task.validation) if ended else None,
        "status": "ok" if ended else "diverged",
        "steps": recipe.steps if ended else run.step,
        "trainable_params": _trained(start, strategy, recipe),
        "seconds": time.perf_counter() - began,
    }


def _trained(network: Network, strategy: Strategy, recipe: Recipe) -> int:
    last = phases_of(network, strategy, recipe.optimizer, recipe.steps, 1.0)[-1]
    return count_trainable(network, last.labels)


def _described(row: Row) -> str:
    score = "diverged" if row["value"] is None else f"{row['value']:.1f}"
    return f"{score} on validation data, {row['seconds']:.0f} s"

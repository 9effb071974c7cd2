"""The rows of a method's trials: a validation row for each, and one test row."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.common.report.results import Row
from subtune_jax.data.batches import Dataset
from subtune_jax.data.task import Task, test_once
from subtune_jax.training.mesh import Placement, placement
from subtune_jax.training.predict import predict
from subtune_jax.training.tune import Trial, Tuned, tune


def trial_rows(
    task: Task,
    phases_of: Callable[[Any], Any],
    variants: Sequence[tuple],
    *,
    progress: Callable[[str], None],
    keep: Callable[[Trial, Row], None],
    after: Callable[[Trial], Iterable[Row]] = lambda trial: (),
    outputs: bool = False,
    tuner: Callable[..., Tuned] = tune,
    **how: Any,
) -> Iterator[Row]:
    """Yields a validation row per variant, then the test row of the best one and epoch.

    A variant is a NamedTuple that goes into its row. Without variants the network is
    tested as it is. Scores of `task.also` follow, then with `outputs` those of every test
    example, then the rows of `after` of the chosen trial. keep(trial, row): called with it
    and its test row. tuner: `tune`, or what takes its place; `how` is what it takes beside.
    """
    begin = time.perf_counter()
    best, network = None, task.network
    if variants:
        tuned = tuner(
            task.network,
            phases_of,
            variants,
            task,
            progress=lambda trial: progress(_described(trial)),
            **how,
        )
        yield from map(_validation_row, tuned.trials)
        best, network = tuned.best, tuned.best and tuned.best.network
    scores, tested = {}, []

    def predictor(data: Dataset) -> np.ndarray:
        tested.append((predict(network, data), data.y))
        return tested[-1][0]

    if network is not None:
        scores = test_once(predictor, task)
    row = _test_row(best, variants, scores.pop(task.metric, None))
    yield row | {"seconds": time.perf_counter() - begin}
    if network is not None and best is not None:
        keep(best, {"metric": task.metric, **row})
    for name, value in scores.items():
        yield {"split": "test", "also": name, "value": value}
    if outputs and tested:
        yield _outputs_row(*tested[0]) | {"value": row["value"]}
    if network is not None and best is not None:
        yield from after(best)


def on_mesh(devices: int) -> Placement | None:
    """Returns how batches are split over devices; `None` for one, where lanes may run."""
    return None if devices == 1 else placement(devices)


def _validation_row(trial: Trial) -> Row:
    row = {"split": "validation", "value": trial.value, "status": trial.status}
    row |= {"steps": trial.steps, "seconds": trial.seconds}
    row |= {} if trial.value is None else {"epoch": trial.epoch}
    row |= {"error": str(trial.error)} if trial.status == "failed" else {}
    return row | trial.variant._asdict()


def _test_row(best: Trial | None, variants: Sequence[tuple], value: Any) -> Row:
    """Of a network that was not trained, or whose every run diverged, nothing is chosen."""
    row = {"split": "test", "learning_rate": None, "epoch": 0, "steps": 0}
    if best is None:
        status = "diverged" if variants else "ok"
        return row | {"value": value, "status": status}
    return row | _validation_row(best) | {"split": "test", "value": value}


def _outputs_row(outputs: np.ndarray, labels: np.ndarray) -> Row:
    """Returns what an interval by test examples needs: numbers, or the classes chosen."""
    classes = labels.dtype.kind in "iu"
    short = outputs.argmax(-1) if classes else np.ravel(outputs).round(3)
    return {
        "split": "outputs",
        "outputs": short.tolist(),
        "labels": np.ravel(labels).round(3).tolist(),
    }


def _described(trial: Trial) -> str:
    score = trial.status if trial.value is None else f"{trial.value:.1f}"
    if trial.status == "failed":
        score = f"failed ({trial.error})"
    named = trial.variant._asdict().items()
    values = " ".join(
        f"{k} {v}" if isinstance(v, str) else f"{k} {v:g}" for k, v in named if v
    )
    return f"{values}: {score} on validation data, {trial.seconds:.0f} s"

"""Jobs of an experiment: each is done once, and its rows are kept when it is done."""

import re
import shutil
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.cli import Common, as_config, progress
from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.methods import Variant, labels
from experiments.surgical import Recipe, tune
from experiments.targets import Target, Task
from subtune_jax.models.load import load_pretrained
from subtune_jax.selection.select import count_trainable
from subtune_jax.tree import count

FREE = ("out", "seeds", "data_dir", "weights")  # they do not change what a run is


def run_jobs(
    jobs: Sequence[Hashable],
    job_of: Callable[[Row], Hashable],
    rows_of: Callable[[Any, list[Row], Path], Iterable[Row]],
    *,
    name: str,
    settings: Any,
    base: str | None,
    free: Iterable[str] = (),
) -> tuple[Path, list[Row]]:
    """Runs the jobs that are not done in the folder; returns the folder and all its rows.

    A job is done when it has a row that is not of split `validation`. `rows_of(job, rows
    so far, folder)` makes a job's rows, with checkpoints in its own folder if it wants
    any; a job that a kill cut short is done again from them. `base` is the fingerprint
    of the weights, and `free` as in `results.open_folder`, beside what is free always.
    """
    out = settings.common.out or Path("runs") / name
    config = as_config(settings) | {"base": base}
    with results.lock(out):
        rows = results.open_folder(out, config, {*FREE, *free})
        done = {job_of(row) for row in rows if row["split"] != "validation"}
        rows = [row for row in rows if job_of(row) in done]
        results.keep(out, rows)
        todo = [job for job in jobs if job not in done]
        for job in _announced(todo, name):
            slug = re.sub(r"[^a-zA-Z0-9-]", "_", "-".join(map(str, job)))
            made = list(rows_of(job, rows, out / "checkpoints" / slug))
            results.append(out, made)
            shutil.rmtree(out / "checkpoints" / slug, ignore_errors=True)
            rows += made
    return out, rows


def _announced(jobs: Sequence[Hashable], name: str) -> Iterator[Hashable]:
    """Yields the jobs under a progress bar; without a terminal, a line before each."""
    with progress() as bar:
        for number, job in enumerate(bar.track(jobs, description=name), start=1):
            if not sys.stderr.isatty():
                parts = " ".join(map(str, job))
                print(f"{name} {number}/{len(jobs)}: {parts}", file=sys.stderr)
            yield job


def choice_of_first(
    rows: Iterable[Row], job_of: Callable, job: tuple, choose: str
) -> Row | None:
    """Returns the test row whose choice a job takes: the first one of the first seed (a
    job's second entry). `None` where the job is to choose for itself: it is of the first seed,
    `choose` is `each`, or the first seed found nothing that did not diverge."""
    if choose == "each" or job[1] == 0:
        return None
    first = tuple(job[:1] + (0,) + job[2:])
    row = next(r for r in rows if r["split"] == "test" and tuple(job_of(r)) == first)
    return row if row["value"] is not None and row["rate"] is not None else None


def variant_of_first(
    rows: Iterable[Row], job_of: Callable, job: tuple, choose: str
) -> Variant | None:
    """Returns the rate and setting that `choice_of_first` finds, or `None`."""
    known = choice_of_first(rows, job_of, job, choose)
    return known and Variant(known["rate"], known["setting"])


def base_of(target: Target, common: Common) -> str | None:
    """Returns the fingerprint of the weights; the digits' are of their code."""
    return (
        None
        if target.dataset == "digits"
        else load_pretrained(common.weights).source.fingerprint
    )


def task_name(target: Target, shift: str) -> str:
    """Returns what a task is called in tables: its shift, or its data set, or both."""
    dataset = target.breeds or target.dataset.rstrip("/").split("/")[-1]
    if shift == "none":
        return dataset
    shifted_already = "corrupted" in target.dataset
    return f"{dataset}, {shift}" if shifted_already else shift


def tuned_rows(
    task: Task,
    recipe: Recipe,
    target: Target,
    job: tuple[str, int, str],
    *,
    name: str,
    folder: Path,
    devices: int,
    chosen: Variant | None = None,
) -> Iterator[Row]:
    """Yields the rows of a method on a task; job is (shift, seed, method).

    Runs of seconds (digits) are not checkpointed; others are, in `folder`.
    """
    shift, seed, method = job
    trained = labels(task.network, method)
    fixed = {
        "experiment": name,
        "dataset": target.dataset,
        "shift": shift,
        "task": task_name(target, shift),
        "method": method,
        "seed": seed,
        "metric": task.metric,
        "trainable_params": count_trainable(task.network, trained),
        "total_params": count(task.network.params),
        "commit": results.commit(),
    }
    kept = None if target.dataset == "digits" else folder
    for row in tune(
        task, recipe, method, seed, devices=devices, folder=kept, chosen=chosen
    ):
        yield fixed | row

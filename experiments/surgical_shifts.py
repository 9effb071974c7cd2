"""Which block to tune depends on the kind of shift (surgical fine-tuning, Lee et al. 2023).

Claim (their figure 2): under input-level shift it is best to tune the first block,
under feature-level shift a middle one, under output-level shift the last layer.

    python -m experiments.surgical_shifts      # embedded digits, 2 minutes on two cores

For each method, rate and epoch are chosen by accuracy on target validation data, then
the test part is read once. Results: the README's table.
"""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import jax
import numpy as np

from experiments.cli import Common, Flags, as_config, main, progress
from experiments.targets import Target, TargetFlags, Task, make_task
from subtune_jax.cost import cost_table
from subtune_jax.data.batches import Batch, steps_per_epoch
from subtune_jax.data.images import crop_and_flip
from subtune_jax.data.shifts import SHIFTS
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.evaluation.metrics import cross_entropy
from subtune_jax.network import (
    FROZEN,
    NORM_MODES,
    Labels,
    Network,
    stages_with_batch_stats,
)
from subtune_jax.reporting import results, tables
from subtune_jax.reporting.plots import grouped_bars
from subtune_jax.reporting.results import Row
from subtune_jax.selection.labels import select, trainable_count, unit_patterns
from subtune_jax.training import mesh
from subtune_jax.training.loop import Diverged, fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate
from subtune_jax.tree import count

NAME = "surgical_shifts"
ENTRIES = {"all": ".*", "last": "head"}  # methods that are no unit's name


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=Target)
    methods: tuple[str, ...] = ("none", "block1", "block2", "block3", "last", "all")
    """What is tuned: none, all, last (the head), units of the network, or patterns over
    parameter paths."""
    rates: tuple[float, ...] | None = None
    """Learning rates tried; digits 1e-2 1e-3, else 1e-3 1e-4 (papers/surgical.md 2.3)."""
    last_rates: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    """Rates tried for last (papers/surgical.md 2.3)."""
    epochs: int = 15
    """Passes over the target images (15: paper, CIFAR-C)."""
    batch_size: int | None = None
    """Images per step; digits 20, else 64 (official code)."""
    l2: float = 1e-4
    """L2 inside Adam, not decoupled (official code)."""
    augment: bool = False
    """Random crops and flips of training images (official code: none)."""
    norm: str = "stored"
    """Statistics of batch norms: stored (paper), tuned or batch."""
    cost: bool = False
    """Print what a step of each method costs, and stop."""
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        self.target.check(self.common)
        require_positive(epochs=self.epochs)
        if self.batch_size is not None:
            require_positive(batch_size=self.batch_size)
        for flag in ("methods", "rates", "last_rates"):
            if getattr(self, flag) == ():
                raise InputError(f"--{flag.replace('_', '-')} needs at least one value")
        for rate in (*(self.rates or ()), *self.last_rates):
            adam(rate, l2=self.l2)
        if self.norm not in NORM_MODES:
            raise unknown("norm mode", self.norm, NORM_MODES)

    def resolved(self) -> "Settings":
        """Returns the settings with flags that were left out filled in, and `--smoke`."""
        small = self.target.dataset == "digits"
        made = replace(
            self,
            rates=self.rates or ((1e-2, 1e-3) if small else (1e-3, 1e-4)),
            batch_size=self.batch_size or (20 if small else 64),
        )
        if not self.common.smoke:
            return made
        one_seed = replace(self.common, seeds=1)
        return replace(made, epochs=1, rates=made.rates[:1], common=one_seed)


def method_labels(network: Network, method: str) -> Labels:
    """Returns what a method trains: `none`, `all`, `last`, a unit or a path pattern.

    A unit that is in the table `surgical` is the paper's. Raises `InputError` for
    anything else.
    """
    if method == "none":
        return jax.tree.map(lambda _: FROZEN, network.params)
    entry = ENTRIES.get(method, method)
    if unit_patterns(network, f"surgical:{entry}"):
        entry = f"surgical:{entry}"
    named = method in ENTRIES or unit_patterns(network, entry)
    if not named and re.fullmatch(r"\w+", method):
        units = [unit for table in network.units.values() for unit in table]
        raise unknown("method", method, dict.fromkeys(("none", *ENTRIES, *units)))
    return select(network, {"tuned": [entry]})


def run_steps(task: Task, settings: Settings, labels: Labels) -> int:
    """Returns the steps of a run: full passes over the training images."""
    drop = bool(stages_with_batch_stats(task.network.stats, labels, settings.norm))
    size = settings.batch_size
    return settings.epochs * steps_per_epoch(len(task.train.y), size, drop=drop)


def tune(
    task: Task, settings: Settings, method: str, seed: int, folder: Path | None = None
) -> Iterator[Row]:
    """Yields a validation row per rate, then the test row of the best rate and epoch.

    With a folder, runs are checkpointed there, and finished ones not repeated.
    """
    labels = method_labels(task.network, method)
    best, best_score, chosen = task.network, -1.0, {}
    begin = time.perf_counter()
    for rate in rates_of(settings, method):
        started = time.perf_counter()
        row = {"split": "validation", "rate": rate, "value": None, "status": "diverged"}
        try:
            phase = Phase(
                labels, adam(rate, l2=settings.l2), run_steps(task, settings, labels)
            )
            fitted = fit(
                task.network,
                phase,
                task.train,
                key=jax.random.key(seed),
                norm=settings.norm,
                batch_size=settings.batch_size,
                augment=crop_and_flip() if settings.augment else None,
                validate=lambda network: evaluate(network, task.validation),
                place=mesh.placement(settings.common.mesh),
                checkpoint=None if folder is None else folder / f"rate_{rate}",
            )
            score = max(fitted.scores)
            row |= {"value": score, "status": "ok", "epoch": fitted.epoch}
            row |= {"steps": phase.steps}
        except Diverged as error:
            row["steps"] = error.step
        yield row | {"seconds": time.perf_counter() - started}
        if row["status"] == "ok" and score > best_score:
            best, best_score, chosen = fitted.network, score, row
    yield test_row(task, method, best, chosen) | {
        "seconds": time.perf_counter() - begin
    }


def rates_of(settings: Settings, method: str) -> tuple[float, ...]:
    """Returns the rates to try; the last layer has its own."""
    if method == "none":
        return ()
    return settings.last_rates if method in ("last", "head") else settings.rates


def test_row(task: Task, method: str, best: Network, chosen: Row) -> Row:
    """Returns the row of the one network that was chosen (`none` needs no choice)."""
    row = {"rate": None, "epoch": 0, "steps": 0, **chosen, "split": "test"}
    if method != "none" and not chosen:
        return row | {"value": None, "status": "diverged"}
    return row | {"value": read_test_once(best, task), "status": "ok"}


def read_test_once(network: Network, task: Task) -> float:
    """Returns the test accuracy in percent, of the one network that was chosen."""
    return evaluate(network, task.test)


Job = tuple[str, int, str]  # shift, seed, method


def jobs(settings: Settings) -> list[Job]:
    """Returns every job once, in order."""
    seeds = range(settings.common.seeds)
    every = product(settings.target.shifts, seeds, settings.methods)
    return list(dict.fromkeys(every))


def job_of(row: Row) -> Job:
    """Returns the job that wrote a row."""
    return row["shift"], row["seed"], row["method"]


def run(settings: Settings) -> None:
    """Runs what the folder does not have yet, then writes the table and the picture."""
    settings.check()
    settings = settings.resolved()
    target, common = settings.target, settings.common
    task_of = lru_cache(1)(lambda name, seed: make_task(target, common, name, seed))
    require_runnable(settings, task_of(target.shifts[0], 0))
    if settings.cost:
        print(cost_report(settings, task_of(target.shifts[0], 0)))
        return
    out = common.out or Path("runs") / NAME
    free = {"out", "seeds", "methods", "shift", "data_dir", "weights", "mesh", "cost"}
    rows = results.open_folder(out, as_config(settings), free)
    done = {job_of(row) for row in rows if row["split"] == "test"}
    results.keep(out, [row for row in rows if job_of(row) in done])
    with progress() as bar:
        todo = [job for job in jobs(settings) if job not in done]
        for job in bar.track(todo, description=NAME):
            run_job(settings, task_of(*job[:2]), job, out)
    report(out)


def require_runnable(settings: Settings, task: Task) -> None:
    """Raises `InputError` before anything is written if a method or size cannot be."""
    place = mesh.placement(settings.common.mesh)
    place(np.zeros(settings.batch_size))
    for method in settings.methods:
        labels = method_labels(task.network, method)
        if method != "none":
            run_steps(task, settings, labels)


def run_job(settings: Settings, task: Task, job: Job, out: Path) -> None:
    """Adds the rows of a job to the folder; its checkpoints go when they are there."""
    (name, seed, method), dataset = job, settings.target.dataset
    labels = method_labels(task.network, method)
    fixed = {
        "experiment": NAME,
        "dataset": dataset,
        "shift": name,
        "task": name if name != "none" else dataset.split("/")[-1],
        "method": method,
        "seed": seed,
        "metric": "accuracy",
        "trainable_params": trainable_count(task.network.params, labels),
        "total_params": count(task.network.params),
        "commit": results.commit(),
    }
    folder = (
        out / "checkpoints" / f"{name}-{seed}-{re.sub(r'[^a-zA-Z0-9]', '_', method)}"
    )
    kept = None if dataset == "digits" else folder  # digits take seconds
    rows = [fixed | row for row in tune(task, settings, method, seed, kept)]
    results.append(out, rows)
    shutil.rmtree(folder, ignore_errors=True)


def cost_report(settings: Settings, task: Task) -> str:
    """Returns the table of what one step of each method costs, beside full tuning."""
    images = task.train.take(np.arange(settings.batch_size) % len(task.train.y))
    batch = Batch(images.x, images.y, np.ones(settings.batch_size, np.float32))
    rule = adam(1.0, l2=settings.l2)
    phases = {
        method: Phase(method_labels(task.network, method), rule, 1)
        for method in settings.methods
        if method != "none"
    }
    return cost_table(
        task.network, phases, batch, loss=cross_entropy, norm=settings.norm
    )


def report(out: Path) -> None:
    """Writes summary.md and accuracy.png from the rows, and prints the table."""
    tests = [r for r in results.read(out) if r["split"] == "test"]
    table = tables.pivot(tests, "task", "method")
    results.write(
        out / "summary.md",
        f"Test accuracy in percent, mean (standard error).\n\n{table}\n",
    )
    bars: dict = {}
    for (name, method), values in tables.grouped(tests, "task", "method").items():
        bars.setdefault(name, {})[method] = tables.mean_and_error(values)
    if not bars:
        print("no run has a test accuracy: see the status in results.jsonl")
        return
    titles = {n: f"{n}\n({SHIFTS[n].level}-level shift)" for n in bars if n in SHIFTS}
    colors = {"none": "#bab0ab", "all": "#bab0ab"}
    grouped_bars(bars, out / "accuracy.png", titles=titles, colors=colors)
    print(f"{table}\n\n{out}/summary.md  {out}/accuracy.png  {out}/results.jsonl")


if __name__ == "__main__":
    main(run, Settings, __doc__)

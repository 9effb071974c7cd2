"""Which block to adapt without labels, while the test images stream in (MEMO, TENT).

Claim (papers/surgical.md 2.7): MEMO that keeps its weights from image to image (online)
deteriorates when it tunes everything, and improves when it tunes the first block.

    python -m experiments.surgical_test_time      # embedded digits
    python -m experiments.surgical_test_time --dataset cifar10_corrupted/gaussian_noise_5 \\
        --data-dir DATA --weights resnet26_gn_cifar10

Two CPU cores: a minute, and half an hour. The paper's figures, online: none 67.8, all
69.7, first layer 75.4, last 67.8, at an unknown severity and rate. Ours stand in the
README, made from results/. The network adapts without labels; where several rates are
given, the one with the best accuracy over a stream of validation images is taken, and
then the test stream is read once.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.cli import Common, Flags, main
from experiments.common.report import results, tables
from experiments.common.report.plots import curves
from experiments.common.report.results import Row
from experiments.jobs import base_of, choice_of_first, run_jobs, task_name
from experiments.methods import SCHEMES, labels
from experiments.streams import ADAPTATIONS, Way, stream_outputs
from experiments.targets import Target, TargetFlags, Task, make_task
from experiments.trials import CHOICES
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.labels import NORM_MODES
from subtune_jax.selection.select import count_trainable
from subtune_jax.training.predict import predict
from subtune_jax.tree import count

NAME = "surgical_test_time"
MODES = ("online", "episodic")
STREAMS = Target(train_examples=10, validation_examples=300, test_examples=300)


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = STREAMS
    methods: tuple[str, ...] = ("none", "all", "block1", "last")
    """What adapts: none, all, last (the head), units of the network (norms: what TENT's
    paper tunes), or patterns over parameter paths."""
    adaptations: tuple[str, ...] = ("memo",)
    """memo (marginal entropy over AugMix copies of an image) or tent (entropy of a
    batch)."""
    modes: tuple[str, ...] = ("online", "episodic")
    """online (weights stay from input to input) or episodic (they start anew)."""
    copies: int = 32
    """AugMix copies of an image (32: MEMO's code)."""
    memo_rates: tuple[float, ...] = (5e-3,)
    """Rates tried for plain SGD, one step an image (5e-3: MEMO's code)."""
    tent_rates: tuple[float, ...] = (1e-3,)
    """Rates tried for Adam, one step a batch (1e-3: TENT on CIFAR, recalled)."""
    choose: str = "each"
    """Which seeds choose a rate on their validation stream: each, or the first alone."""
    tent_batch: int = 50
    """Images of a batch of TENT."""
    norm: str = "stored"
    """Statistics of batch norms: stored, tuned or batch (TENT's paper)."""
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        self.target.check(self.common)
        require_positive(copies=self.copies, tent_batch=self.tent_batch)
        for rate in (*self.memo_rates, *self.tent_rates):
            require_positive(learning_rate=rate)
        for flag in ("methods", "adaptations", "modes", "memo_rates", "tent_rates"):
            if not getattr(self, flag):
                raise InputError(f"--{flag.replace('_', '-')} needs at least one value")
        for method in set(self.methods) & set(SCHEMES):
            raise InputError(
                f"{method} is a schedule of training and cannot adapt to a stream: "
                "expected none, all, last, a unit or a pattern"
            )
        for name, known in (("adaptations", ADAPTATIONS), ("modes", MODES)):
            for value in set(getattr(self, name)) - set(known):
                raise unknown(name.removesuffix("s"), value, known)
        if self.norm not in NORM_MODES:
            raise unknown("norm mode", self.norm, NORM_MODES)
        if self.choose not in CHOICES:
            raise unknown("choice of --choose", self.choose, CHOICES)
        if self.common.mesh != 1:
            raise InputError("a stream is adapted on one device: leave --mesh at 1")

    def resolved(self) -> "Settings":
        """Returns the settings with the default shift filled in, and `--smoke`."""
        small = self.target.dataset == "digits"
        noise = ("gaussian_noise",) if small and self.target.shift is None else None
        target = replace(self.target, shift=noise or self.target.shift)
        if not self.common.smoke:
            return replace(self, target=target)
        target = replace(target, validation_examples=10, test_examples=6)
        common = replace(self.common, seeds=1)
        return replace(self, target=target, common=common, copies=4, tent_batch=3)


class Job(NamedTuple):
    """A stream: which shift and seed, and how what adapts to it."""

    shift: str
    seed: int
    adaptation: str
    mode: str
    method: str


def jobs(settings: Settings) -> list[Job]:
    """Returns every job once, in order."""
    seeds, target = range(settings.common.seeds), settings.target
    ways = settings.adaptations, settings.modes, settings.methods
    return list(dict.fromkeys(Job(*j) for j in product(target.shifts, seeds, *ways)))


def job_of(row: Row) -> Job:
    """Returns the job that wrote a row."""
    return Job(*(row[name] for name in Job._fields))


def run(settings: Settings) -> None:
    """Runs what the folder does not have yet, then writes the table and the picture."""
    settings.check()
    settings = settings.resolved()
    target, common = settings.target, settings.common
    task_of = lru_cache(1)(lambda name, seed: make_task(target, common, name, seed))
    first = task_of(target.shifts[0], 0)
    for method in settings.methods:
        labels(first.network, method)

    def rows_of(job: Job, rows: list[Row], folder: Path) -> Iterator[Row]:
        known = choice_of_first(rows, job_of, job, settings.choose)
        return stream_rows(task_of(*job[:2]), settings, job, known and known["rate"])

    base, free = base_of(target, common), {"methods", "shift", "modes", "adaptations"}
    found = jobs(settings)
    out, made = run_jobs(
        found, job_of, rows_of, name=NAME, settings=settings, base=base, free=free
    )
    report(out, made)


def stream_rows(
    task: Task, settings: Settings, job: Job, rate: float | None
) -> Iterator[Row]:
    """Yields a row per rate over the validation images, then one over the test's.

    With a `rate`, or one alone to try, nothing is to be chosen.
    """
    grid = {"memo": settings.memo_rates, "tent": settings.tent_rates}[job.adaptation]
    tried = [] if job.method == "none" or rate or len(grid) == 1 else grid
    rows = [stream_row(task, settings, job, one, "validation") for one in tried]
    yield from rows
    whole = [row for row in rows if row["value"] is not None] or rows[:1]
    best = max(whole, key=lambda row: row["value"] or 0.0, default={"rate": grid[0]})
    yield stream_row(task, settings, job, rate or best["rate"], "test")


def stream_row(
    task: Task, settings: Settings, job: Job, rate: float, split: str
) -> Row:
    """Returns the row of a stream: accuracy over all images, and after each of them."""
    begin, data = time.perf_counter(), getattr(task, split)
    way = Way(job.adaptation, rate, job.mode == "episodic", job.seed)
    sizes = {"copies": settings.copies, "batch": settings.tent_batch}
    chosen = labels(task.network, job.method)
    if job.method == "none":
        outputs, status = predict(task.network, data), "ok"
    else:
        outputs, status = stream_outputs(
            task.network, data, chosen, way, norm=settings.norm, **sizes
        )
    hits = np.argmax(outputs, axis=1) == data.y[: len(outputs)]
    whole, seen = len(hits) == len(data.y), np.arange(1, len(hits) + 1)
    return job._asdict() | {
        "experiment": NAME,
        "dataset": settings.target.dataset,
        "task": task_name(settings.target, job.shift),
        "metric": task.metric,
        "split": split,
        "rate": rate,
        "value": task.metrics[split](outputs, data.y) if whole else None,
        "status": status,
        "curve": np.round(100 * np.cumsum(hits) / seen, 1).tolist(),
        "trainable_params": count_trainable(task.network, chosen),
        "total_params": count(task.network.params),
        "steps": len(hits),
        "seconds": time.perf_counter() - begin,
        "commit": results.commit(),
    }


def report(out: Path, rows: list[Row]) -> None:
    """Writes summary.md and stream.png from the rows, and prints the table."""
    tests = [row for row in rows if row["split"] == "test"]
    table = stream_table(tests)
    results.write(
        out / "summary.md",
        f"Accuracy in percent over the stream, mean (standard error).\n\n{table}\n",
    )
    lines = stream_curves(tests)
    if lines:
        axes = {"xlabel": "images seen", "ylabel": "accuracy so far (%)"}
        curves(lines, out / "stream.png", **axes)
    print(f"{table}\n\n{out}/summary.md  {out}/results.jsonl")


def stream_curves(tests: list[Row]) -> dict[str, dict[str, tuple]]:
    """Returns `{stream: {method: (images seen, accuracy so far)}}`, online, mean of the
    seeds whose streams were whole."""
    found: dict[str, dict[str, list]] = {}
    for row in tests:
        if row["mode"] == "online" and row["status"] == "ok":
            found.setdefault(_line(row), {}).setdefault(row["method"], []).append(
                row["curve"]
            )
    return {
        line: {
            method: (np.arange(1, len(many[0]) + 1), np.mean(many, axis=0))
            for method, many in drawn.items()
        }
        for line, drawn in found.items()
    }


def _line(row: Row) -> str:
    return f"{row['task']}: {row['adaptation']}, {row['mode']}"


def stream_table(rows: list[Row]) -> str:
    """Returns accuracy by adaptation and mode, and by what adapted."""
    named = [row | {"stream": _line(row)} for row in rows]
    return tables.markdown(tables.cells(named, "stream", "method"), "target")


if __name__ == "__main__":
    main(run, Settings, __doc__)

"""Which block to tune, by the number of target images.

Claim (papers/surgical.md 2.2, its figure 3, which was not read in numbers): tuning the
right block keeps its lead over full tuning down to one image a class.

    python -m experiments.surgical_size      # embedded digits
    python -m experiments.surgical_size --dataset cifar10_corrupted/gaussian_noise_5 \\
        --data-dir DATA --weights resnet26_gn_cifar10

Two CPU cores: two minutes, and an hour and a half. Ours stand in the README, made from
results/. Rate and epoch are chosen on validation data, which do not shrink, and then the
test part is read once.
"""

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
from experiments.jobs import base_of, run_jobs, tuned_rows, variant_of_first
from experiments.surgical import Recipe, RecipeFlags, require_runnable
from experiments.targets import Target, TargetFlags, Task, make_task
from subtune_jax.data.splits import balanced_indices
from subtune_jax.errors import InputError, require_positive

NAME = "surgical_size"


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=Target)
    sizes: tuple[int, ...] | None = None
    """Target images for training; digits 10 20 50 100 (the first is one a class), else 10
    30 100 300 1000. The smaller are parts of the largest."""
    methods: tuple[str, ...] = ("none", "block1", "block3", "last", "all")
    """What is tuned, as in surgical_shifts."""
    min_steps: int = 60
    """The fewest steps of a run: few images are passed more often than --epochs."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        self.target.check(self.common)
        self.recipe.check()
        require_positive(min_steps=self.min_steps)
        for size in self.sizes or ():
            require_positive(sizes=size)
        if not self.methods or self.sizes == ():
            raise InputError("--methods and --sizes need at least one value")
        if self.target.train_examples is not None or self.target.groups:
            raise InputError(
                "--sizes says how many images train, balanced over classes: leave out "
                "--train-examples and --groups"
            )

    def resolved(self) -> "Settings":
        """Returns the settings with flags that were left out filled in, and `--smoke`."""
        smoke, small = self.common.smoke, self.target.dataset == "digits"
        sizes = self.sizes or ((10, 20, 50, 100) if small else (10, 30, 100, 300, 1000))
        made = replace(self, sizes=sizes, recipe=self.recipe.resolved(small, smoke))
        if not smoke:
            return made
        common = replace(self.common, seeds=1)
        return replace(made, sizes=sizes[:2], common=common, min_steps=1)

    def recipe_of(self, size: int) -> Recipe:
        """Returns the recipe with epochs enough for `min_steps` steps."""
        per_epoch = max(1, size // self.recipe.batch_size)
        epochs = max(self.recipe.epochs, -(-self.min_steps // per_epoch))
        return replace(self.recipe, epochs=epochs)


class Job(NamedTuple):
    """A method on a shift's target of a size, under a seed."""

    shift: str
    seed: int
    size: int
    method: str


def jobs(settings: Settings) -> list[Job]:
    """Returns every job once, in order."""
    seeds, target = range(settings.common.seeds), settings.target
    sizes, methods = settings.sizes, settings.methods
    every = product(target.shifts, seeds, sizes, methods)
    return list(dict.fromkeys(Job(*job) for job in every))


def job_of(row: Row) -> Job:
    """Returns the job that wrote a row."""
    return Job(*(row[name] for name in Job._fields))


def run(settings: Settings) -> None:
    """Runs what the folder does not have yet, then writes the table and the picture."""
    settings.check()
    settings = settings.resolved()
    target, common = settings.target, settings.common

    largest = replace(target, train_examples=max(settings.sizes))
    task_of = lru_cache(1)(lambda shift, seed: make_task(largest, common, shift, seed))
    for size in settings.sizes:
        first = sized(task_of(target.shifts[0], 0), size, 0)
        recipe = settings.recipe_of(size)
        require_runnable(first, recipe, settings.methods, common.mesh)

    def rows_of(job: Job, rows: list[Row], folder: Path) -> Iterator[Row]:
        made = tuned_rows(
            sized(task_of(job.shift, job.seed), job.size, job.seed),
            settings.recipe_of(job.size),
            target,
            (job.shift, job.seed, job.method),
            name=NAME,
            folder=folder,
            devices=common.mesh,
            chosen=variant_of_first(rows, job_of, job, settings.recipe.choose),
        )
        return (row | {"size": job.size} for row in made)

    base, free = base_of(target, common), {"methods", "shift"}
    found = jobs(settings)
    out, made = run_jobs(
        found, job_of, rows_of, name=NAME, settings=settings, base=base, free=free
    )
    report(out, made)


def sized(task: Task, size: int, seed: int) -> Task:
    """Returns the task with `size` of its training images, and all else as it is."""
    rng = np.random.default_rng([seed, 1])
    index = balanced_indices(task.train.y, {"train": size}, rng)["train"]
    return task._replace(train=task.train.take(index))


def report(out: Path, rows: list[Row]) -> None:
    """Writes summary.md and sizes.png from the rows, and prints the table."""
    tests = [row for row in rows if row["split"] == "test"]
    table = size_table(tests)
    note = "Test accuracy in percent, mean (standard error)."
    results.write(out / "summary.md", f"{note}\n\n{table}\n")
    lines = size_curves(tests)
    if lines:
        curves(lines, out / "sizes.png", xlabel="target images", log=True)
    drawn = f"{out}/sizes.png  " if lines else ""
    print(f"{table}\n\n{out}/summary.md  {drawn}{out}/results.jsonl")


def size_table(tests: list[Row]) -> str:
    """Returns accuracy by target and size, and by method."""
    named = [row | {"line": f"{row['task']}, {row['size']}"} for row in tests]
    return tables.markdown(tables.cells(named, "line", "method"), "target, images")


def size_curves(tests: list[Row]) -> dict[str, dict[str, tuple]]:
    """Returns `{task: {method: (sizes, means, errors)}}`."""
    made: dict[str, dict[str, list]] = {}
    for (task, method, size), values in tables.grouped(
        tests, "task", "method", "size"
    ).items():
        point = (size, *tables.mean_and_error(values))
        made.setdefault(task, {}).setdefault(method, []).append(point)
    return {
        task: {
            method: tuple(np.array(sorted(points)).T)
            for method, points in lines.items()
        }
        for task, lines in made.items()
    }


if __name__ == "__main__":
    main(run, Settings, __doc__)

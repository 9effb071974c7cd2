"""Which block to tune, by the number of target images.

Claim (surgical fine-tuning, Lee et al. 2023, figure 3, which was not read in numbers):
tuning the right block keeps its lead over full tuning down to one image a class.

    python -m experiments.surgical_size      # embedded digits
    python -m experiments.surgical_size --dataset cifar10_corrupted/gaussian_noise_5 \\
        --data-dir DATA --weights resnet26_gn_cifar10

Two CPU cores: two minutes, and an hour and a half. Ours are in the documentation, made
from results/. Learning rate and epoch are chosen on validation data, which do not shrink,
and then the test part is read once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive, by_data
from experiments.common.images import Target, TargetFlags
from experiments.common.report import tables
from experiments.common.report.plots import curves
from experiments.common.report.results import Row
from experiments.common.study import Config, Context, Study, main
from experiments.common.surgical import (
    Recipe,
    RecipeFlags,
    require_runnable,
    tuned_rows,
)


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=Target)
    sizes: Annotated[
        tuple[Positive[int], ...] | None,
        *by_data((10, 20, 50, 100), (10, 30, 100, 300, 1000)),
    ] = None
    """Target images for training, the smaller parts of the largest; ten digits are one a
    class."""
    methods: tuple[str, ...] = ("none", "block1", "block3", "last", "all")
    """What is tuned, as in surgical_shifts."""
    min_steps: Positive[int] = 60
    """The fewest steps of a run: few images are passed more often than --epochs."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"sizes": lambda sizes: sizes[:2], "min_steps": 1}

    def check(self, settings: Any) -> None:
        """Raises `InputError` for the first combination that cannot be."""
        if self.target.train_examples is not None or self.target.groups:
            raise st.InputError(
                "--sizes says how many images train, balanced over classes: leave out "
                "--train-examples and --groups"
            )

    def completed(self) -> "Settings":
        """Returns the settings whose task has the images of the largest size."""
        target = replace(self.target, train_examples=max(self.sizes))
        return replace(self, target=target)

    def of_size(self, size: int) -> "Settings":
        """Returns the settings with epochs enough for `min_steps` steps."""
        per_epoch = max(1, size // self.recipe.batch_size)
        epochs = max(self.recipe.epochs, -(-self.min_steps // per_epoch))
        return replace(self, recipe=replace(self.recipe, epochs=epochs))


class Job(NamedTuple):
    """A method on a shift's target of a size, under a seed."""

    shift: str
    seed: int
    size: int
    method: str


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every method on every target of every size under every seed."""
    sizes, methods = settings.sizes, settings.methods
    for size in sizes:
        recipe = settings.of_size(size).recipe
        require_runnable(sized(task, size, 0), recipe, methods, settings.common.mesh)
    seeds = range(settings.common.seeds)
    return map(Job._make, product(settings.target.shifts, seeds, sizes, methods))


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Returns the rows of a method on a target of a size."""
    part = sized(task, job.size, job.seed)
    return tuned_rows(settings.of_size(job.size), part, job, context)


def sized(task: st.Task, size: int, seed: int) -> st.Task:
    """Returns the task with `size` of its training images, and all else as it is."""
    rng = np.random.default_rng([seed, 1])
    index = st.data.balanced_indices(task.train.y, {"train": size}, rng)["train"]
    return task._replace(train=task.train.take(index))


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns what the table holds, and the table."""
    note = "Test accuracy in percent, mean (standard error)."
    return f"{note}\n\n{size_table(rows, config)}"


def size_table(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by target and size, and by method."""
    tests = [row for row in rows if row["split"] == "test"]
    named = [row | {"line": f"{row['task']}, {row['size']}"} for row in tests]
    return tables.markdown(tables.cells(named, "line", "method"), "target, images")


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws sizes.png: accuracy by the number of target images."""
    if lines := size_curves([row for row in rows if row["split"] == "test"]):
        curves(lines, out / "sizes.png", xlabel="target images", log=True)


def size_curves(tests: Sequence[Row]) -> dict[str, dict[str, tuple]]:
    """Returns `{task: {method: (sizes, means, errors)}}`."""
    points: dict[str, dict[str, list]] = {}
    groups = tables.grouped(tests, "task", "method", "size")
    for (task, method, size), values in groups.items():
        point = (size, *tables.mean_and_error(values))
        points.setdefault(task, {}).setdefault(method, []).append(point)
    return {
        task: {m: tuple(np.array(sorted(line)).T) for m, line in lines.items()}
        for task, lines in points.items()
    }


STUDY = Study(
    settings=Settings,
    job=Job,
    name="surgical_size",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary, "by_size": size_table},
    draw=draw,
    free=("methods", "shift"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

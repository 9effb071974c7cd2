"""Which way of tuning is best, by the number of training images (SubTuning, Kaplun et al.
2023).

Claim (their figures 1 and 4): a chosen subset gains most over linear probing and over tuning
everything where data are few; with more data layers nearer the input do better.

    python -m experiments.subtuning_data_size      # embedded digits
    python -m experiments.subtuning_data_size --weights WEIGHTS --new-head \\
        --dataset cifar100 --data-dir DATA

The paper's figures were not read; ours are in the documentation, made
from results/. The smaller training parts are parts of the largest; subset and rank of LoRA
are searched anew in folds of each of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

import subtune_jax as st
from experiments.common import search, search_tables
from experiments.common.flags import Common, Flags, Positive, by_data, one_of
from experiments.common.images import TargetFlags, with_digits
from experiments.common.report import tables
from experiments.common.report.plots import curves
from experiments.common.report.results import Row
from experiments.common.search import LORA, SEARCHES, Greedy, GreedyFlags
from experiments.common.study import Config, Context, Study, main
from experiments.common.subtuning import (
    NAMES,
    Recipe,
    RecipeFlags,
    new_task,
    require_searchable,
)


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=new_task)
    sizes: Annotated[
        tuple[Positive[int], ...] | None,
        *by_data((50, 100, 200), (500, 1000, 2000)),
    ] = None
    """Training images, balanced over classes."""
    methods: tuple[str, ...] = ("block1", "block2", "block3")
    """Blocks of surgical fine-tuning that are tuned beside the head, everything, the
    subset and LoRA."""
    search: Annotated[str, *one_of(*SEARCHES)] = "cheap"
    """How subsets are searched, as in subtuning_greedy."""
    greedy: GreedyFlags = field(default_factory=Greedy)
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {
        "sizes": lambda sizes: sizes[:2],
        "methods": lambda _: ("block1",),
    }

    def check(self, settings: Any) -> None:
        """Raises `InputError` for the first combination that cannot be."""
        if self.target.train_examples is not None or self.target.groups:
            raise st.InputError(
                "--sizes says how many images train: leave out --train-examples and --groups"
            )

    def completed(self) -> "Settings":
        """Returns the settings whose task has the images of the largest size."""
        target = replace(self.target, train_examples=max(self.sizes))
        return with_digits(replace(self, target=target))


class Job(NamedTuple):
    """A search, or a method tuned on all images of a size under a seed."""

    shift: str
    size: int
    method: str
    seed: int


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns for each size the searches, then every method under every seed."""
    for size in settings.sizes:
        require_searchable(sized(task, size), settings)
    blocks = [f"surgical:{name}" for name in settings.methods]
    for block in blocks:
        st.selection.match(task.network, block)
    methods = [*NAMES, *blocks, f"SubTuning, {settings.search}", LORA]
    seeds = range(settings.common.seeds)
    for shift, size in product(settings.target.shifts, settings.sizes):
        yield Job(shift, size, f"search {settings.search}", 0)
        yield Job(shift, size, f"search {LORA}", 0)
        yield from (Job(shift, size, *one) for one in product(methods, seeds))


def sized(task: st.Task, size: int) -> st.Task:
    """Returns the task with `size` of its training images, and all else as it is."""
    rng = np.random.default_rng([0, 1])
    index = st.data.balanced_indices(task.train.y, {"train": size}, rng)["train"]
    return task._replace(train=task.train.take(index))


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Returns the row of a search, or the test row of a method."""
    part = sized(task, job.size)
    return iter([search.searched_row(settings, part, job, context)])


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by size and method, and what was chosen."""
    note = (
        "Test accuracy in percent of the last step, mean (standard error) over seeds."
    )
    return f"{note}\n\n{by_size(rows, config)}\n\n{chosen(rows, config)}"


def by_size(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by task and size, and by method."""
    tests = [row for row in rows if row["split"] == "test"]
    named = [row | {"line": f"{row['task']}, {row['size']}"} for row in tests]
    return tables.markdown(tables.cells(named, "line", "method"), "target, images")


def chosen(rows: Sequence[Row], config: Config) -> str:
    """Returns what each search chose and took, by task and size."""
    named = [row | {"task": f"{row['task']}, {row['size']}"} for row in rows]
    return search_tables.by_search(named, config)


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws sizes.png: accuracy by the number of training images."""
    tests = [row for row in rows if row["split"] == "test"]
    points: dict[str, dict[str, list]] = {}
    groups = tables.grouped(tests, "task", "method", "size")
    for (name, method, size), values in groups.items():
        point = (size, *tables.mean_and_error(values))
        points.setdefault(name, {}).setdefault(method, []).append(point)
    lines = {
        name: {m: tuple(np.array(sorted(line)).T) for m, line in methods.items()}
        for name, methods in points.items()
    }
    if lines:
        curves(lines, out / "sizes.png", xlabel="training images", log=True)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="subtuning_data_size",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary, "by_size": by_size, "chosen": chosen},
    draw=draw,
    free=("methods", "shift"),
    keeps=True,
    draws_once=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

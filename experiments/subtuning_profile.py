"""How well each layer does when it is tuned alone: the finetuning profile (SubTuning,
Kaplun et al. 2023).

Claim (their figures 1 to 3): accuracy is not monotone in depth, and a layer with fewer
parameters can do better; the profile depends on the network, its pretraining and the task.

    python -m experiments.subtuning_profile      # embedded digits
    python -m experiments.subtuning_profile --weights WEIGHTS --new-head \\
        --dataset cifar100 --train-examples 1000 --data-dir DATA

Two CPU cores: two and a half minutes for the first. Accuracy is that of the folds left out,
never of test data: a profile is made to choose by. Figures that a reviewer of the paper
read: ResNet-50 on CIFAR-10, first block about 94, block 14 about 95.5. Ours are in the
documentation, made from results/.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive
from experiments.common.images import TargetFlags, with_digits
from experiments.common.report import tables
from experiments.common.report.plots import grouped_bars, heat_maps
from experiments.common.report.results import Row
from experiments.common.search import finite, journal_of
from experiments.common.study import Config, Context, Study, main
from experiments.common.subtuning import (
    Recipe,
    RecipeFlags,
    Subset,
    about_row,
    is_balanced,
    new_task,
    require_searchable,
    scorer,
    units_of,
)

REFERENCES = {"head alone": (), "all blocks": ("blocks",)}


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=new_task)
    window: Positive[int] = 1
    """How many consecutive units are tuned together (the paper: 1 to 3)."""
    pairs: bool = False
    """Tune every pair of units, instead of runs."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    def check(self, settings: Any) -> None:
        """Raises `InputError` for the first combination that cannot be."""
        if self.pairs and self.window != 1:
            raise st.InputError("--pairs takes the place of --window: give one of them")

    completed = with_digits


class Job(NamedTuple):
    """The profile of a shift's task under a seed."""

    shift: str
    seed: int


def subsets(network: st.Network, settings: Settings) -> list[Subset]:
    """Returns what is tuned: pairs, or runs of units."""
    units = units_of(network, settings.recipe)
    if settings.pairs:
        return st.selection.pairs(units)
    return st.selection.windows(units, settings.window)


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns a profile of every shift under every seed."""
    require_searchable(task, settings)
    subsets(task.network, settings)
    seeds = range(settings.common.seeds)
    return map(Job._make, product(settings.target.shifts, seeds))


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Returns a row for each subset, with its accuracy on every fold."""
    begin, recipe = time.perf_counter(), settings.recipe
    tried = subsets(task.network, settings)
    every = [*REFERENCES.values(), *tried]
    most = recipe.folds * len(every)
    balanced = is_balanced(settings)
    with journal_of(settings, job, context, f"seed {job.seed}") as journal:
        left = most - len(journal.scores)
        score = scorer(
            task,
            recipe,
            context.progress,
            balanced=balanced,
            most=left,
            seed=job.seed,
        )
        values = st.selection.profile(every, score, folds=recipe.folds, journal=journal)
        for units in every:
            runs = [journal.scores[units, fold, 0] for fold in range(recipe.folds)]
            yield about_row(settings, task, job) | {
                "split": "folds",
                "tuned": name_of(units),
                "units": list(units),
                "value": finite(np.mean(values[units])),
                "values": values[units],
                "flops": sum(run.flops for run in runs),
                "seconds": (time.perf_counter() - begin) / len(every),
            }


def name_of(units: Subset) -> str:
    """Returns what a subset is called in tables."""
    references = {units: name for name, units in REFERENCES.items()}
    return references.get(units, " + ".join(units))


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns what the table holds, and the table."""
    note = "Accuracy on folds in percent, mean (standard error over seeds)."
    return f"{note}\n\n{by_unit(rows, config)}"


def by_unit(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by what was tuned, and by task."""
    return tables.markdown(tables.cells(rows, "tuned", "task"), "tuned", bold=False)


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws profile.png: a bar for each subset, or a map of all pairs."""
    cells = tables.cells(rows, "task", "tuned")
    if settings.pairs:
        pairs = [row for row in rows if len(row["units"]) == 2]
        maps: dict[str, dict[tuple[str, str], float]] = {}
        for row in pairs:
            place = tuple(row["units"])
            mean = cells[row["task"], row["tuned"]].mean
            maps.setdefault(row["task"], {})[place] = mean
        heat_maps(maps, out / "profile.png")
        return
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for (name, tuned), cell in cells.items():
        if np.isfinite(cell.mean):
            bars.setdefault(name, {})[tuned] = (cell.mean, cell.error)
    gray = dict.fromkeys(REFERENCES, "#bab0ab")
    label = "accuracy on folds (%)"
    grouped_bars(bars, out / "profile.png", colors=gray, ylabel=label)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="subtuning_profile",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary, "by_unit": by_unit},
    draw=draw,
    free=("shift",),
    draws_once=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

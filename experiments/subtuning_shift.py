"""Which layers greedy selection takes under each corruption (SubTuning, Kaplun et al. 2023).

Claim (their section on corrupted CIFAR-10): a subset chosen for each corruption is better
than tuning everything, the head alone, or one fixed block; few layers suffice, and the last
or the one before it is the first to be chosen.

    python -m experiments.subtuning_shift      # embedded digits
    python -m experiments.subtuning_shift --dataset cifar10_corrupted/gaussian_noise_5 \\
        --split test --train-examples 200 --data-dir DATA --weights WEIGHTS

The paper's figures were not read; ours are in the documentation, made
from results/. A corruption of our own is a `--shift`, as jpeg_compression_5, of a clean set.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import subtune_jax as st
from experiments.common import search, search_tables
from experiments.common.flags import Common, Flags, one_of
from experiments.common.images import TargetFlags, with_digits
from experiments.common.report import tables
from experiments.common.report.plots import grouped_bars
from experiments.common.report.results import Row
from experiments.common.search import SEARCHES, Greedy, GreedyFlags
from experiments.common.study import Config, Study, main
from experiments.common.subtuning import (
    NAMES,
    Job,
    Recipe,
    RecipeFlags,
    new_task,
    require_searchable,
    units_of,
)


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=new_task)
    search: Annotated[str, *one_of(*SEARCHES)] = "shared"
    """How subsets are searched, as in subtuning_greedy."""
    greedy: GreedyFlags = field(default_factory=Greedy)
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    completed = with_digits


def methods_of(network: st.Network, settings: Settings) -> list[str]:
    """Returns what is tuned: the head, everything, each surgical block, and the subset."""
    table = network.units.get("surgical", {})
    blocks = [f"surgical:{unit}" for unit in table if unit != "last"]
    return [*NAMES, *blocks, f"SubTuning, {settings.search}"]


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns the search of each shift, then every method under every seed."""
    require_searchable(task, settings)
    methods = methods_of(task.network, settings)
    return search.jobs_of(settings, [settings.search], methods)


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by task and method, and what was chosen."""
    note = (
        "Test accuracy in percent of the last step, mean (standard error) over seeds."
    )
    parts = [note, by_task(rows, config), search_tables.by_search(rows, config)]
    return "\n\n".join(parts)


def by_task(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by task and method."""
    tests = [row for row in rows if row["split"] == "test"]
    return tables.markdown(tables.cells(tests, "task", "method"), "target")


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws chosen.png: how many tasks chose each unit, and chose it first."""
    searches = [row for row in rows if row["split"] == "search"]
    units = units_of(task.network, settings.recipe)
    # The first step of a walk that adds: of one that takes away there is no first choice.
    forward = [r for r in searches if not r["path"][0][0] and len(r["path"]) > 1]
    first = Counter(row["path"][1][0][0] for row in forward)
    every = Counter(unit for row in searches for unit in row["units"])
    bars = {
        name: {unit: (float(counts[unit]), 0.0) for unit in units}
        for name, counts in (("chosen first", first), ("chosen", every))
    }
    if searches:
        grouped_bars(bars, out / "chosen.png", ylabel="tasks")


STUDY = Study(
    settings=Settings,
    job=Job,
    name="subtuning_shift",
    jobs=jobs,
    rows=search.searched_rows,
    tables={
        "summary": summary,
        "by_task": by_task,
        "by_search": search_tables.by_search,
    },
    draw=draw,
    free=("shift",),
    keeps=True,
    draws_once=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

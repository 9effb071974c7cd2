"""Which subset of layers to tune, found step by step (SubTuning, Kaplun et al. 2023).

Claim (their table 1): a subset chosen by greedy selection is at least as good as linear
probing and as tuning everything, where there are a thousand training images.

    python -m experiments.subtuning_greedy      # embedded digits
    python -m experiments.subtuning_greedy --weights WEIGHTS --new-head \\
        --dataset cifar100 --train-examples 1000 --data-dir DATA

Two CPU cores: three minutes; with --searches exhaustive the second takes hours. The paper's
figures were not read; ours are in the documentation, made from results/. The search sees
the training images alone, in folds; the subset is then tuned on all of them, and tested
once for each seed. Every evaluation of the search is a line of
`journal_SHIFT_SEARCH.jsonl` in the folder, and is never repeated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import subtune_jax as st
from experiments.common import search, search_tables
from experiments.common.flags import Common, Flags, one_of
from experiments.common.images import TargetFlags, with_digits
from experiments.common.report.results import Row
from experiments.common.search import LORA, SEARCHES, Greedy, GreedyFlags
from experiments.common.study import Config, Study, main
from experiments.common.subtuning import (
    NAMES,
    Job,
    Recipe,
    RecipeFlags,
    new_task,
    require_searchable,
)


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=new_task)
    searches: Annotated[tuple[str, ...], *one_of(*SEARCHES, LORA)] = ("shared",)
    """How subsets are searched: exhaustive (nothing shared: the paper), shared (features of
    the frozen prefix made once), halving (candidates race over the folds), warm (from the
    set before, fewer epochs), ranked (half of the units, by --ranking), cheap (shared,
    halving and warm); LoRA searches its rank, for all blocks."""
    greedy: GreedyFlags = field(default_factory=Greedy)
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    completed = with_digits


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns the searches of each shift, then every method under every seed."""
    require_searchable(task, settings)
    searches = settings.searches
    methods = [*NAMES, *(LORA if s == LORA else f"SubTuning, {s}" for s in searches)]
    return search.jobs_of(settings, searches, methods)


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns the methods' table, and that of the searches."""
    return (
        "Test accuracy in percent of the last step, mean (standard error) over seeds.\n\n"
        f"{search_tables.by_method(rows, config)}\n\n{search_tables.by_search(rows, config)}"
    )


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws path.png: the score of the set after every step of each search."""
    search_tables.draw_paths(out, rows)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="subtuning_greedy",
    jobs=jobs,
    rows=search.searched_rows,
    tables={
        "summary": summary,
        "by_method": search_tables.by_method,
        "by_search": search_tables.by_search,
    },
    draw=draw,
    free=("searches", "shift"),
    keeps=True,
    draws_once=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

"""Which subset of layers to tune, found step by step (SubTuning, Kaplun et al. 2023).

Claim (their table 1): a subset chosen by greedy selection is at least as good as linear
probing and as tuning everything, where there are a thousand training images.

    python -m experiments.subtuning_greedy      # embedded digits
    python -m experiments.subtuning_greedy --weights WEIGHTS --new-head \\
        --dataset cifar100 --train-examples 1000 --data-dir DATA

Two CPU cores: TIME. The paper's figures were not read; ours are in the documentation, made
from results/. The search sees the training images alone, in folds; the subset is then
tuned on all of them, and tested once for each seed. Every evaluation of the search is a
line of `journal_SHIFT_SEARCH.jsonl` in the folder, and is never repeated.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from scipy.stats import t as student

import subtune_jax as st
from experiments.common.flags import (
    Common,
    Flags,
    NonNegative,
    Positive,
    default,
    one_of,
)
from experiments.common.images import TargetFlags
from experiments.common.report import tables
from experiments.common.report.plots import curves
from experiments.common.report.results import Row
from experiments.common.study import Config, Context, Study, main, slug
from experiments.common.subtuning import (
    NAMES,
    Recipe,
    RecipeFlags,
    about_row,
    final_row,
    gradient_ranking,
    new_task,
    scorer,
    units_of,
)


class Kind(NamedTuple):
    """What a search leaves out: features made once, folds, half the epochs, units."""

    share: bool = True
    halving: int | None = None
    warm: bool = False
    ranked: bool = False


SEARCHES = {
    "exhaustive": Kind(share=False),
    "shared": Kind(),
    "halving": Kind(halving=3),
    "warm": Kind(warm=True),
    "ranked": Kind(ranked=True),
    "cheap": Kind(halving=3, warm=True, ranked=True),
}


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=new_task)
    searches: Annotated[tuple[str, ...], *one_of(*SEARCHES)] = ("shared",)
    """How subsets are searched: exhaustive (nothing shared), shared (features of the frozen
    prefix made once), halving (candidates race over the folds), warm (from the set
    before, half the epochs), ranked (half of the units, by RGN), cheap (all of these)."""
    start: Annotated[str, *one_of("none", "all", "better")] = "none"
    """Where a walk begins (official code: all three)."""
    stop_rule: Annotated[str, *one_of("paper", "official")] = "paper"
    """When it stops: before the first step that gains no more than --epsilon, or, as the
    official code, once it is more than --epsilon below the best."""
    epsilon: NonNegative[float] = 0.0
    """Points of accuracy (official code: 1)."""
    most: Annotated[Positive[int] | None, default("all units", "INT")] = None
    """The most steps of a walk."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)


class Job(NamedTuple):
    """A search, or a method tuned on all training images under a seed."""

    shift: str
    method: str
    seed: int


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns the searches of each shift, then every method under every seed."""
    units_of(task.network, settings.recipe)
    seeds = range(settings.common.seeds)
    for shift in settings.target.shifts:
        yield from (Job(shift, f"search {name}", 0) for name in settings.searches)
        methods = [*NAMES, *(f"SubTuning, {name}" for name in settings.searches)]
        yield from (
            Job(shift, method, seed) for method, seed in product(methods, seeds)
        )


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Returns the row of a search, or the test row of a method."""
    kind, _, name = job.method.partition(" ")
    if kind == "search":
        return iter([search_row(settings, task, job, context, name)])
    units = NAMES.get(job.method)
    if units is None:
        search = f"search {job.method.partition(', ')[2]}"
        (found,) = (
            row
            for row in context.earlier
            if (row["shift"], row["method"]) == (job.shift, search)
        )
        units = tuple(found["units"])
    return iter([final_row(settings, task, job, context, units)])


def search_row(
    settings: Settings, task: st.Task, job: Job, context: Context, name: str
) -> Row:
    """Returns the row of a search: the subset, its path, and what it took."""
    begin, recipe, kind = time.perf_counter(), settings.recipe, SEARCHES[name]
    units, folds = units_of(task.network, recipe), recipe.folds
    most = folds * (1 + len(units) * (len(units) + 1) // 2)
    score = scorer(
        task, recipe, context.progress, share=kind.share, warm=kind.warm, most=most
    )
    ranking, flops = None, 0.0
    if kind.ranked:
        ranking, flops = gradient_ranking(task, recipe, units)
    file = context.out / f"journal_{slug((job.shift, name))}.jsonl"
    scored_by = {"search": name, **asdict(recipe)}
    with st.selection.open_journal(file, scored_by) as journal:
        search = st.selection.greedy(
            units,
            score,
            start=settings.start,
            stop_rule=settings.stop_rule,
            epsilon=settings.epsilon,
            most=settings.most,
            folds=folds,
            journal=journal,
            halving=kind.halving,
            ranking=ranking,
            shortlist=-(-len(units) // 2) if kind.ranked else None,
            order="added" if kind.warm else "table",
        )
    return about_row(settings, task, job) | {
        "split": "search",
        "value": search.value,
        "units": list(search.units),
        "path": [[list(subset), value] for subset, value in search.path],
        "runs": search.runs,
        "flops": search.flops + flops,
        "seconds": time.perf_counter() - begin,
    }


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns the methods' table, and that of the searches."""
    return (
        "Test accuracy in percent of the last step, mean (standard error) over seeds.\n\n"
        f"{by_method(rows, config)}\n\n{by_search(rows, config)}"
    )


def by_method(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by method, and what its runs moved."""
    lines = ["| task | tuned | accuracy | parameters | distance | gap | units |"]
    lines.append("|---|---|---|---|---|---|---|")
    tests = [row for row in rows if row["split"] == "test"]
    for task, method in dict.fromkeys((row["task"], row["method"]) for row in tests):
        group = [r for r in tests if (r["task"], r["method"]) == (task, method)]
        cell = tables.cells(group, "task", "method")[task, method]
        moved = [shown_mean(group, name) for name in ("distance", "gap")]
        parameters = f"{group[0]['trainable_params']:,}"
        units = " ".join(group[0]["units"])
        values = [task, method, tables.text_of(cell), parameters, *moved, units]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def shown_mean(rows: Sequence[Row], name: str) -> str:
    """Returns the mean of a number over the rows that have it."""
    values = [row[name] for row in rows if name in row]
    return f"{np.mean(values):.1f}" if values else ""


def by_search(rows: Sequence[Row], config: Config) -> str:
    """Returns what each search chose and took, and what that costs in test accuracy."""
    lines = [
        "| task | search | units | by folds | runs | TFLOP | of exhaustive | regret |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    searches = [row for row in rows if row["split"] == "search"]
    for row in searches:
        name, whole = row["method"].removeprefix("search "), exhaustive(searches, row)
        share = f"{row['flops'] / whole['flops']:.2f}" if whole else ""
        values = [row["task"], name, " ".join(row["units"]) or "none"]
        values += [
            f"{row['value']:.1f}",
            str(row["runs"]),
            f"{row['flops'] / 1e12:.2f}",
        ]
        lines.append(f"| {' | '.join([*values, share, regret(rows, row, name)])} |")
    return "\n".join(lines)


def exhaustive(searches: Sequence[Row], row: Row) -> Row | None:
    """Returns the exhaustive search of the same task, if it was run."""
    same = (row["task"], "search exhaustive")
    return next((r for r in searches if (r["task"], r["method"]) == same), None)


def regret(rows: Sequence[Row], search: Row, name: str) -> str:
    """Returns by how many points the test accuracy of this search's subset is below that
    of the exhaustive search: the mean over seeds and its 95 % interval (Student's t of
    the paired differences)."""
    paired: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["split"] == "test" and row["task"] == search["task"]:
            paired.setdefault(row["seed"], {})[row["method"]] = row["value"]
    wanted = "SubTuning, exhaustive", f"SubTuning, {name}"
    values = [
        one[wanted[0]] - one[wanted[1]]
        for one in paired.values()
        if all(one.get(method) is not None for method in wanted)
    ]
    if len(values) < 2 or name == "exhaustive":
        return ""
    mean, error = tables.mean_and_error(values)
    half = student.ppf(0.975, len(values) - 1) * error
    return f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})"


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws path.png: the score of the set after every step of each search."""
    lines: dict[str, dict[str, tuple]] = {}
    for row in rows:
        if row["split"] == "search":
            values = [value for _, value in row["path"]]
            name = row["method"].removeprefix("search ")
            lines.setdefault(row["task"], {})[name] = (range(len(values)), values)
    if lines:
        label = "accuracy on folds (%)"
        curves(lines, out / "path.png", xlabel="units tuned", ylabel=label)


STUDY = Study(
    name="subtuning_greedy",
    settings=Settings,
    job=Job,
    jobs=jobs,
    rows=rows,
    tables={"summary": summary, "by_method": by_method, "by_search": by_search},
    draw=draw,
    free=("searches", "shift"),
    keeps=True,
    draws_once=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

"""Which block to tune depends on the kind of shift (surgical fine-tuning, Lee et al. 2023).

Claim (their figure 2): under input-level shift it is best to tune the first block,
under feature-level shift a middle one, under output-level shift the last layer.

    python -m experiments.surgical_shifts      # embedded digits
    python -m experiments.surgical_shifts --dataset cifar10_corrupted/gaussian_noise_5 \\
        --data-dir DATA --weights resnet26_gn_cifar10

Two CPU cores: two minutes, and 25 minutes. Figures: the paper's mean over 14 corruptions
is 79.9 for full tuning and 82.8 for the best block (recalled: no target); a reference
run of its protocol on this corruption gives 75.4 and 74.5. Ours are in the documentation,
made from results/. For each method, learning rate and epoch are chosen by accuracy on
target validation data, then the test part is read once.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags
from experiments.common.images import Target, TargetFlags
from experiments.common.report import tables
from experiments.common.report.plots import grouped_bars
from experiments.common.report.results import Row
from experiments.common.schemes import Budget, Variant, is_block, phases
from experiments.common.study import Config, Study, main
from experiments.common.surgical import (
    Recipe,
    RecipeFlags,
    derived,
    require_runnable,
    tuned_rows,
)

GRAY = {"none": "#bab0ab", "all": "#bab0ab"}
CHOICES = ("race", "cross_val", "automatic")


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=Target)
    methods: tuple[str, ...] = ("none", "block1", "block2", "block3", "last", "all")
    """What is tuned: none, all, last (the head), units of the network, patterns over
    parameter paths, or auto_rgn, auto_rgn_blocks, auto_snr, auto_snr_official (learning
    rates weighted by gradient scores), unfreeze_first, unfreeze_last, lp_ft, l1_sp,
    l2_sp, or race (blocks, last, all and l1_sp race on validation data)."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)


class Job(NamedTuple):
    """A method on a shift under a seed."""

    shift: str
    seed: int
    method: str


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every method on every shift under every seed."""
    require_runnable(task, settings.recipe, settings.methods, settings.common.mesh)
    seeds = range(settings.common.seeds)  # the first before the others: they may ask it
    return map(Job._make, product(settings.target.shifts, seeds, settings.methods))


def cost(settings: Settings, task: st.Task) -> str:
    """Returns what a step of each method's last phase costs, beside full tuning."""
    size = settings.recipe.batch_size
    images = task.train.take(np.arange(size) % len(task.train.y))
    batch = st.data.Batch(images.x, images.y, np.ones(size, np.float32))
    budget, variant = Budget(1000, settings.recipe.l2), Variant(1.0, 1.0)
    last = {
        method: phases(task.network, method, variant, budget)[-1]
        for method in settings.methods
        if method != "none"
    }
    return st.cost_table(
        task.network,
        last,
        batch,
        loss=st.losses.cross_entropy,
        norm=settings.recipe.norm,
    )


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by target and method, and each method's average rank."""
    tests = [row for row in rows if row["split"] == "test"]
    ranks = tables.average_rank(tables.cells(tests, "task", "method"))
    order = ", ".join(f"{method} {rank:.2f}" for method, rank in ranks.items())
    return (
        "Test accuracy in percent, mean (standard error).\n\n"
        f"{by_target(rows, config)}\n\nAverage rank: {order}."
    )


def by_target(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by target and method, with the choices among methods."""
    return tables.markdown(_cells(rows), "target")


def beside_reference(rows: Sequence[Row], config: Config) -> str:
    """Returns our accuracy above that of `reference.json` in the folder of results."""
    reference = json.loads((Path(config["folder"]) / "reference.json").read_text())
    ours, both = _cells(rows), {}
    for task in dict.fromkeys(task for task, _ in ours):
        both |= {(f"{t}, ours", m): cell for (t, m), cell in ours.items() if t == task}
        for method, cell in reference["cells"][task].items():
            both[f"{task}, PyTorch reference", method] = tuple(cell)
    return tables.markdown(both, "target")


def by_method(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by method and target, and each method's average rank."""
    tests = [row for row in rows if row["split"] == "test"]
    cells = tables.cells([*tests, *derived(rows)], "method", "task")
    ranks = tables.average_rank(tables.cells(tests, "task", "method"))
    ranked = {(m, "average rank"): (rank, np.nan) for m, rank in ranks.items()}
    return tables.markdown(cells | ranked, "tuned", bold=False)


def by_choice(rows: Sequence[Row], config: Config) -> str:
    """Returns what each way to choose a block has as its mean over the targets, beside the
    blocks chosen for all of them, and the full runs that a race took, of every seed."""
    tests = [row for row in rows if row["split"] == "test"]
    cells = tables.cells([*tests, *derived(rows)], "method", "task")
    chosen = [
        m for m in dict.fromkeys(m for m, _ in cells) if m in CHOICES or is_block(m)
    ]
    taken = [row["full_runs"] for row in tests if "full_runs" in row]
    lines = ["| tuned | mean over targets | full runs |", "|---|---|---|"]
    for method in chosen:
        mean = np.mean(
            [cell.mean for (name, _), cell in cells.items() if name == method]
        )
        runs = f"{min(taken):.2f} to {max(taken):.2f}" if method == "race" else ""
        lines.append(f"| {method} | {mean:.1f} | {runs} |")
    return "\n".join(lines)


def _cells(rows: Sequence[Row]) -> tables.Cells:
    tests = [row for row in rows if row["split"] == "test"]
    return tables.cells([*tests, *derived(rows)], "task", "method")


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws accuracy.png, and relative.png where everything was tuned as well."""
    tests = [row for row in rows if row["split"] == "test"]
    bars: dict[str, dict] = {}
    for (name, method), cell in _cells(rows).items():
        if np.isfinite(cell.mean):
            bars.setdefault(name, {})[method] = (cell.mean, cell.error)
    levels = {row["task"]: st.data.shift(row["shift"]).level for row in rows}
    titles = {t: f"{t}\n({levels[t]}-level shift)" for t in bars if levels[t] != "none"}
    if bars:
        grouped_bars(bars, out / "accuracy.png", titles=titles, colors=GRAY)
    if beside := relative(tests):
        label = "test accuracy less that of all (points)"
        grouped_bars(beside, out / "relative.png", colors=GRAY, ylabel=label)


def relative(tests: Sequence[Row]) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns `{kind of shift: {method: (mean, error)}}` of the accuracy less that of full
    tuning on the same task and seed (the paper's figure 2); without `all`, nothing.

    The error is over seeds of the mean over tasks: tasks differ for other reasons."""
    full = {(r["task"], r["seed"]): r["value"] for r in tests if r["method"] == "all"}
    differences = [
        r | {"value": r["value"] - full[r["task"], r["seed"]], "kind": kind_of(r)}
        for r in tests
        if r["value"] is not None and full.get((r["task"], r["seed"])) is not None
    ]
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    seeds = tables.grouped(differences, "kind", "method", "seed").items()
    means = [
        {"kind": kind, "method": method, "value": float(np.mean(values))}
        for (kind, method, _), values in seeds
    ]
    for (kind, method), values in tables.grouped(means, "kind", "method").items():
        if method not in ("none", "all"):
            bars.setdefault(kind, {})[method] = tables.mean_and_error(values)
    return bars


def kind_of(row: Row) -> str:
    """Returns the kind of a row's shift; shifted data sets are named by what they are."""
    level = st.data.shift(row["shift"]).level
    if level == "none" and "corrupted" in row["dataset"]:
        level = "input"
    return f"{level}-level shift" if level != "none" else row["task"]


STUDY = Study(
    settings=Settings,
    job=Job,
    name="surgical_shifts",
    jobs=jobs,
    rows=tuned_rows,
    tables={
        "summary": summary,
        "by_target": by_target,
        "beside_reference": beside_reference,
        "by_method": by_method,
        "by_choice": by_choice,
    },
    draw=draw,
    free=("methods", "shift"),
    cost=cost,
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

"""Which block to tune depends on the kind of shift (surgical fine-tuning, Lee et al. 2023).

Claim (their figure 2): under input-level shift it is best to tune the first block,
under feature-level shift a middle one, under output-level shift the last layer.

    python -m experiments.surgical_shifts      # embedded digits
    python -m experiments.surgical_shifts --dataset cifar10_corrupted/gaussian_noise_5 \\
        --data-dir DATA --weights resnet26_gn_cifar10

Two CPU cores: 70 seconds, and 25 minutes. Figures: the paper's mean over 14 corruptions
is 79.9 for full tuning and 82.8 for the best block (recalled, papers/surgical.md 2.9: no
target); a reference run of its protocol on this corruption gives 75.4 and 74.5. Ours
stand in the README, made from results/. For each method, rate and epoch are chosen by
accuracy on target validation data, then the test part is read once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from experiments.cli import Common, Flags, main
from experiments.common.report import results, tables
from experiments.common.report.plots import grouped_bars
from experiments.common.report.results import Row
from experiments.jobs import base_of, run_jobs, tuned_rows, variant_of_first
from experiments.methods import Budget, Variant, phases
from experiments.surgical import Recipe, RecipeFlags, derived, require_runnable
from experiments.targets import Target, TargetFlags, Task, make_task
from subtune_jax.cost import cost_table
from subtune_jax.data.batches import Batch
from subtune_jax.data.shifts import shift
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy

NAME = "surgical_shifts"


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=Target)
    methods: tuple[str, ...] = ("none", "block1", "block2", "block3", "last", "all")
    """What is tuned: none, all, last (the head), units of the network, patterns over
    parameter paths, or auto_rgn, auto_rgn_blocks, auto_snr, auto_snr_official (rates
    weighted by gradient scores), unfreeze_first, unfreeze_last, lp_ft, l1_sp, l2_sp."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    cost: bool = False
    """Print what a step of each method costs, and stop."""
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        self.target.check(self.common)
        self.recipe.check()
        if not self.methods:
            raise InputError("--methods needs at least one value")

    def resolved(self) -> "Settings":
        """Returns the settings with flags that were left out filled in."""
        smoke, small = self.common.smoke, self.target.dataset == "digits"
        recipe = self.recipe.resolved(small, smoke)
        common = replace(self.common, seeds=1) if smoke else self.common
        return replace(self, recipe=recipe, common=common)


Job = tuple[str, int, str]  # shift, seed, method


def jobs(settings: Settings) -> list[Job]:
    """Returns every job once, in order."""
    seeds = range(settings.common.seeds)  # the first before the others: they may ask it
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
    first = task_of(target.shifts[0], 0)
    require_runnable(first, settings.recipe, settings.methods, common.mesh)
    if settings.cost:
        print(cost_report(settings, first))
        return

    def rows_of(job: Job, rows: list[Row], folder: Path) -> Iterator[Row]:
        return tuned_rows(
            task_of(*job[:2]),
            settings.recipe,
            target,
            job,
            name=NAME,
            folder=folder,
            devices=common.mesh,
            chosen=variant_of_first(rows, job_of, job, settings.recipe.choose),
        )

    base, free = base_of(target, common), {"methods", "shift", "cost"}
    found = jobs(settings)
    out, _ = run_jobs(
        found, job_of, rows_of, name=NAME, settings=settings, base=base, free=free
    )
    report(out)


def cost_report(settings: Settings, task: Task) -> str:
    """Returns what a step of each method's last phase costs, beside full tuning."""
    images = task.train.take(np.arange(settings.recipe.batch_size) % len(task.train.y))
    batch = Batch(images.x, images.y, np.ones(settings.recipe.batch_size, np.float32))
    budget, variant = Budget(1, settings.recipe.l2), Variant(1.0, 1.0)
    last = {
        method: phases(task.network, method, variant, budget)[-1]
        for method in settings.methods
        if method != "none"
    }
    return cost_table(
        task.network, last, batch, loss=cross_entropy, norm=settings.recipe.norm
    )


def report(out: Path) -> None:
    """Writes summary.md, accuracy.png and relative.png from the rows, and prints the
    table."""
    rows = results.read(out)
    tests = [r for r in rows if r["split"] == "test"]
    cells = tables.cells([*tests, *derived(rows)], "task", "method")
    ranks = tables.average_rank(tables.cells(tests, "task", "method"))
    order = ", ".join(f"{method} {rank:.2f}" for method, rank in ranks.items())
    table = f"{tables.markdown(cells, 'target')}\n\nAverage rank: {order}."
    results.write(
        out / "summary.md",
        f"Test accuracy in percent, mean (standard error).\n\n{table}\n",
    )
    bars: dict = {}
    for (name, method), cell in cells.items():
        if np.isfinite(cell.mean):
            bars.setdefault(name, {})[method] = (cell.mean, cell.error)
    levels = {row["task"]: shift(row["shift"]).level for row in rows}
    titles = {t: f"{t}\n({levels[t]}-level shift)" for t in bars if levels[t] != "none"}
    colors = {"none": "#bab0ab", "all": "#bab0ab"}
    if bars:
        grouped_bars(bars, out / "accuracy.png", titles=titles, colors=colors)
    beside = relative(tests)
    if beside:
        label = "test accuracy less that of all (points)"
        grouped_bars(beside, out / "relative.png", colors=colors, ylabel=label)
    drawn = f"{out}/accuracy.png  " if bars else ""
    print(f"{table}\n\n{out}/summary.md  {drawn}{out}/results.jsonl")


def relative(tests: list[Row]) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns `{kind of shift: {method: (mean, error)}}` of the accuracy less that of full
    tuning on the same task and seed (the paper's figure 2); without `all`, nothing."""
    full = {(r["task"], r["seed"]): r["value"] for r in tests if r["method"] == "all"}
    made = [
        r | {"value": r["value"] - full[r["task"], r["seed"]], "kind": kind_of(r)}
        for r in tests
        if r["value"] is not None and full.get((r["task"], r["seed"])) is not None
    ]
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for (kind, method), values in tables.grouped(made, "kind", "method").items():
        if method not in ("none", "all"):
            bars.setdefault(kind, {})[method] = tables.mean_and_error(values)
    return bars


def kind_of(row: Row) -> str:
    """Returns the kind of a row's shift; shifted data sets are named by what they are."""
    level = shift(row["shift"]).level
    if level == "none" and "corrupted" in row["dataset"]:
        level = "input"
    return f"{level}-level shift" if level != "none" else row["task"]


if __name__ == "__main__":
    main(run, Settings, __doc__)

"""Do cheap scores know which block to tune? Scores against the measured profile.

Claim (papers/surgical.md 2.4): blocks whose gradients are large relative to their weights
are those worth tuning, so that relative gradient norms can stand for a search.

    python -m experiments.surgical_scores      # embedded digits
    python -m experiments.surgical_scores --dataset cifar10_corrupted/gaussian_noise_5 \\
        --data-dir DATA --weights resnet26_gn_cifar10 --profile results/surgical_cifar10

Two CPU cores: a minute and a half; with a measured profile a minute. The paper gives no
figure for the agreement. Scores are taken at the pretrained weights, on the target's
training images; the profile is validation accuracy by tuned block.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.cli import Common, Flags, main
from experiments.common.report import results, tables
from experiments.common.report.plots import heat_maps
from experiments.common.report.results import Row
from experiments.jobs import (
    base_of,
    run_jobs,
    task_name,
    tuned_rows,
    variant_of_first,
)
from experiments.surgical import Recipe, RecipeFlags, require_runnable
from experiments.targets import Target, TargetFlags, Task, make_task
from subtune_jax.data import batches
from subtune_jax.errors import InputError, require_positive
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Network
from subtune_jax.selection.scores import (
    fisher,
    magnitude,
    rank_agreement,
    relative_gradient_norm,
    signal_to_noise,
    unit_groups,
)

NAME = "surgical_scores"
TABLE = "surgical"
SCORES = {
    "rgn": relative_gradient_norm,
    "snr": signal_to_noise,
    "snr_microbatch": partial(signal_to_noise, mode="microbatch", micro=4),
    "snr_official": partial(signal_to_noise, mode="official"),
    "fisher": fisher,
    "magnitude": lambda network, batches, loss, groups: magnitude(network, groups),
}


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=Target)
    batches: int = 5
    """Batches a score is taken over (5: official code)."""
    profile: Path | None = None
    """A folder of surgical_shifts whose rows are the measured profile; default: it is
    measured here."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        self.target.check(self.common)
        self.recipe.check()
        require_positive(batches=self.batches)
        if self.profile is not None and not (self.profile / "results.jsonl").exists():
            raise InputError(f"--profile {self.profile} has no results.jsonl")


class Job(NamedTuple):
    """All scores of a target under a seed (method `scores`), or the tuning of a block."""

    shift: str
    seed: int
    method: str


def job_of(row: Row) -> Job:
    """Returns the job that wrote a row."""
    return Job(row["shift"], row["seed"], row["method"])


def run(settings: Settings) -> None:
    """Runs what the folder does not have yet, then writes tables and heat maps."""
    settings.check()
    target, common = settings.target, settings.common
    recipe = settings.recipe.resolved(target.dataset == "digits", common.smoke)
    task_of = lru_cache(1)(lambda name, seed: make_task(target, common, name, seed))
    first = task_of(target.shifts[0], 0)
    units = list(first.network.units[TABLE])
    require_runnable(first, recipe, units, common.mesh)
    require_profile(settings, units)
    methods = ["scores", *(units if settings.profile is None else [])]
    seeds = range(1 if common.smoke else common.seeds)
    jobs = [Job(*job) for job in product(target.shifts, seeds, methods)]

    def rows_of(job: Job, rows: list[Row], folder: Path) -> Iterator[Row]:
        task = task_of(job.shift, job.seed)
        if job.method == "scores":
            fixed = {"shift": job.shift, "seed": job.seed, "method": "scores"}
            fixed |= {"task": task_name(target, job.shift), "dataset": target.dataset}
            made = score_rows(task, recipe.batch_size, settings.batches, job.seed)
            return (fixed | row for row in made)
        return tuned_rows(
            task,
            recipe,
            target,
            job,
            name=NAME,
            folder=folder,
            devices=common.mesh,
            chosen=variant_of_first(rows, job_of, job, recipe.choose),
        )

    base, free = base_of(target, common), {"shift", "profile"}
    out, rows = run_jobs(
        jobs, job_of, rows_of, name=NAME, settings=settings, base=base, free=free
    )
    measured = rows if settings.profile is None else results.read(settings.profile)
    report(out, rows, measured, units)


def require_profile(settings: Settings, units: list[str]) -> None:
    """Raises `InputError` if a given profile has no block of the targets."""
    if settings.profile is None:
        return
    known = {task for task, _ in profiles(results.read(settings.profile), units)}
    wanted = {task_name(settings.target, shift) for shift in settings.target.shifts}
    if wanted - known:
        raise InputError(
            f"--profile {settings.profile} has no validation accuracy by block of "
            f"{', '.join(sorted(wanted - known))}: it has "
            f"{', '.join(sorted(known)) or 'none'}"
        )


def score_rows(task: Task, size: int, count: int, seed: int) -> Iterator[Row]:
    """Yields the value of every score and unit, at the pretrained weights."""
    data = task.train
    stream = batches.epoch(data, size, seed=(seed,), number=1, drop=len(data.y) >= size)
    found = list(islice(stream, count))
    fixed = {"experiment": NAME, "split": "train", "commit": results.commit()}
    for score, values in scores_of(task.network, found).items():
        for unit, value in values.items():
            yield fixed | {"metric": score, "unit": unit, "value": value}


def scores_of(network: Network, found: list[batches.Batch]) -> dict[str, dict]:
    """Returns `{score: {unit: value}}`."""
    groups = unit_groups(network, TABLE)
    return {
        name: score(network, found, cross_entropy, groups=groups)
        for name, score in SCORES.items()
    }


def profiles(rows: list[Row], units: list[str]) -> dict[tuple[str, int], dict]:
    """Returns `{(task, seed): {unit: validation accuracy}}`, the best rate's."""
    made: dict[tuple[str, int], dict] = {}
    for row in rows:
        unit = row.get("method")
        if row["split"] == "validation" and unit in units and row["value"] is not None:
            profile = made.setdefault((row["task"], row["seed"]), {})
            profile[unit] = max(profile.get(unit, 0.0), row["value"])
    return made


def agreement(rows: list[Row], measured: list[Row], units: list[str]) -> list[Row]:
    """Returns Spearman's correlation of every two scores and the profile over blocks, a
    row for each task and seed."""
    found: dict[tuple[str, int], dict] = {}
    for row in rows:
        if row["method"] == "scores":
            scores = found.setdefault((row["task"], row["seed"]), {})
            scores.setdefault(row["metric"], {})[row["unit"]] = row["value"]
    known = profiles(measured, units)
    for key, scores in found.items():
        if key in known:
            scores["profile"] = known[key]
    return [
        {"task": task, "one": one, "other": other, "value": value}
        for (task, _), scores in found.items()
        for (one, other), value in rank_agreement(scores).items()
        if np.isfinite(value)
    ]


def report(out: Path, rows: list[Row], measured: list[Row], units: list[str]) -> None:
    """Writes summary.md and scores.png, and prints the tables."""
    agreed = agreement(rows, measured, units)
    between, by_target = agreement_tables(agreed)
    text = f"Rank correlation over blocks, mean (standard error).\n\n{between}\n"
    if by_target:
        text += f"\nWith the measured profile, by target.\n\n{by_target}\n"
    results.write(out / "summary.md", text)
    scored = [row for row in rows if row["method"] == "scores"]
    maps = {score: means(r for r in scored if r["metric"] == score) for score in SCORES}
    tasks = {row["task"] for row in scored}
    profile = means(
        {"task": task, "unit": unit, "value": value}
        for (task, _), values in profiles(measured, units).items()
        for unit, value in values.items()
        if task in tasks
    )
    shown = {"measured profile (validation accuracy, %)": profile} if profile else {}
    heat_maps(shown | maps, out / "scores.png")
    print(f"{text}\n{out}/summary.md  {out}/scores.png  {out}/results.jsonl")


def agreement_tables(agreed: list[Row]) -> tuple[str, str]:
    """Returns how scores agree with each other and the profile, and by target (or "")."""
    between = tables.cells(agreed, "one", "other")
    with_profile = [
        r for r in agreed if r["other"] == "profile" and r["one"] != "profile"
    ]
    by_target = tables.cells(with_profile, "task", "one")
    return (
        tables.markdown(between, "score", digits=2, bold=False),
        tables.markdown(by_target, "target", digits=2, bold=False) if by_target else "",
    )


def means(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Returns the mean value by task and unit."""
    grouped = tables.grouped(rows, "task", "unit")
    return {key: float(np.mean(values)) for key, values in grouped.items()}


if __name__ == "__main__":
    main(run, Settings, __doc__)

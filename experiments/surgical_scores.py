"""Do cheap scores know which block to tune? Scores against the measured profile.

Claim (surgical fine-tuning, Lee et al. 2023): blocks whose gradients are large
relative to their weights are those worth tuning, so that relative gradient norms can stand
for a search.

    python -m experiments.surgical_scores      # embedded digits
    python -m experiments.surgical_scores --dataset cifar10_corrupted/gaussian_noise_5 \\
        --data-dir DATA --weights resnet26_gn_cifar10 \\
        --profile results/surgical_cifar10/gaussian_noise_5

Two CPU cores: a minute and a half; with a measured profile a minute. The paper gives no
figure for the agreement. Scores are taken at the pretrained weights, on the target's
training images; the profile is validation accuracy by tuned block.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive, default
from experiments.common.images import Target, TargetFlags
from experiments.common.report import results, tables
from experiments.common.report.plots import heat_maps
from experiments.common.report.results import Row
from experiments.common.study import Config, Context, Study, main
from experiments.common.surgical import (
    Recipe,
    RecipeFlags,
    require_runnable,
    tuned_rows,
)

TABLE = "surgical"
SCORES = {
    "rgn": st.scores.relative_gradient_norm,
    "snr": st.scores.signal_to_noise,
    "snr_microbatch": partial(st.scores.signal_to_noise, mode="microbatch", micro=4),
    "snr_official": partial(st.scores.signal_to_noise, mode="official"),
    "fisher": st.scores.fisher,
    "magnitude": lambda network, batches, loss, groups: st.scores.magnitude(
        network, groups
    ),
}


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=Target)
    batches: Positive[int] = 5
    """Batches a score is taken over (5: official code)."""
    profile: Annotated[Path | None, default("it is measured here", "DIR")] = None
    """A folder of surgical_shifts whose rows are the measured profile."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    def check(self, settings: Any) -> None:
        """Raises `InputError` for a profile without rows."""
        if self.profile is not None and not results.read_all(self.profile):
            raise st.InputError(
                f"--profile {self.profile} has no results.jsonl with rows"
            )


class Job(NamedTuple):
    """All scores of a target under a seed (method `scores`), or the tuning of a block."""

    shift: str
    seed: int
    method: str


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns the scores of every target under every seed, and the tuning of its blocks
    where no profile is given."""
    units = list(task.network.units[TABLE])
    require_runnable(task, settings.recipe, units, settings.common.mesh)
    require_profile(settings, units)
    methods = ["scores", *(units if settings.profile is None else [])]
    seeds = range(settings.common.seeds)
    return map(Job._make, product(settings.target.shifts, seeds, methods))


def require_profile(settings: Settings, units: Sequence[str]) -> None:
    """Raises `InputError` if a given profile has no block of the targets."""
    if settings.profile is None:
        return
    measured = {task for task, _ in profiles(results.read_all(settings.profile), units)}
    wanted = {settings.target.name_of(shift) for shift in settings.target.shifts}
    if wanted - measured:
        raise st.InputError(
            f"--profile {settings.profile} has no validation accuracy by block of "
            f"{', '.join(sorted(wanted - measured))}: it has "
            f"{', '.join(sorted(measured)) or 'none'}"
        )


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Yields the value of every score and block at the pretrained weights, or the rows of
    a tuned block."""
    if job.method != "scores":
        yield from tuned_rows(settings, task, job, context)
        return
    data, size = task.train, settings.recipe.batch_size
    stream = st.data.epoch(
        data, size, seed=(job.seed,), number=1, drop=len(data.y) >= size
    )
    scored, groups = (
        list(islice(stream, settings.batches)),
        st.scores.unit_groups(task.network, TABLE),
    )
    about = {
        "task": settings.target.name_of(job.shift),
        "dataset": settings.target.dataset,
        "split": "train",
        "commit": results.commit(),
    }
    for name, score in SCORES.items():
        values = score(task.network, scored, st.losses.cross_entropy, groups=groups)
        for unit, value in values.items():
            yield about | {"metric": name, "unit": unit, "value": value}


def profiles(
    rows: Sequence[Row], units: Sequence[str]
) -> dict[tuple[str, int], dict[str, float]]:
    """Returns `{(task, seed): {unit: validation accuracy}}`, at the best learning rate."""
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        unit = row.get("method")
        if row["split"] == "validation" and unit in units and row["value"] is not None:
            profile = scores.setdefault((row["task"], row["seed"]), {})
            profile[unit] = max(profile.get(unit, 0.0), row["value"])
    return scores


def measured_rows(rows: Sequence[Row], config: Config) -> Sequence[Row]:
    """Returns the rows of the measured profile: those of `--profile`, or the study's."""
    folder = config["profile"]
    return rows if folder is None else results.read_all(Path(folder))


def agreement(rows: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """Returns Spearman's correlation of every two scores and the profile over blocks, a
    row for each task and seed."""
    units = list(dict.fromkeys(row["unit"] for row in rows if "unit" in row))
    by_task: dict[tuple[str, int], dict] = {}
    for row in rows:
        if row["method"] == "scores":
            scores = by_task.setdefault((row["task"], row["seed"]), {})
            scores.setdefault(row["metric"], {})[row["unit"]] = row["value"]
    profile_of = profiles(measured, units)
    for key, scores in by_task.items():
        if key in profile_of:
            scores["profile"] = profile_of[key]
    return [
        {"task": task, "one": one, "other": other, "value": value}
        for (task, _), scores in by_task.items()
        for (one, other), value in st.scores.rank_agreement(scores).items()
        if np.isfinite(value)
    ]


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns how scores agree with each other, and with the profile by target."""
    agreed = agreement(rows, measured_rows(rows, config))
    cells = tables.cells(agreed, "one", "other")
    between = tables.markdown(cells, "score", digits=2, bold=False)
    text = f"Rank correlation over blocks, mean (standard error).\n\n{between}"
    with_profile = by_target(rows, config)
    if with_profile:
        text += f"\n\nWith the measured profile, by target.\n\n{with_profile}"
    return text


def by_target(rows: Sequence[Row], config: Config) -> str:
    """Returns how every score agrees with the measured profile, by target; "" without."""
    with_profile = [
        row
        for row in agreement(rows, measured_rows(rows, config))
        if row["other"] == "profile" and row["one"] != "profile"
    ]
    cells = tables.cells(with_profile, "task", "one")
    return tables.markdown(cells, "target", digits=2, bold=False) if cells else ""


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws scores.png: every score and the profile, by target and block."""
    scored = [row for row in rows if row["method"] == "scores"]
    maps = {score: means(r for r in scored if r["metric"] == score) for score in SCORES}
    tasks, units = {row["task"] for row in scored}, list(task.network.units[TABLE])
    measured = measured_rows(rows, {"profile": settings.profile})
    profile = means(
        {"task": name, "unit": unit, "value": value}
        for (name, _), values in profiles(measured, units).items()
        for unit, value in values.items()
        if name in tasks
    )
    shown = {"measured profile (validation accuracy, %)": profile} if profile else {}
    heat_maps(shown | maps, out / "scores.png")


def means(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Returns the mean value by task and unit."""
    grouped = tables.grouped(rows, "task", "unit")
    return {key: float(np.mean(values)) for key, values in grouped.items()}


STUDY = Study(
    settings=Settings,
    job=Job,
    name="surgical_scores",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary, "by_target": by_target},
    draw=draw,
    free=("shift", "profile"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

"""Tables and pictures of learning and forgetting, from the curves in rows."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from experiments.common.adaptation import records_of
from experiments.common.report.plots import curves, planes
from experiments.common.report.results import Row
from experiments.common.report.tables import Cell, mean_and_error, text_of
from experiments.common.study import Config
from subtune_jax.evaluation import area, at_step, forgotten, series
from subtune_jax.training.watch import Record

SHOWN = [n * 10**e for e in range(7) for n in (0, 1, 2, 5)]  # steps in the plane
LEARNS = 5.0  # points above chance: the task is being learnt


def tested(rows: Sequence[Row], task: str) -> dict[str, list[Row]]:
    """Returns the test rows of a task by method; one that diverged has no curve."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["split"] == "test" and row["task"] == task:
            groups.setdefault(row["method"], []).append(row)
    return groups


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """Returns the tasks of rows in order of appearance."""
    return list(dict.fromkeys(row["task"] for row in rows if row["split"] == "test"))


def whole(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of runs that did not diverge."""
    return [row for row in rows if row["curve"]]


def equal_level(groups: dict[str, list[Row]], seed: int) -> float:
    """Returns the target accuracy that every good strategy reached under a seed: good is
    to end within 1 point of the best mean, and it is the lowest of their highest values."""
    groups = {m: some for m, rows in groups.items() if (some := whole(rows))}
    ends = {
        method: np.mean([series(records_of(r), "target")[1][-1] for r in rows])
        for method, rows in groups.items()
    }
    good = [m for m, end in ends.items() if end >= max(ends.values()) - 1]
    tops = [
        series(records_of(row), "target")[1].max()
        for method in good
        for row in groups[method]
        if row["seed"] == seed
    ]
    return min(tops, default=np.inf)


def measured(groups: dict[str, list[Row]], row: Row) -> dict[str, float | None]:
    """Returns what the curve of a row says, by the name of its column."""
    records = records_of(row)
    steps, target = series(records, "target")
    source = series(records, "source")[1]
    learnt = 100 / row["classes"] + LEARNS

    def under(name: str, end: int) -> float | None:
        return area(records, name, end) if steps[-1] >= end else None

    return {
        "test": row["value"],
        "target at the end": float(target[-1]),
        "target, first 100": under("target", 100),
        "target, first 1,000": under("target", 1000),
        "source before": float(source[0]),
        "source, first 100": under("source", 100),
        "source at the end": float(source[-1]),
        "lowest source": float(source.min()),
        "drop when learning": forgotten(records, learnt),
        "drop at equal target": forgotten(records, equal_level(groups, row["seed"])),
    }


def by_strategy(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy, areas under the curves and forgetting, by task and method."""
    return _table(rows, measured)


def at_the_start(rows: Sequence[Row], config: Config) -> str:
    """Returns the entropy of the outputs, as a share of log K, and the contamination
    energy, after the first steps."""

    def starts(groups: dict[str, list[Row]], row: Row) -> dict[str, float | None]:
        records = records_of(row)
        names = {
            "entropy": (0, 1, 5, 10),
            "energy": (0, 1, 10),
            "energy_initial": (10,),
        }
        return {
            f"{name.replace('_', ', ')}, step {step}": _at(records, name, step)
            for name, steps in names.items()
            for step in steps
        }

    return _table(rows, starts, digits=3)


def _at(records: Sequence[Record], name: str, step: int) -> float | None:
    """Returns a curve's value after a step, if the run was that long."""
    return at_step(records, name, step) if records[-1].step >= step else None


def _table(rows: Sequence[Row], measure: Callable, digits: int = 1) -> str:
    head: list[str] = []
    lines: list[str] = []
    for task in tasks_of(rows):
        groups = tested(rows, task)
        for method, group in groups.items():
            cells = [measure(groups, row) for row in whole(group)]
            if not cells:
                lines.append(f"| {task} | {method} | all of {len(group)} diverged |")
                continue
            head = [f"| task | tuned | {' | '.join(cells[0])} |"]
            head += ["|---" * (2 + len(cells[0])) + "|"]
            lost = [{}] * (len(group) - len(cells))
            values = {n: [c.get(n) for c in (*cells, *lost)] for n in cells[0]}
            shown = (_cell(values[name], digits) for name in values)
            lines.append(f"| {task} | {method} | {' | '.join(shown)} |")
    return "\n".join([*head, *lines])


def _cell(values: Sequence[float | None], digits: int) -> str:
    """Returns mean (standard error), and of how many seeds where some have no value."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    text = text_of(Cell(*mean_and_error(numbers)), digits)
    every = len(numbers) == len(values)
    return text if every else f"{text}, {len(numbers)} of {len(values)}"


def draw_curves(out: Path, rows: Sequence[Row]) -> None:
    """Draws learning.png, forgetting.png (accuracy by step, means over seeds) and
    plane.png (target accuracy against source accuracy, a line for each method)."""
    panels: dict[str, dict[str, dict]] = {"target": {}, "source": {}, "plane": {}}
    for task in tasks_of(rows):
        for method, rows_of in tested(rows, task).items():
            group = whole(rows_of)
            if not group:
                continue
            steps = series(records_of(group[0]), "target")[0]
            means = {
                name: np.mean([series(records_of(r), name)[1] for r in group], axis=0)
                for name in ("target", "source")
            }
            for name, mean in means.items():
                panels[name].setdefault(task, {})[method] = (steps[1:], mean[1:])
            # A point for every step would be a scribble.
            few = np.isin(steps, (*SHOWN, steps[-1]))
            plane = means["target"][few], means["source"][few]
            panels["plane"].setdefault(task, {})[method] = plane
    if not panels["plane"]:
        return
    labels = {"target": "target accuracy (%)", "source": "source accuracy (%)"}
    names = {"target": "learning", "source": "forgetting"}
    for name, file in names.items():
        curves(
            panels[name],
            out / f"{file}.png",
            xlabel="step",
            ylabel=labels[name],
            log=True,
        )
    planes(
        panels["plane"],
        out / "plane.png",
        xlabel="learned: target accuracy (%)",
        ylabel="not forgotten: source score (%)",
    )


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns what the curves of every method say."""
    note = (
        "Accuracy in percent, mean (standard error) over seeds. `first 100`: the mean "
        "height of a curve over 100 steps. `drop`: what the source has lost where the "
        f"target is {LEARNS:.0f} points above chance, and where it has an accuracy that "
        "all methods reach that end within a point of the best."
    )
    return f"{note}\n\n{by_strategy(rows, config)}\n\n{at_the_start(rows, config)}"


def draw(out: Path, rows: Sequence[Row], settings: object, task: object) -> None:
    """Draws learning.png, forgetting.png and plane.png."""
    draw_curves(out, rows)


TABLES = {
    "summary": summary,
    "by_strategy": by_strategy,
    "at_the_start": at_the_start,
}

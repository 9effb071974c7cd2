"""Tables and picture of searches: what each chose, what it took, what its choice is worth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from experiments.common.report import tables
from experiments.common.report.plots import curves
from experiments.common.report.results import Row
from experiments.common.search import LORA
from experiments.common.study import Config


def by_method(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by method, and what its runs moved."""
    lines = ["| task | tuned | accuracy | parameters | distance | gap | units |"]
    lines.append("|---|---|---|---|---|---|---|")
    tests = [row for row in rows if row["split"] == "test"]
    for task, method in dict.fromkeys((row["task"], row["method"]) for row in tests):
        group = [r for r in tests if (r["task"], r["method"]) == (task, method)]
        cell = tables.cells(group, "task", "method")[task, method]
        moved = [shown_mean(group, name) for name in ("distance", "gap")]
        parameters = f"{max(row['trainable_params'] for row in group):,}"
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
        score = "diverged" if row["value"] is None else f"{row['value']:.1f}"
        values += [
            score,
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


def draw_paths(out: Path, rows: Sequence[Row]) -> None:
    """Draws path.png: the score of the set after every step of each search."""
    lines: dict[str, dict[str, tuple]] = {}
    for row in rows:
        name = row["method"].removeprefix("search ")
        if row["split"] == "search" and name != LORA:
            points = [(len(units), v) for units, v in row["path"] if v is not None]
            line = tuple(map(list, zip(*points, strict=True)))
            if line:
                lines.setdefault(row["task"], {})[name] = line
    if lines:
        label = "accuracy on folds (%)"
        curves(lines, out / "path.png", xlabel="units tuned", ylabel=label)

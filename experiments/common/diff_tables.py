"""Tables and pictures of sparse differences: score, bytes, and what a delta holds."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

import subtune_jax as st
from experiments.common.report import tables
from experiments.common.report.intervals import paired_interval
from experiments.common.report.plots import curves, heat_maps
from experiments.common.report.results import Row
from experiments.common.sparse import SPARSE
from experiments.common.study import Config

COLUMNS = (
    "task",
    "tuned",
    "sparsity",
    "score",
    "bytes",
    "values",
    "bytes a value",
    "differ",
    "before the mask",
    "expected",
    "untouched tensors",
    "seconds a step, compilation included",
)


def by_method(rows: Sequence[Row], config: Config) -> str:
    """Returns a line for each method and sparsity: score, and what the delta holds."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    tests = [row for row in rows if row["split"] == "test"]
    kinds = dict.fromkeys((r["task"], r["method"], r["sparsity"]) for r in tests)
    for task, method, sparsity in kinds:
        group = [r for r in tests if same(r, method, sparsity) and r["task"] == task]
        score = tables.cells(group, "task", "method")[task, method]
        own = [r for r in rows if same(r, method, sparsity) and of(r) == of(group[0])]
        held = [r for r in own if r["split"] == "stored"]
        tries = [r for r in own if r["split"] == "validation"]
        paces = [r["seconds"] / r["steps"] for r in tries if r["steps"]]
        values = [task, method, f"{100 * sparsity:g} %", tables.text_of(score)]
        values += [
            mean_of(held, "value"),
            mean_of(held, "stored"),
            mean_of(held, "bytes_a_value", 2),
            mean_of(held, "differ"),
            mean_of(held, "before_mask"),
            mean_of(held, "expected"),
            f"{mean_of(held, 'untouched')} of {held[0]['tensors']}" if held else "",
            f"{np.mean(paces):.2f}" if paces else "",
        ]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def of(row: Row) -> str:
    """Returns the task of a row; older rows tell it by their name alone."""
    return row.get("of") or row["task"].partition(",")[0]


def mean_of(rows: Sequence[Row], name: str, digits: int = 0) -> str:
    """Returns the mean of a value over rows as text; nothing where no row has it."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return f"{np.mean(values):,.{digits}f}" if values else ""


def differences(rows: Sequence[Row], config: Config) -> str:
    """Returns a gated method's score minus that of every other method, with the 95 %
    interval over the seeds that both have and their test examples."""
    lines: list[str] = []
    for task in dict.fromkeys(of(row) for row in rows):
        tested = [r for r in rows if r["split"] == "outputs" and of(r) == task]
        gated = [
            m for m in ("structured", "constrained", "plain") if by_seed(tested, m)
        ]
        for one in gated[:1]:
            if not lines:
                head = "task", "sparsity", f"{one} minus", "seeds", "difference"
                lines = [f"| {' | '.join(head)} | 95 % interval |", "|---" * 6 + "|"]
            lines += [
                f"| {task} | {' | '.join(cells)} |" for cells in _beside(tested, one)
            ]
    return "\n".join(lines)


def _beside(tested: Sequence[Row], gated: str) -> Iterator[tuple[str, ...]]:
    """Yields the cells of each other method beside a gated one, by sparsity."""
    shares = dict.fromkeys(r["sparsity"] for r in tested if r["method"] == gated)
    for share, method in product(shares, dict.fromkeys(r["method"] for r in tested)):
        if method != gated:
            mine = by_seed(tested, gated, share)
            theirs = by_seed(tested, method, share) or by_seed(tested, method, 1.0)
            yield f"{100 * share:g} %", method, *interval_cells(mine, theirs)


def by_seed(
    rows: Sequence[Row], method: str, sparsity: float | None = None
) -> dict[int, Row]:
    """Returns the rows of a method by seed, at a sparsity if there is one."""
    own = [row for row in rows if row["method"] == method]
    return {row["seed"]: row for row in own if sparsity in (None, row["sparsity"])}


def interval_cells(
    mine: Mapping[int, Row], theirs: Mapping[int, Row]
) -> tuple[str, str, str]:
    """Returns the number of common seeds, the difference and its interval; a run that
    diverged has no outputs, and its seed is left out."""
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return "0", "", ""
    pairs = [(mine[seed], theirs[seed]) for seed in seeds]
    metric = st.metrics.METRICS[pairs[0][0]["metric"]]
    one, other = ([np.asarray(p[i]["outputs"]) for p in pairs] for i in (0, 1))
    labels = [np.asarray(pair[0]["labels"]) for pair in pairs]
    if labels[0].dtype.kind in "iu":  # classes were chosen: a metric reads logits
        count = 1 + max(int(array.max()) for array in (*one, *other, *labels))
        one, other = ([np.eye(count)[a] for a in arrays] for arrays in (one, other))
    mean, low, high = paired_interval(metric, one, other, labels)
    return f"{len(seeds)}", f"{mean:.1f}", f"{low:.1f} to {high:.1f}"


def same(row: Row, method: str, sparsity: float) -> bool:
    """Returns whether a row is of a method at a sparsity."""
    return (row["method"], row["sparsity"]) == (method, sparsity)


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns what the table holds, and the table."""
    note = (
        "Test score in percent of the stored delta, mean (standard error) over seeds."
    )
    return f"{note}\n\n{by_method(rows, config)}\n\n{differences(rows, config)}".strip()


def draw(out: Path, rows: Sequence[Row], settings: object, task: st.Task) -> None:
    """Draws score.png, mean score against mean stored bytes with a point for each sparsity,
    and layers.png, the share of the weights of each layer that change."""
    held = [row for row in rows if row["split"] == "stored"]
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    kinds = dict.fromkeys((of(row), row["method"], row["sparsity"]) for row in held)
    for task, method, sparsity in sorted(kinds):
        group = [r for r in held if same(r, method, sparsity) and of(r) == task]
        scores = [score for row in group if (score := score_of(rows, row)) is not None]
        if scores:
            lines = panels.setdefault(task, {})
            bytes_, means = lines.setdefault(method, ([], []))
            bytes_.append(float(np.mean([row["value"] for row in group])))
            means.append(float(np.mean(scores)))
    if panels:
        axes = {"xlabel": "bytes of the stored delta", "ylabel": "test score (%)"}
        curves(panels, out / "score.png", log=True, **axes)
    shares: dict[str, dict[tuple[str, str], float]] = {}
    for row in held:
        if row["method"] in SPARSE and row["seed"] == 0:
            panel = f"{of(row)}, {100 * row['sparsity']:g} %"
            cells = shares.setdefault(panel, {})
            for stage, share in row["shares"].items():
                cells[row["method"], stage] = 100 * share
    if shares:
        heat_maps(shares, out / "layers.png")


def score_of(rows: Sequence[Row], stored: Row) -> float | None:
    """Returns the test score of a stored delta."""
    wanted = {"split": "test", "task": stored["task"], "seed": stored["seed"]}
    wanted |= {name: stored[name] for name in ("method", "sparsity")}
    return next((r["value"] for r in rows if wanted.items() <= r.items()), None)


TABLES = {"summary": summary, "by_method": by_method, "differences": differences}

"""Markdown tables made from rows, never typed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from experiments.common.report.results import Row


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error, s / sqrt(n) with n - 1 in s; of one value
    the error is unknown, NaN."""
    several = len(values) > 1
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if several else np.nan
    return float(np.mean(values)), float(spread)


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple, list[float]]:
    """Returns the finite values of rows by the values of `keys`, in order of appearance."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row["value"] is not None and np.isfinite(row["value"]):
            groups.setdefault(tuple(row[key] for key in keys), []).append(row["value"])
    return groups


class Cell(NamedTuple):
    """Mean and standard error of the runs that have a value, and how many of all the runs
    have none: they diverged. The mean is NaN where all did."""

    mean: float
    error: float
    lost: int = 0
    runs: int = 0


Cells = dict[tuple[str, str], Cell]  # {(line, column): cell}


def cells(rows: Iterable[Row], down: str, across: str) -> Cells:
    """Returns the cell of `value` for each pair of values of two keys."""
    rows = list(rows)
    runs = Counter((row[down], row[across]) for row in rows)
    whole = grouped(rows, down, across)
    by_key = {}
    for key, count in runs.items():
        values = whole.get(key, [])
        mean, error = mean_and_error(values) if values else (np.nan, np.nan)
        by_key[key] = Cell(mean, error, count - len(values), count)
    return by_key


def average_rank(table: Cells) -> dict[str, float]:
    """Returns each column's mean rank over the lines (1 is the highest mean), best first.

    Equal means share the mean of their ranks; columns that a line lacks, or where no run
    has a value, are left out.
    """
    table = {key: cell for key, cell in table.items() if np.isfinite(cell[0])}
    columns = list(dict.fromkeys(column for _, column in table))
    lines = list(dict.fromkeys(line for line, _ in table))
    whole = [c for c in columns if all((line, c) in table for line in lines)]
    if not whole:
        return {}
    ranks = np.mean(
        [rankdata([-table[line, c][0] for c in whole]) for line in lines], axis=0
    )
    return dict(
        sorted(zip(whole, ranks.tolist(), strict=True), key=lambda pair: pair[1])
    )


def markdown(table: Cells, corner: str, digits: int = 1, bold: bool = True) -> str:
    """Returns cells as mean (standard error, if known), the best of each line in bold;
    runs that diverged are counted beside the mean of the others."""
    lines, columns = (list(dict.fromkeys(key[i] for key in table)) for i in (0, 1))
    head = f"| {corner} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"
    return "\n".join(
        [head, *(_line(line, columns, table, digits, bold) for line in lines)]
    )


def _line(
    line: str, columns: Sequence[str], table: Cells, digits: int, bold: bool
) -> str:
    means = [cell[0] for (name, _), cell in table.items() if name == line]
    best = max((mean for mean in means if np.isfinite(mean)), default=None)
    shown = []
    for column in columns:
        cell = table.get((line, column))
        text = "" if cell is None else text_of(Cell(*cell), digits)
        chosen = bold and cell is not None and cell[0] == best
        shown.append(f"**{text}**" if chosen else text)
    return f"| {line} | {' | '.join(shown)} |"


def text_of(cell: Cell, digits: int = 1) -> str:
    """Returns a cell as mean (standard error, if known), with the runs that diverged."""
    parts = []
    if np.isfinite(cell.mean):
        spread = "" if np.isnan(cell.error) else f" ({cell.error:.{digits}f})"
        parts.append(f"{cell.mean:.{digits}f}{spread}")
    if cell.lost:
        parts.append(f"{cell.lost} of {cell.runs} diverged")
    return ", ".join(parts)

"""Markdown tables made from rows, never typed."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import rankdata

from subtune_jax.reporting.results import Row


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error, s / sqrt(n) with n - 1 in s; of one value
    the error is unknown, NaN."""
    known = len(values) > 1
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if known else np.nan
    return float(np.mean(values)), float(spread)


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple, list[float]]:
    """Returns the finite values of rows by the values of `keys`, in order of appearance."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row["value"] is not None and np.isfinite(row["value"]):
            groups.setdefault(tuple(row[key] for key in keys), []).append(row["value"])
    return groups


Cells = dict[tuple[str, str], tuple[float, float]]  # {(line, column): (mean, error)}


def cells(rows: Iterable[Row], down: str, across: str) -> Cells:
    """Returns mean and standard error of `value` for each pair of values of two keys."""
    return {key: mean_and_error(v) for key, v in grouped(rows, down, across).items()}


def average_rank(table: Cells) -> dict[str, float]:
    """Returns each column's mean rank over the lines (1 is the highest mean), best first.

    Equal means share the mean of their ranks; columns that a line lacks are left out.
    """
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
    """Returns cells as mean (standard error, if known), the best of each line in bold."""
    lines, columns = (list(dict.fromkeys(key[i] for key in table)) for i in (0, 1))
    head = f"| {corner} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"
    return "\n".join(
        [head, *(_line(line, columns, table, digits, bold) for line in lines)]
    )


def _line(
    line: str, columns: Sequence[str], table: Cells, digits: int, bold: bool
) -> str:
    best = max(mean for (name, _), (mean, _) in table.items() if name == line)
    shown = []
    for column in columns:
        mean, error = table.get((line, column), (None, None))
        text = "" if mean is None else f"{mean:.{digits}f}"
        text += "" if mean is None or np.isnan(error) else f" ({error:.{digits}f})"
        shown.append(f"**{text}**" if bold and mean == best else text)
    return f"| {line} | {' | '.join(shown)} |"

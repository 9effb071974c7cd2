"""Markdown tables made from rows, never typed."""

from collections.abc import Iterable, Sequence

import numpy as np

from subtune_jax.reporting.results import Row


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error, s / sqrt(n) with n - 1 in s (0 for one)."""
    spread = (
        float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    )
    return float(np.mean(values)), spread


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple, list[float]]:
    """Returns the finite values of rows by the values of `keys`, in order of appearance."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row["value"] is not None:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row["value"])
    return groups


def pivot(rows: Iterable[Row], down: str, across: str) -> str:
    """Returns mean (standard error) of `value` as a markdown table, best of a row bold."""
    cells = grouped(rows, down, across)
    lines, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    head = f"| {down} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"
    return "\n".join([head, *(_line(line, columns, cells) for line in lines)])


def _line(line: str, columns: Sequence[str], cells: dict[tuple, list[float]]) -> str:
    stats = {c: mean_and_error(cells[line, c]) for c in columns if (line, c) in cells}
    best = max(mean for mean, _ in stats.values())
    shown = {c: f"{m:.1f} ({e:.1f})" for c, (m, e) in stats.items()}
    shown = {
        c: f"**{text}**" if stats[c][0] == best else text for c, text in shown.items()
    }
    return f"| {line} | {' | '.join(shown.get(c, '') for c in columns)} |"

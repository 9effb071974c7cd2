"""Makes the README's tables again from the rows in results/.

python -m experiments.readme

A table stands between `<!-- table: FOLDER -->` and `<!-- end -->`. The rows of a folder
are those of its own and of the folders in it, one for each command that made some.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiments.common.report import results, tables
from experiments.common.report.results import Row
from experiments.prefix_speed import speed_table
from experiments.step_speed import step_table
from experiments.surgical import derived
from experiments.surgical_scores import agreement, agreement_tables
from experiments.surgical_size import size_table
from experiments.surgical_test_time import stream_table
from experiments.transformer_modules import module_table
from subtune_jax.errors import InputError


def rows_of(folder: Path) -> list[Row]:
    """Returns the rows of a folder and of the folders in it, in order of their names;
    raises `InputError` if there are none: a table would be empty."""
    homes = sorted(file.parent for file in folder.glob("**/results.jsonl"))
    rows = [row for home in homes for row in results.read(home)]
    if not rows:
        raise InputError(f"{folder} has no rows to make a table from")
    return rows


def surgical(folder: Path) -> str:
    """Returns our accuracy by target and method, above the reference's if there is one."""
    rows = rows_of(folder)
    tests = [r for r in rows if r["split"] == "test"]
    ours = tables.cells([*tests, *derived(rows)], "task", "method")
    reference = folder / "reference.json"
    if not reference.exists():
        return tables.markdown(ours, "target")
    known = json.loads(reference.read_text())["cells"]
    both: tables.Cells = {}
    for task in dict.fromkeys(task for task, _ in ours):
        both |= {(f"{t}, ours", m): cell for (t, m), cell in ours.items() if t == task}
        for method, cell in known[task].items():
            both[f"{task}, PyTorch reference", method] = tuple(cell)
    return tables.markdown(both, "target")


def methods(folder: Path) -> str:
    """Returns the accuracy by method and target, and each method's average rank."""
    rows = rows_of(folder)
    tests = [r for r in rows if r["split"] == "test"]
    cells = tables.cells([*tests, *derived(rows)], "method", "task")
    ranks = tables.average_rank(tables.cells(tests, "task", "method"))
    shown = cells | {
        (m, "average rank"): (rank, float("nan")) for m, rank in ranks.items()
    }
    return tables.markdown(shown, "tuned", bold=False)


def scores(folder: Path, measured: str | None = None) -> str:
    """Returns how every score agrees with the measured profile, by target; the profile is
    of the same folder, or of the one beside it that is named."""
    rows = rows_of(folder)
    known = rows if measured is None else rows_of(folder.parent / measured)
    units = list(dict.fromkeys(row["unit"] for row in rows if "unit" in row))
    return agreement_tables(agreement(rows, known, units))[1]


def tests_only(table: Callable[[list[Row]], str]) -> Callable[[Path], str]:
    """Returns a table of a folder's test rows."""
    return lambda folder: table([r for r in rows_of(folder) if r["split"] == "test"])


TABLES: dict[str, Callable[[Path], str]] = {
    "prefix_speed": lambda folder: speed_table(rows_of(folder)),
    "prefix_speed_texts": lambda folder: speed_table(rows_of(folder)),
    "step_speed": lambda folder: step_table(rows_of(folder)),
    "surgical_cifar10": surgical,
    "surgical_methods": methods,
    "surgical_scores_cifar10": partial(scores, measured="surgical_methods"),
    "surgical_scores_digits": scores,
    "surgical_shifts_digits": surgical,
    "surgical_size_digits": tests_only(size_table),
    "surgical_test_time": tests_only(stream_table),
    "surgical_test_time_first_seed": tests_only(stream_table),
    "transformer_modules": tests_only(module_table),
    "transformer_modules_docstrings": tests_only(module_table),
}


def with_tables(text: str, home: Path) -> str:
    """Returns the README's text with every table made from `home/NAME/results.jsonl`."""

    def made(match: re.Match) -> str:
        name = match[1]
        return f"<!-- table: {name} -->\n{TABLES[name](home / name)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", made, text, flags=re.S)


if __name__ == "__main__":
    readme = Path("README.md")
    results.write(readme, with_tables(readme.read_text(), Path("results")))

"""Tables of module studies: score, relative score and trained share by module."""

from collections.abc import Sequence

import numpy as np

from experiments.common.report import tables
from experiments.common.report.results import Row

KINDS = (
    "query",
    "key",
    "value",
    "attention_output",
    "attention_norm",
    "intermediate",
    "output",
    "output_norm",
    "layer_norms",
    "attention",
    "feed_forward",
    "biases",
)
MODULES = ("frozen", "full", *KINDS, "random")


def module_table(tests: Sequence[Row]) -> str:
    """Returns score, relative score and trained share by module (those of `MODULES`
    first, in their order) and task."""
    places = {module: place for place, module in enumerate(MODULES)}
    tests = sorted(tests, key=lambda row: places.get(row["module"], len(places)))
    cells = tables.cells([*tests, *relative_rows(tests)], "module", "task")
    shares = {
        row["module"]: 100 * row["trainable_params"] / row["total_params"]
        for row in tests
        if not carried(row)
    }
    shown = {
        (f"{module} ({shares[module]:.3g} %)", task): cell
        for (module, task), cell in cells.items()
    }
    return tables.markdown(shown, "tuned (share)", bold=False)


def carried(row: Row) -> bool:
    """Returns whether a row is of a task that a module was carried to."""
    return " to " in row["task"]


def relative_rows(tests: Sequence[Row]) -> list[Row]:
    """Returns rows of the relative score in percent, 100 (module - frozen) / (full -
    frozen), both ends as means over the seeds.

    None of a task where full is not above frozen by more than the standard error of
    their difference, nor of one that modules are carried to.
    """
    relative = []
    for task in dict.fromkeys(row["task"] for row in tests if not carried(row)):
        own = [row for row in tests if row["task"] == task]
        frozen, full = gap(own)
        for row in own if full > frozen else []:
            value = row["value"]
            gained = None if value is None else value - frozen
            score = None if gained is None else 100 * gained / (full - frozen)
            relative.append(row | {"task": f"{task}, relative", "value": score})
    return relative


def gap(tests: Sequence[Row]) -> tuple[float, float]:
    """Returns the mean scores of frozen and full over the seeds that have both; NaN where
    they are within a standard error, or there is no such seed."""
    whole = [row for row in tests if row["value"] is not None]
    scores = {(row["module"], row["seed"]): row["value"] for row in whole}
    seeds = [s for m, s in scores if m == "frozen" and ("full", s) in scores]
    ends = np.array([[scores[m, s] for s in seeds] for m in ("frozen", "full")])
    if not seeds:
        return float("nan"), float("nan")
    frozen, full = ends.mean(axis=1)
    spread = np.std(ends[1] - ends[0], ddof=1) if len(seeds) > 1 else 0.0
    apart = full - frozen > spread / np.sqrt(len(seeds))
    return (float(frozen), float(full)) if apart else (float("nan"), float("nan"))

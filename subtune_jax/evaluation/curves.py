"""What curves of learning and forgetting say in a number: functions of a run's records."""

from collections.abc import Sequence

import numpy as np

from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.training.watch import Record


def series(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps of records, and their values of a name.

    Raises `InputError` for no record, and for a name that they do not have.
    """
    if not records:
        raise InputError("there are no records: give fit a watch")
    if name not in records[0].value:
        raise unknown("recorded value", name, records[0].value)
    steps = np.array([record.step for record in records])
    return steps, np.array([record.value[name] for record in records], float)


def area(records: Sequence[Record], name: str, steps: int) -> float:
    """Returns the mean height of a curve over the first steps: the area under it, by
    straight lines between records, over `steps`. Raises `InputError` where records end
    before."""
    require_positive(steps=steps)
    at, values = series(records, name)
    if at[-1] < steps:
        raise InputError(f"the records end at step {at[-1]}, before {steps}")
    inside = np.append(at[at < steps], steps)
    return float(np.trapezoid(np.interp(inside, at, values), inside) / steps)


def first_reaching(records: Sequence[Record], name: str, level: float) -> int | None:
    """Returns the first recorded step at which a value is at least `level`, if any is."""
    at, values = series(records, name)
    reached = np.flatnonzero(values >= level)
    return int(at[reached[0]]) if len(reached) else None


def at_step(records: Sequence[Record], name: str, step: int) -> float:
    """Returns a curve's value after `step` steps, by straight lines between records.

    Raises `InputError` for a step outside the records.
    """
    at, values = series(records, name)
    if not at[0] <= step <= at[-1]:
        raise InputError(f"the records are of steps {at[0]} to {at[-1]}, not of {step}")
    return float(np.interp(step, at, values))


def forgotten(records: Sequence[Record], level: float) -> float | None:
    """Returns how far `source` had fallen when `target` first was at least `level`.

    At equal target accuracy strategies can be compared, whatever their speed. `None`
    where the target accuracy never was.
    """
    step = first_reaching(records, "target", level)
    if step is None:
        return None
    return at_step(records, "source", records[0].step) - at_step(
        records, "source", step
    )

"""What watches a run: calls with the live network at chosen steps, and their records."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from subtune_jax import tree
from subtune_jax.errors import InputError, unknown
from subtune_jax.network import Network

WatchAt = str | Callable[[int], bool]
WATCH_MODES = ("epoch", "step")


class Record(NamedTuple):
    """What `watch` returned after `step` steps; JSON values."""

    step: int
    value: Any


class EpochLog(NamedTuple):
    """An epoch: its number from 1, the steps so far, and the means over its steps of the
    loss without penalty and of the L2 norm of what trains' gradient."""

    number: int
    step: int
    loss: float
    grad_norm: float


class History(NamedTuple):
    """What a run has told so far, in lists that grow: validation scores of the epochs that
    may be kept, logs of all epochs, and records of what watches it."""

    scores: list[float]
    epochs: list[EpochLog]
    records: list[Record]


class WatchError(InputError):
    """What `watch` raised, in a sentence; `records` are those before it, so that the curve
    so far is not lost."""

    def __init__(self, step: int, error: Exception, records: tuple[Record, ...]):
        kind = type(error).__name__
        super().__init__(f"watch failed after step {step}: {kind}: {error}")
        self.step, self.records = step, records


def early_then_log(first: int = 100, per_decade: int = 20) -> Callable[[int], bool]:
    """Returns the rule that watches every one of the first steps, and then `per_decade`
    steps of each power of ten."""

    def due(step: int) -> bool:
        if step <= first:
            return True
        now, before = (math.floor(per_decade * math.log10(s)) for s in (step, step - 1))
        return now > before

    return due


def rule_of(watch_at: WatchAt, per_epoch: int, ends: tuple[int, ...]):
    """Returns whether to watch after a number of steps: at 0, at the end of every phase,
    and where `watch_at` says so. Raises `InputError` for another mode."""
    if not callable(watch_at) and watch_at not in WATCH_MODES:
        raise unknown("watch_at", watch_at, (*WATCH_MODES, "a function of the step"))

    def due(step: int) -> bool:
        if step in (0, *ends):
            return True
        if callable(watch_at):
            return watch_at(step)
        return watch_at == "step" or step % per_epoch == 0

    return due


def record_of(
    step: int,
    watch: Callable[[Network], Any],
    network: Network,
    before: Sequence[Record] = (),
) -> Record:
    """Returns the record of a live network, which may be kept: its statistics are copies.

    Raises `WatchError`, with the records `before`, for whatever `watch` raises, and for
    what a checkpoint cannot hold, which is all but JSON values.
    """
    try:
        value = watch(network._replace(stats=tree.copy(network.stats)))
    except Exception as error:
        raise WatchError(step, error, tuple(before)) from error
    try:
        return Record(step, json.loads(json.dumps(value)))
    except TypeError:
        problem = TypeError(
            f"watch must return JSON values (numbers, strings, lists, dicts), got "
            f"{type(value).__name__}: convert arrays with float() or tolist()"
        )
        raise WatchError(step, problem, tuple(before)) from None

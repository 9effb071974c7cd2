"""How long it takes to keep a task and to switch to it.

Claim: a task of 0.5 % of an encoder's weights is found, written, read and swapped in
within fractions of a second, without a loop over elements.

    python -m experiments.delta_speed      # a minute on two cores

An encoder of MiniLM's shape (22.7 million parameters) with random weights; which elements
change is drawn at random. Figures are medians, in seconds and in megabytes of the
network's parameters per second. Ours are in the documentation, made from results/.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, NonNegative, Positive
from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.common.speed import (
    MINILM,
    SMALL,
    changed_elements,
    require_no_data,
    seconds,
)
from experiments.common.study import Config, Context, Study, main

OPERATIONS = {
    "fingerprint": "the base's fingerprint, once for each base",
    "extract": "find what changed, without the fingerprint",
    "to_bytes": "code places and values, with the digest",
    "from_bytes": "read them, and check the digest",
    "apply": "swap a task in, the base left as it is, its fingerprint known",
    "undo": "swap it out again",
    "switch": "from one task to another in place: undo, then apply",
}


@dataclass(frozen=True)
class Settings:
    """Flags; every default is our choice."""

    percent: NonNegative[float] = 0.5
    """How many of all weights a task changes beside the head (0.5: diff pruning)."""
    repeats: Positive[int] = 9
    """How often each operation is timed."""
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"repeats": 1}

    def check(self, settings: Any) -> None:
        """Raises `InputError` for flags without a use."""
        require_no_data(self)
        if self.percent > 100:
            raise st.InputError(f"--percent must be at most 100, got {self.percent:g}")


class Job(NamedTuple):
    """All operations on one network."""

    seed: int


def jobs(settings: Settings, task: None) -> list[Job]:
    """Returns the one job."""
    return [Job(0)]


def rows(settings: Settings, task: None, job: Job, context: Context) -> Iterator[Row]:
    """Yields a row for each operation."""
    shape = SMALL if settings.common.smoke else MINILM
    config = st.models.BertConfig(**shape, pooling="mean")
    base = st.models.bert(config, jax.random.key(job.seed))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(base.params))
    for operation, run in operations(base, settings.percent / 100).items():
        run()  # compiles
        times = [seconds(run) for _ in range(settings.repeats)]
        middle = float(np.median(times))
        yield {
            "dataset": "random",
            "method": operation,
            "metric": "seconds",
            "split": "train",
            "value": middle,
            "megabytes_per_second": size / middle / 1e6,
            "trainable_params": 0,
            "total_params": st.tree.count(base.params),
            "steps": settings.repeats,
            "seconds": sum(times),
            "commit": results.commit(),
        }


def operations(base: st.Network, share: float) -> dict[str, Callable[[], Any]]:
    """Returns what is timed, by name: functions without arguments."""
    one, two = (changed_elements(base, share, seed) for seed in (1, 2))
    fingerprint = st.deltas.base_fingerprint(base)
    deltas = [st.extract(base, network) for network in (one, two)]
    data = st.deltas.to_bytes(deltas[0])
    after, overwritten = st.apply(base, deltas[0], fingerprint=fingerprint)
    running, taken = st.apply(base, deltas[0], fingerprint=fingerprint)
    number = 0

    def switch() -> st.Network:
        nonlocal running, taken, number
        before = st.undo(running, taken, donate=True)
        number = 1 - number
        running, taken = st.apply(
            before, deltas[number], fingerprint=fingerprint, donate=True
        )
        return running

    return {
        "fingerprint": lambda: st.deltas.base_fingerprint(base),
        "extract": lambda: st.extract(base, one, fingerprint=fingerprint),
        "to_bytes": lambda: st.deltas.to_bytes(deltas[0]),
        "from_bytes": lambda: st.deltas.from_bytes(data),
        "apply": lambda: st.apply(base, deltas[0], fingerprint=fingerprint),
        "undo": lambda: st.undo(after, overwritten),
        "switch": switch,
    }


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns the operations with their seconds and rates."""
    lines = ["| operation | ms | MB of parameters a second |", "|---|---|---|"]
    lines += [
        f"| {row['method']}: {OPERATIONS[row['method']]} | {1000 * row['value']:.1f} | "
        f"{row['megabytes_per_second']:,.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="delta_speed",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary},
)

if __name__ == "__main__":
    main(STUDY, __doc__)

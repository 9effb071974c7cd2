"""Which block to adapt without labels, while the test images stream in (MEMO, TENT).

Claim (surgical fine-tuning, Lee et al. 2023): MEMO that keeps its weights from
image to image (online) deteriorates when it tunes everything, and improves when it tunes
the first block.

    python -m experiments.surgical_test_time      # embedded digits
    python -m experiments.surgical_test_time --dataset cifar10_corrupted/gaussian_noise_5 \\
        --data-dir DATA --weights resnet26_gn_cifar10

Two CPU cores: a minute, and half an hour. The paper's figures, online: none 67.8,
all 69.7, first layer 75.4, last 67.8, at an unknown severity and learning rate. Ours are in the
documentation, made from results/. The network adapts without labels; where several
learning rates are given, the one with the best accuracy over a stream of validation images
is taken, and then the test stream is read once.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive, one_of
from experiments.common.images import Target, TargetFlags
from experiments.common.report import results, tables
from experiments.common.report.plots import curves
from experiments.common.report.results import Row
from experiments.common.schemes import SCHEMES, labels
from experiments.common.study import Config, Context, Study, choice_of_first_seed, main
from experiments.common.surgical import NORM_MODES

STREAMS = Target(train_examples=10, validation_examples=300, test_examples=300)


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = STREAMS
    methods: tuple[str, ...] = ("none", "all", "block1", "last")
    """What adapts: none, all, last (the head), units of the network (norms: what TENT's
    paper tunes), or patterns over parameter paths."""
    adaptations: Annotated[tuple[str, ...], *one_of("memo", "tent")] = ("memo",)
    """How: memo (marginal entropy over AugMix copies of an image) or tent (entropy of a
    batch)."""
    modes: Annotated[tuple[str, ...], *one_of("online", "episodic")] = (
        "online",
        "episodic",
    )
    """Whether weights stay from input to input (online) or start anew (episodic)."""
    copies: Positive[int] = 32
    """AugMix copies of an image (MEMO's code)."""
    memo_learning_rates: tuple[Positive[float], ...] = (5e-3,)
    """Learning rates tried for plain SGD, one step an image (MEMO's code)."""
    tent_learning_rates: tuple[Positive[float], ...] = (1e-3,)
    """Learning rates tried for Adam, one step a batch (TENT on CIFAR, recalled)."""
    choose: Annotated[str, *one_of("each", "first")] = "each"
    """Which seeds choose a learning rate on their validation stream: each, or the first
    alone."""
    tent_batch_size: Positive[int] = 50
    """Images of a batch of TENT."""
    norm: Annotated[str, *one_of(*NORM_MODES)] = "stored"
    """Statistics of batch norms (TENT's paper: batch)."""
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {
        "copies": 4,
        "tent_batch_size": 3,
        "target": lambda target: replace(
            target, validation_examples=10, test_examples=6
        ),
    }

    def check(self, settings: Any) -> None:
        """Raises `InputError` for the first combination that cannot be."""
        for method in set(self.methods) & set(SCHEMES):
            raise st.InputError(
                f"{method} is a schedule of training and cannot adapt to a stream: "
                "expected none, all, last, a unit or a pattern"
            )
        if self.common.mesh != 1:
            raise st.InputError("a stream is adapted on one device: leave --mesh at 1")

    def completed(self) -> "Settings":
        """Returns the settings with the default shift of the digits, noise alone."""
        if self.target.shift is not None or not self.target.embedded:
            return self
        return replace(self, target=replace(self.target, shift=("gaussian_noise",)))


class Job(NamedTuple):
    """One stream: its shift and seed, how the network adapts, and what of it."""

    shift: str
    seed: int
    adaptation: str
    mode: str
    method: str


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every stream under every seed."""
    for method in settings.methods:
        labels(task.network, method)
    seeds = range(settings.common.seeds)
    ways = settings.adaptations, settings.modes, settings.methods
    return map(Job._make, product(settings.target.shifts, seeds, *ways))


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Yields a row per learning rate over the validation images, then one over the test's.

    With one alone to try, or the first seed's choice, nothing is to be chosen.
    """
    choice = choice_of_first_seed(job, context, settings.choose)
    memo_rates, tent_rates = settings.memo_learning_rates, settings.tent_learning_rates
    rates = memo_rates if job.adaptation == "memo" else tent_rates
    if choice is not None:
        rates = (choice["learning_rate"],)
    tried = [] if job.method == "none" or len(rates) == 1 else rates
    scored = [stream_row(settings, task, job, rate, "validation") for rate in tried]
    yield from scored
    whole = [row for row in scored if row["value"] is not None] or scored[:1]
    best = max(whole, key=lambda row: row["value"] or 0.0, default={})
    rate = best.get("learning_rate", rates[0])
    yield stream_row(settings, task, job, rate, "test")


def stream_row(
    settings: Settings, task: st.Task, job: Job, learning_rate: float, split: str
) -> Row:
    """Returns the row of a stream: accuracy over all images, and after each of them."""
    begin = time.perf_counter()

    def stream(data: st.Dataset) -> st.training.StreamResult:
        return adapted(settings, task, job, learning_rate, data)

    def scored(result: st.training.StreamResult, targets: np.ndarray) -> dict[str, Any]:
        return stream_scores(result, targets, task.metrics[split])

    if split == "validation":
        scores = scored(stream(task.validation), task.validation.y)
    else:
        tested = task._replace(metrics={"test": scored})
        scores = st.test_once(stream, tested)[task.metric]
    return {
        "dataset": settings.target.dataset,
        "task": settings.target.name_of(job.shift),
        "metric": task.metric,
        "split": split,
        "learning_rate": learning_rate,
        **scores,
        "trainable_params": st.count_trainable(
            task.network, labels(task.network, job.method)
        ),
        "total_params": st.tree.count(task.network.params),
        "seconds": time.perf_counter() - begin,
        "commit": results.commit(),
    }


def adapted(
    settings: Settings, task: st.Task, job: Job, learning_rate: float, data: st.Dataset
) -> st.training.StreamResult:
    """Returns the outputs for a stream under what the job adapts, if anything."""
    if job.method == "none":
        return st.training.StreamResult(st.predict(task.network, data), False)
    chosen = labels(task.network, job.method)
    way = {
        "learning_rate": learning_rate,
        "seed": job.seed,
        "norm": settings.norm,
        "episodic": job.mode == "episodic",
    }
    if job.adaptation == "memo":
        return st.training.memo(
            task.network, chosen, data, copies=settings.copies, **way
        )
    size = settings.tent_batch_size
    return st.training.tent(task.network, chosen, data, batch_size=size, **way)


def stream_scores(
    result: st.training.StreamResult, targets: np.ndarray, metric: Any
) -> dict[str, Any]:
    """Returns the score of a whole stream (`None` of one that diverged), its status, and
    the accuracy after each input."""
    hits = np.argmax(result.outputs, axis=1) == targets[: len(result.outputs)]
    whole = len(hits) == len(targets)
    return {
        "value": metric(result.outputs, targets) if whole else None,
        "status": "diverged" if result.diverged else "ok",
        "curve": np.round(
            100 * np.cumsum(hits) / np.arange(1, len(hits) + 1), 1
        ).tolist(),
        "steps": len(hits),
    }


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns what the table holds, and the table."""
    note = "Accuracy in percent over the stream, mean (standard error)."
    return f"{note}\n\n{stream_table(rows, config)}"


def stream_table(rows: Sequence[Row], config: Config) -> str:
    """Returns accuracy by adaptation and mode, and by what adapted."""
    tests = [row for row in rows if row["split"] == "test"]
    named = [row | {"stream": _line(row)} for row in tests]
    return tables.markdown(tables.cells(named, "stream", "method"), "target")


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws stream.png: accuracy so far by the number of images seen."""
    if lines := stream_curves([row for row in rows if row["split"] == "test"]):
        axes = {"xlabel": "images seen", "ylabel": "accuracy so far (%)"}
        curves(lines, out / "stream.png", **axes)


def stream_curves(tests: Sequence[Row]) -> dict[str, dict[str, tuple]]:
    """Returns `{stream: {method: (images seen, accuracy so far)}}`, online, mean of the
    seeds whose streams were whole."""
    by_line: dict[str, dict[str, list]] = {}
    for row in tests:
        if row["mode"] == "online" and row["status"] == "ok":
            methods = by_line.setdefault(_line(row), {})
            methods.setdefault(row["method"], []).append(row["curve"])
    return {
        line: {
            method: (np.arange(1, len(many[0]) + 1), np.mean(many, axis=0))
            for method, many in methods.items()
        }
        for line, methods in by_line.items()
    }


def _line(row: Row) -> str:
    return f"{row['task']}: {row['adaptation']}, {row['mode']}"


STUDY = Study(
    settings=Settings,
    job=Job,
    name="surgical_test_time",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary, "by_stream": stream_table},
    draw=draw,
    free=("methods", "shift", "modes", "adaptations"),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

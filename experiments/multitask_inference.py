"""What many tasks on one base cost beside one model, and beside a model for each.

Claim (SubTuning, Kaplun et al. 2023): tasks that tune a few layers share all others at
inference, so that a task more costs what lies above its first tuned layer, or less.

    python -m experiments.multitask_inference      # two minutes on two cores
    python -m experiments.multitask_inference --parts mixed --tasks 1 4 16 64
    python -m experiments.multitask_inference --network resnet50 --examples 4 --parts tasks

Random weights and inputs, which do not change the time; accuracies are of the embedded
digits. A trunk answers for all tasks on the same images; a mixed batch has a task for
each text, on an encoder of MiniLM's shape. With PEFT (`pip install 'subtune-jax[peft]'`) its
mixed batches of LoRA are timed in the same run. Ours is in the documentation, made from
results/.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive, one_of
from experiments.common.mixed_cost import KINDS, installed, mixed_batch
from experiments.common.report import results, tables
from experiments.common.report.plots import scattered
from experiments.common.report.results import Row
from experiments.common.speed import require_no_data
from experiments.common.study import Config, Context, Study, main
from experiments.common.trunk_cost import accuracy, blocks, images, trunk

PARTS = ("unit", "pair", "tasks", "mixed", "accuracy")


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    parts: Annotated[tuple[str, ...], *one_of(*PARTS)] = ("accuracy", "unit", "tasks")
    """What is measured: a task that tuned one unit, or two neighbours; 1 to 32 tasks on the
    last; mixed batches; accuracy against time."""
    network: Annotated[str, *one_of("resnet26", "resnet50")] = "resnet26"
    """Of a trunk: a residual network of CIFAR's size, or of ImageNet's (SubTuning)."""
    examples: Positive[int] = 16
    """Images of a batch (SubTuning: 1)."""
    texts: Positive[int] = 64
    """Texts of a mixed batch."""
    tokens: Positive[int] = 128
    """Tokens of a text."""
    tasks: tuple[int, ...] = (1, 4, 16)
    """How many tasks a mixed batch has."""
    kinds: Annotated[tuple[str, ...], *one_of(*KINDS)] = tuple(KINDS)
    """What its tasks changed: biases and LayerNorms; kernels by LoRA; the same by PEFT, where
    `subtune-jax[peft]` is installed; elements, sorted into tasks, or gathered for each row."""
    stacked: bool | None = None
    """Whether a trunk's distinct weights are one array (default: on an accelerator)."""
    repeats: Positive[int] = 5
    """How often each call is timed; the median is shown."""
    common: Flags = field(default_factory=Common)

    OLDER: ClassVar = {"kinds": [], "stacked": None}
    SMOKE: ClassVar = {
        "examples": 2,
        "texts": 4,
        "tokens": 8,
        "tasks": (2,),
        "repeats": 1,
    }

    def check(self, settings: Any) -> None:
        """Raises `InputError` for flags without a use."""
        require_no_data(self)
        for count in self.tasks:
            if not 1 <= count <= self.texts:
                raise st.InputError(
                    f"--tasks must be from 1 to the {self.texts} texts of a batch, got "
                    f"{count}"
                )
        if not any(map(installed, self.kinds)):
            raise st.InputError("--kinds peft: pip install 'subtune-jax[peft]'")


class Job(NamedTuple):
    """What is measured: of a part, what tasks changed, and how many there are."""

    part: str
    changed: str
    tasks: int
    seed: int


def jobs(settings: Settings, task: None) -> list[Job]:
    """Returns the measurements of all parts."""
    units, counts = blocks(images(settings)[0]), (1, 2, 4, 8, 16, 32)
    kinds = [kind for kind in settings.kinds if installed(kind)]
    if "mixed" in settings.parts and len(kinds) < len(settings.kinds):
        print(
            "PEFT is left out: pip install 'subtune-jax[peft]' to time it beside ours"
        )
    neighbours = [" ".join(pair) for pair in zip(units, units[1:], strict=False)]
    digits = [*blocks(st.demo.digits_task("contrast").network), "all"]
    every = {
        "unit": [(unit, 1) for unit in units],
        "pair": [(pair, 1) for pair in neighbours],
        "tasks": [(units[-1], count) for count in counts],
        "mixed": [(kind, count) for kind in kinds for count in settings.tasks],
        "accuracy": [(block, 1) for block in digits],
    }
    short = 1 if settings.common.smoke else None
    return [
        Job(part, changed, count, seed)
        for part in settings.parts
        for changed, count in every[part][:short]
        for seed in range(settings.common.seeds if part == "accuracy" else 1)
    ]


def rows(settings: Settings, task: None, job: Job, context: Context) -> Iterator[Row]:
    """Yields a row: seconds of a call, of one model, and of a model for each task."""
    measure = {"mixed": mixed_batch, "accuracy": accuracy}.get(job.part, trunk)
    measured = measure(settings, job)
    yield {
        "dataset": "digits" if job.part == "accuracy" else "random",
        "method": f"{job.part}: {job.changed}",
        "metric": "seconds",
        "split": "test",
        "trainable_params": 0,
        "steps": settings.repeats,
        "seconds": measured["value"] * settings.repeats,
        "commit": results.commit(),
        **measured,
    }


def of_part(part: str, rows: Sequence[Row], config: Config) -> str:
    """Returns a part's rows as markdown, relative to one model."""
    head = "| changed | tasks | ms | one model ms | ratio | separate | GFLOP ratio | bytes |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if row["part"] == part:
            kind = KINDS.get(row["changed"])
            times = (row["value"] / row["one"], row["separate"] / row["one"])
            lines.append(
                f"| {kind.label if kind else row['changed']} | {row['tasks']} | "
                f"{1000 * row['value']:.1f} | "
                f"{1000 * row['one']:.1f} | {times[0]:.2f} | {times[1]:.2f} | "
                f"{row['flops'] / row['one_flops']:.3f} | {row['bytes']:,} |"
            )
    return "\n".join(lines)


def accuracies(rows: Sequence[Row], config: Config) -> str:
    """Returns the accuracy of each unit (mean over seeds) beside what serving it costs."""
    lines = ["| tuned | accuracy | time, one model is 1 | FLOPs |", "|---|---|---|---|"]
    for unit, seeds in by_unit(rows).items():
        scores = tables.mean_and_error([row["score"] for row in seeds])
        time, flops = times(seeds), seeds[0]["flops"] / seeds[0]["one_flops"]
        lines.append(
            f"| {unit} | {tables.text_of(tables.Cell(*scores))} | {time:.2f} | {flops:.2f} |"
        )
    return "\n".join(lines)


def by_unit(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the rows of accuracies by what was tuned."""
    units: dict[str, list[Row]] = {}
    for row in rows:
        if row["part"] == "accuracy":
            units.setdefault(row["changed"], []).append(row)
    return units


def times(rows: Sequence[Row]) -> float:
    """Returns the median of the time of a call, as a share of one model's."""
    return float(np.median([row["value"] / row["one"] for row in rows]))


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns the tables of all parts that were measured."""
    parts = []
    for part in dict.fromkeys(row["part"] for row in rows):
        whole = accuracies if part == "accuracy" else partial(of_part, part)
        parts.append(f"{part}\n\n{whole(rows, config)}")
    return "\n\n".join(parts)


def draw(out: Path, rows: Sequence[Row], settings: Any, task: Any) -> None:
    """Writes the picture of accuracy against time."""
    points = {
        unit: (times(seeds), float(np.mean([row["score"] for row in seeds])))
        for unit, seeds in by_unit(rows).items()
    }
    if points:
        label = "time for the source and this task (one model is 1)"
        scattered(points, out / "accuracy.png", label, "accuracy (%)")


STUDY = Study(
    settings=Settings,
    job=Job,
    name="multitask_inference",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary}
    | {part: partial(of_part, part) for part in PARTS[:-1]}
    | {"accuracy": accuracies},
    draw=draw,
    free=("parts", "tasks", "kinds"),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

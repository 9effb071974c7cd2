"""Variants of tuning a chosen subset (SubTuning, Kaplun et al. 2023, appendix and first code).

Claims: pretrained weights matter in the tuned layers too; a frozen copy beside the tuned
network helps; tuned layers can be pruned; with active learning fewer labels are needed.

    python -m experiments.subtuning_variants      # embedded digits
    python -m experiments.subtuning_variants --weights WEIGHTS --new-head \\
        --dataset cifar100 --train-examples 1000 --tuned block3_2 --data-dir DATA

The paper's figures were not read; ours are in the documentation, made
from results/. Active learning asks for the labels of the images with the smallest margin,
p(first class) - p(second); `random queries` has as many labels, of images drawn at random.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import numpy as np

import subtune_jax as st
from experiments.common import search_tables
from experiments.common.flags import (
    Common,
    Flags,
    Positive,
    Share,
    by_data,
    default,
)
from experiments.common.images import TargetFlags, with_digits
from experiments.common.report import tables
from experiments.common.report.plots import grouped_bars
from experiments.common.report.results import Row
from experiments.common.study import Config, Context, Study, main
from experiments.common.subtuning import (
    Job,
    Recipe,
    RecipeFlags,
    Subset,
    final_row,
    new_task,
    tuned,
    units_of,
)


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(
        default_factory=lambda: replace(new_task(), network_norm="batch")
    )
    tuned: Annotated[tuple[str, ...] | None, default("the last block", "UNIT...")] = (
        None
    )
    """The subset of blocks that is tuned."""
    variants: tuple[str, ...] = ()
    """Which variants; none given: all."""
    rank: Positive[int] = 4
    """Rank of LoRA in the chosen blocks."""
    pruned: Share = 0.5
    """Share of the inner channels of the tuned blocks that is pruned (first code)."""
    hidden: Positive[int] = 64
    """Width of the head's hidden layer (official code)."""
    queries: Annotated[
        tuple[Positive[int], ...] | None, *by_data((20, 40, 80), (100, 300, 600))
    ] = None
    """Labels in all after each round of active learning (first code: 100, 500, 1000, 2500,
    5000, 10000, of CIFAR-10)."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"queries": lambda queries: queries[:2]}

    completed = with_digits


def chosen(network: st.Network, settings: Settings) -> Subset:
    """Returns the subset of blocks that is tuned."""
    return settings.tuned or units_of(network, settings.recipe)[-1:]


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every variant under every seed."""
    units = chosen(task.network, settings)
    for unit in units:
        st.selection.match(task.network, unit)
    queries = settings.queries
    if sorted(set(queries)) != list(queries):
        raise st.InputError(f"--queries must rise, got {' '.join(map(str, queries))}")
    if queries[-1] > len(task.train.y):
        raise st.InputError(
            f"--queries ends with {queries[-1]} labels: there are {len(task.train.y)} "
            "training images"
        )
    for name in settings.variants:
        if name not in VARIANTS:
            raise st.InputError(
                f"unknown variant {name!r}: expected one of {', '.join(VARIANTS)}"
            )
    names = settings.variants or (*VARIANTS,)
    if "pruned" in names:  # not after an hour: group norms cannot be pruned
        st.models.prune(task.network, units, settings.pruned)
    seeds = range(settings.common.seeds)
    return map(Job._make, product(settings.target.shifts, names, seeds))


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Returns the test row of a variant."""
    return VARIANTS[job.method](settings, task, job, context)


def plain(settings: Settings, task: st.Task, job: Job, context: Context):
    """Tunes the subset as it was pretrained."""
    yield final_row(settings, task, job, context, chosen(task.network, settings))


def reinitialized(settings: Settings, task: st.Task, job: Job, context: Context):
    """Tunes the subset from random values; the rest keeps its pretraining."""
    units, key = chosen(task.network, settings), jax.random.key(job.seed)
    paths = [p for unit in units for p in st.selection.match(task.network, unit)]
    network = st.models.reinitialized(task.network, paths, key)
    yield final_row(settings, task._replace(network=network), job, context, units)


def siamese(settings: Settings, task: st.Task, job: Job, context: Context):
    """Tunes the subset beside a frozen copy; the head reads the features of both."""
    units = chosen(task.network, settings)
    first = min(name for unit in units for name in stages_of(task.network, unit))
    fork = task.network.stages[first].name
    classes = task.network.params["head"]["bias"].shape[0]
    network = st.models.siamese(task.network, fork, classes)
    yield final_row(settings, task._replace(network=network), job, context, units)


def stages_of(network: st.Network, unit: str) -> list[int]:
    """Returns the indices of the stages in which a unit has a leaf."""
    names = [stage.name for stage in network.stages]
    paths = st.selection.match(network, unit)
    return sorted({names.index(path.partition("/")[0]) for path in paths})


def pruned(settings: Settings, task: st.Task, job: Job, context: Context):
    """Takes inner channels out of the subset, then tunes it."""
    units = chosen(task.network, settings)
    network = st.models.prune(task.network, units, settings.pruned)
    yield final_row(settings, task._replace(network=network), job, context, units)


def low_rank(settings: Settings, task: st.Task, job: Job, context: Context):
    """Tunes the subset by LoRA, with dense tuning of the head alone."""
    units, tuning = chosen(task.network, settings), st.tuning.lora(settings.rank)
    yield final_row(settings, task, job, context, units, tuning=tuning)


def hidden(settings: Settings, task: st.Task, job: Job, context: Context):
    """Tunes the subset under a head with a hidden layer."""
    classes = task.network.params["head"]["bias"].shape[0]
    key, width = jax.random.key(job.seed), settings.hidden
    network = st.hidden_head(task.network, classes, key, width=width)
    units = chosen(network, settings)
    yield final_row(settings, task._replace(network=network), job, context, units)


def queried(
    active: bool, settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Tunes the subset on more and more labels, from the pretrained network each time;
    only the last round is tested."""
    units, pool = chosen(task.network, settings), task.train
    rng = np.random.default_rng([job.seed, 2])
    order = rng.permutation(len(pool.y))
    labelled = order[: settings.queries[0]]
    for count in settings.queries[1:]:
        left = order[~np.isin(order, labelled)]
        more = left[: count - len(labelled)]
        if active:
            part = task._replace(train=pool.take(labelled))
            try:
                network = tuned(part, settings.recipe, units, job.seed).network
            except ArithmeticError:  # the last round diverges too, and its row says so
                break
            margins = margin(st.predict(network, pool.take(left)))
            nearest = np.argsort(margins, kind="stable")[: len(more)]
            more = left[nearest]
        labelled = np.concatenate([labelled, more])
        context.progress(f"{len(labelled)} labels")
    part = task._replace(train=pool.take(labelled))
    row = final_row(settings, part, job, context, units)
    yield row | {"labels": len(labelled)}


def margin(logits: np.ndarray) -> np.ndarray:
    """Returns p(first class) - p(second) of every row, float[rows]."""
    best = np.sort(np.asarray(jax.nn.softmax(logits, axis=-1)), axis=-1)
    return best[:, -1] - best[:, -2]


VARIANTS = {
    "pretrained": plain,
    "reinitialized": reinitialized,
    "siamese": siamese,
    "pruned": pruned,
    "LoRA": low_rank,
    "hidden head": hidden,
    "active queries": partial(queried, True),
    "random queries": partial(queried, False),
}


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns what the table holds, and the table."""
    note = (
        "Test accuracy in percent of the last step, mean (standard error) over seeds."
    )
    return f"{note}\n\n{search_tables.by_method(rows, config)}"


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: Any) -> None:
    """Draws variants.png: a bar for each variant."""
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for (name, variant), cell in tables.cells(rows, "task", "method").items():
        if np.isfinite(cell.mean):
            bars.setdefault(name, {})[variant] = (cell.mean, cell.error)
    if bars:
        grouped_bars(bars, out / "variants.png")


STUDY = Study(
    settings=Settings,
    job=Job,
    name="subtuning_variants",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary, "by_method": search_tables.by_method},
    draw=draw,
    free=("variants", "shift"),
    draws_once=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

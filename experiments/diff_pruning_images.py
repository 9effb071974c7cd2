"""A task of images as a sparse change of all weights (diff pruning, Guo, Rush and Kim 2021).

Claim (of the paper for texts, tried here on images): half a percent of the weights, chosen
by gates that learn which to keep, do as well as all of them.

    python -m experiments.diff_pruning_images      # embedded digits
    python -m experiments.diff_pruning_images --dataset cifar100 --new-head \\
        --weights resnet20_cifar10 --data-dir DATA --train-examples 1000

One CPU core: a few minutes. The paper has no images: there is no figure to compare with.
Methods, steps and what is tested are those of diff_pruning; norms keep their statistics.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, ClassVar, NamedTuple

import subtune_jax as st
from experiments.common import diff_tables
from experiments.common.diffs import (
    Diff,
    DiffFlags,
    kinds_of,
    require_runnable,
    sparse_rows,
)
from experiments.common.flags import Common, Flags, Share, one_of
from experiments.common.images import Target, TargetFlags
from experiments.common.modules import ModuleRecipe, ModuleRecipeFlags
from experiments.common.report.results import Row
from experiments.common.source import with_contrast
from experiments.common.study import Context, Study, main

METHODS = ("full", "constrained", "non_adaptive", "random")
CHOICES = (*METHODS, "last_layer", "biases", "structured", "plain", "fixed_gates")


def new_task() -> Target:
    """Returns the flags of a target: a head that begins anew begins at zeros."""
    return Target(head_start="zeros")


def rates() -> ModuleRecipe:
    """Returns the flags of training, with rates of convolutional networks."""
    return ModuleRecipe(
        full_learning_rates=(1e-3, 3e-3),
        learning_rates=(1e-2, 3e-2),
        head_learning_rate=1e-2,
        epochs=20,
        choose="first",
    )


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=new_task)
    methods: Annotated[tuple[str, ...], *one_of(*CHOICES, "top_magnitude")] = METHODS
    """full; last_layer, biases (BitFit); structured and plain (gates with and without one
    for each tensor), constrained (gates held to the target), fixed_gates (constrained, its
    gates then fixed in the place of a mask); non_adaptive (the largest changes of full),
    random and top_magnitude (masks chosen before tuning)."""
    sparsity: tuple[Share, ...] = (0.02,)
    """Share of the weights that change, outside the head."""
    diff: DiffFlags = field(default_factory=Diff)
    recipe: ModuleRecipeFlags = field(default_factory=rates)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"methods": ("non_adaptive",)}

    completed = with_contrast


class Job(NamedTuple):
    """A method at a sparsity (1: dense) on a shift under a seed."""

    shift: str
    method: str
    sparsity: float
    seed: int


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every method at every sparsity on every shift, the first seed first."""
    require_runnable(settings, task)
    kinds = kinds_of(settings.methods, settings.sparsity)
    every = product(settings.target.shifts, range(settings.common.seeds), kinds)
    return (Job(shift, *kind, seed) for shift, seed, kind in every)


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Yields the rows of a method at a sparsity on a shift under a seed."""
    target, loss = settings.target, st.losses.cross_entropy
    about = job._asdict() | {
        "dataset": target.dataset,
        "task": target.name_of(job.shift),
    }
    yield from sparse_rows(settings, task, job, context, about=about, loss=loss)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="diff_pruning_images",
    jobs=jobs,
    rows=rows,
    tables=diff_tables.TABLES,
    draw=diff_tables.draw,
    free=("methods", "sparsity", "shift"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

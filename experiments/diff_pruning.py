"""A task as a sparse change of all weights (diff pruning, Guo, Rush and Kim 2021).

Claim (their table 1): half a percent of the weights, chosen by gates that learn which to
keep, do as well as all of them (80.6 and 80.6 on GLUE with BERT-large); the largest changes
of full fine-tuning do not (75.5).

    python -m experiments.diff_pruning      # embedded sentences
    python -m experiments.diff_pruning --dataset glue/stsb --weights minilm \\
        --data-dir DATA --sparsity 0.005 --dropout 0

Two CPU cores: two and a half minutes, most of them compilation (every mask is a program of its
own); and three hours. Ours are in the documentation, made from results/.

Every method has the same number of steps in all, and the same number of learning rates.
What is tested is the network that the stored delta gives. The paper's way (structured,
plain) has a fixed strength of the penalty; constrained is ours, and needs none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
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
from experiments.common.modules import ModuleRecipe, ModuleRecipeFlags, loss_of
from experiments.common.report.results import Row
from experiments.common.sparse import DENSE, SPARSE
from experiments.common.study import Context, Study, main
from experiments.common.texts import TextTarget, TextTargetFlags

METHODS = ("full", "constrained", "non_adaptive", "random", "top_magnitude")


def of_first_seed() -> ModuleRecipe:
    """Returns the flags of training: the first seed chooses rates for all."""
    return ModuleRecipe(choose="first")


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TextTargetFlags = field(default_factory=TextTarget)
    methods: Annotated[tuple[str, ...], *one_of(*DENSE, *SPARSE)] = METHODS
    """full; last_layer, biases (BitFit); structured and plain (gates with and without
    one for each tensor), constrained (gates held to the target), outputs (that on the
    layers' output projections alone), fixed_gates (constrained, its gates then fixed in the
    place of a mask); non_adaptive (the largest changes of full), random and top_magnitude
    (masks chosen before tuning); lora (of the highest rank with no more values). Methods
    of two phases move all weights at the rates of full, and then few at the others."""
    sparsity: tuple[Share, ...] = (0.005,)
    """Share of the weights that change, outside the head (paper: 0.001 to 0.01)."""
    diff: DiffFlags = field(default_factory=Diff)
    recipe: ModuleRecipeFlags = field(default_factory=of_first_seed)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"methods": ("plain",)}


class Job(NamedTuple):
    """A method at a sparsity (1: dense) under a seed."""

    method: str
    sparsity: float
    seed: int


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every method at every sparsity, the first seed first."""
    require_runnable(settings, task)
    kinds = kinds_of(settings.methods, settings.sparsity)
    return (Job(*kind, seed) for seed in range(settings.common.seeds) for kind in kinds)


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Yields the rows of a method at a sparsity under a seed."""
    dataset = settings.target.dataset
    about = job._asdict() | {"dataset": dataset, "task": dataset.split("/")[-1]}
    loss = loss_of(task)
    yield from sparse_rows(settings, task, job, context, about=about, loss=loss)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="diff_pruning",
    jobs=jobs,
    rows=rows,
    tables=diff_tables.TABLES,
    draw=diff_tables.draw,
    free=("methods", "sparsity"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

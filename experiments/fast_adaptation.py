"""How fast a task is learnt, and how much of the source is forgotten meanwhile (FAST, Varno
et al. 2020).

Claim (their abstract): a new head that starts at maximum entropy, on normalized features,
and a backbone that is spared the first errors, learn the target faster and forget the
source more slowly than prevailing practice.

    python -m experiments.fast_adaptation      # embedded digits
    python -m experiments.fast_adaptation --dataset cifar100 --new-head \\
        --weights resnet20_cifar10 --source-dataset cifar10 --data-dir DATA

One CPU core: three minutes. Only abstracts could be read: strategies, rates and
measurements are our reconstruction (docs/methods.md), and there is no figure of the paper
to compare with.
Curves are of the validation part, on which the learning rate is chosen by the accuracy
after the last step; the test part is read once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import subtune_jax as st
from experiments.common.adaptation import Job, Recipe, RecipeFlags
from experiments.common.curve_tables import TABLES, draw
from experiments.common.flags import Common, Flags, one_of
from experiments.common.images import TargetFlags
from experiments.common.source import (
    SourceFlags,
    SourceTask,
    new_task,
    target_jobs,
    target_rows,
    with_contrast,
)
from experiments.common.strategies import STRATEGIES
from experiments.common.study import Study, main


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=new_task)
    strategies: Annotated[tuple[str, ...], *one_of(*STRATEGIES)] = tuple(STRATEGIES)
    """fast (zeros on normalized features, a stall of one update), entame (our reading of
    it: weights of deviation 0.01 in their place), ordinary fine-tuning from a head of
    torch, he or zero; head_only; lp_ft and warm_up (the head alone for half or a tenth of
    the steps); gradual (unfreezing from the last block); small_rate (a tenth below the
    head)."""
    source: SourceFlags = field(default_factory=SourceTask)
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    completed = with_contrast


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every one of them on every target, the first seed first."""
    return target_jobs(STRATEGIES, settings.strategies, settings, task)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="fast_adaptation",
    jobs=jobs,
    rows=partial(target_rows, STRATEGIES),
    tables=TABLES,
    draw=draw,
    free=("shift", "strategies"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

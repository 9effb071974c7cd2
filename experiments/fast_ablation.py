"""What each ingredient of FAST gives: the start of the head, its normalization, the stall.

Claim (FAST's abstract; the parts are named in that of ENTAME): maximum entropy,
normalization and the stall belong together. Counter-claim (Ren et al. 2023): some energy is
good, and a head that was trained a little first does better than one at zeros.

    python -m experiments.fast_ablation      # embedded digits
    python -m experiments.fast_ablation --dataset cifar100 --new-head \\
        --weights resnet20_cifar10 --data-dir DATA --steps 100

One CPU core: three minutes. A stall of k updates is a head that was trained for k updates: 1 is
FAST's, 10 and 50 are the counter-claim's. Ours are in the documentation, made from
results/.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Annotated, ClassVar

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
from experiments.common.strategies import Strategy
from experiments.common.study import Study, main

INITS, NORMALIZES = ("zero", "torch"), ("none", "batch")
GRID = {
    f"{init}-{normalize}-{stall}": Strategy(init, normalize, stall)
    for init, normalize, stall in product(INITS, NORMALIZES, (0, 1))
}
MORE = {
    f"zero-{normalize}-{stall}": Strategy("zero", normalize, stall)
    for normalize, stall in (("batch_affine", 1), ("batch", 10), ("batch", 50))
}
STRATEGIES = GRID | MORE


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=new_task)
    ingredients: Annotated[tuple[str, ...], *one_of(*STRATEGIES)] = tuple(STRATEGIES)
    """START-NORMALIZATION-STALL: the head's weights (zero or torch), what normalizes its
    features (none, batch, batch_affine), and how many updates it has alone."""
    source: SourceFlags = field(default_factory=SourceTask)
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"ingredients": ("zero-batch-1", "torch-none-0")}

    completed = with_contrast


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every one of them on every target, the first seed first."""
    return target_jobs(STRATEGIES, settings.ingredients, settings, task)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="fast_ablation",
    jobs=jobs,
    rows=partial(target_rows, STRATEGIES),
    tables=TABLES,
    draw=draw,
    free=("shift", "ingredients"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

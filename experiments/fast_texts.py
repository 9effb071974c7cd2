"""How fast an encoder learns a task, and how much it forgets meanwhile (FAST, Varno et al.
2020).

Claim (their abstract, for images): a head that starts at maximum entropy on normalized
features, and a backbone that is spared the first errors, learn the target faster and forget
the source more slowly.

    python -m experiments.fast_texts      # embedded sentences
    python -m experiments.fast_texts --dataset glue/sst2 --weights minilm --data-dir DATA \\
        --steps 100 --batch-size 16 --learning-rates 1e-4 3e-4

One CPU core: a few minutes, and half an hour a seed. Ours are in the documentation, made
from results/. Forgetting on embedded data is the accuracy on the encoder's own sentences
by its kept head; on real data, how well the cosine of two sentences' features still ranks
the pairs of STS-B (Spearman's correlation, of its validation split). Strategies and
measurements are those of fast_adaptation, a reconstruction from abstracts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import tyro

import subtune_jax as st
from experiments.common.adaptation import (
    Recipe,
    RecipeFlags,
    adapted_rows,
    require_strategies,
)
from experiments.common.curve_tables import TABLES, draw
from experiments.common.flags import Common, Flags, Positive, one_of
from experiments.common.report.results import Row
from experiments.common.strategies import STRATEGIES
from experiments.common.study import Context, Study, main
from experiments.common.texts import TextTarget, TextTargetFlags, encoder, reader

SEVERAL = ("fast", "torch", "zero", "head_only", "lp_ft")
Remembered = Callable[[st.Network], float]


@dataclass(frozen=True)
class Source:
    """What is forgotten."""

    source_examples: Positive[int] = 256
    """Sentences, or pairs of them, that are looked at at every recorded step."""


def lower_rates() -> Recipe:
    """Returns the flags of training, with rates for encoders."""
    return Recipe(learning_rates=(2e-4, 1e-3))


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TextTargetFlags = field(
        default_factory=lambda: TextTarget(validation_examples=256)
    )
    strategies: Annotated[tuple[str, ...], *one_of(*STRATEGIES)] = SEVERAL
    """As in fast_adaptation."""
    source: Annotated[Source, tyro.conf.OmitArgPrefixes] = field(default_factory=Source)
    recipe: RecipeFlags = field(default_factory=lower_rates)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"strategies": ("fast", "torch")}


class Job(NamedTuple):
    """A strategy under a seed."""

    method: str
    seed: int


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every strategy, the first seed first."""
    if task.train.y.ndim != 1:
        raise st.InputError(
            f"{settings.target.dataset} is not a task of classes: a head at maximum entropy "
            "needs some"
        )
    require_strategies(settings, task, [STRATEGIES[n] for n in settings.strategies])
    remembered(settings)  # refuses pairs that are not there
    seeds = range(settings.common.seeds)
    return (Job(method, seed) for seed, method in product(seeds, settings.strategies))


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Yields the rows of a strategy under a seed."""
    target = settings.target
    about = {
        "dataset": target.dataset,
        "task": target.dataset.split("/")[-1],
        "classes": task.network.params["head"]["kernel"].shape[1],
    }
    yield from adapted_rows(
        task,
        STRATEGIES[job.method],
        settings.recipe,
        job,
        context,
        remembered=remembered(settings),
        about=about,
        mesh=settings.common.mesh,
    )


def remembered(settings: Settings) -> Remembered:
    """Returns the score of an encoder on what it was pretrained for."""
    count = settings.source.source_examples
    if not settings.target.embedded:
        return pairs_score(settings, count)
    source, data = st.demo.docstrings_source()
    some = data.only(np.random.default_rng(0).permutation(len(data.y))[:count])
    return st.evaluation.source_score(source, some)


def pairs_score(settings: Settings, count: int) -> Remembered:
    """Returns how well features rank pairs of STS-B: Spearman's correlation, in percent, of
    the cosine of two sentences' features and their stated similarity."""
    target, common = settings.target, settings.common
    read, longest = reader(encoder(target, common, 1), target, common, 128)
    pairs = st.data.records("glue/stsb", "validation", common.tfds_home())
    rows = [pairs[i] for i in range(min(count, len(pairs)))]
    sides = [
        st.data.encode(read, [[row[name].decode()] for row in rows], longest)
        for name in ("sentence1", "sentence2")
    ]
    similarity = np.array([[row["label"]] for row in rows], np.float32)

    def score(network: st.Network) -> float:
        features = st.evaluation.body(network)
        one, other = (st.predict(features, side) for side in sides)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosine = (one * other).sum(axis=1) / lengths
        return st.metrics.spearman(cosine[:, None], similarity)

    return score


STUDY = Study(
    settings=Settings,
    job=Job,
    name="fast_texts",
    jobs=jobs,
    rows=rows,
    tables=TABLES,
    draw=draw,
    free=("strategies",),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

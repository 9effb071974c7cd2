"""Searches for a subset of units: kinds of search, their flags, rows, tables, picture."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import tyro

import subtune_jax as st
from experiments.common.flags import (
    NonNegative,
    Positive,
    Range,
    Share,
    default,
    one_of,
)
from experiments.common.report.results import Row
from experiments.common.study import Context, slug
from experiments.common.subtuning import (
    NAMES,
    RANKINGS,
    Job,
    Subset,
    about_row,
    final_row,
    gradient_ranking,
    is_balanced,
    scorer,
    units_of,
)

LORA = "LoRA"  # a method whose rank is searched in the place of units


class Kind(NamedTuple):
    """What a search leaves out: features made once, folds, epochs, units."""

    share: bool = True
    halving: bool = False
    warm: bool = False
    ranked: bool = False


SEARCHES = {
    "exhaustive": Kind(share=False),
    "shared": Kind(),
    "halving": Kind(halving=True),
    "warm": Kind(warm=True),
    "ranked": Kind(ranked=True),
    # Not ranked: RGN ranks the blocks of ResNet-20 for CIFAR-100 the wrong way round.
    "cheap": Kind(halving=True, warm=True),
}


@dataclass(frozen=True)
class Greedy:
    """How a subset is searched; a default without a source is our choice."""

    start: Annotated[str, *one_of("none", "all", "better")] = "none"
    """Where a walk begins (official code: all three)."""
    stop_rule: Annotated[str, *one_of("paper", "official")] = "paper"
    """When it stops: before the first step that gains no more than --epsilon, or, as the
    official code, once it is more than --epsilon below the best."""
    epsilon: NonNegative[float] = 0.0
    """Points of accuracy (official code: 1)."""
    most: Annotated[Positive[int] | None, default("all units", "INT")] = None
    """The most steps of a walk."""
    halving: Annotated[int, Range(1, False, "2 or more")] = 2
    """In the searches `halving` and `cheap` one of every so many candidates goes on, to so
    many times the folds."""
    race_images: Positive[int] = 200
    """A race begins on as many folds as have so many images together (of 200, an accuracy of
    50 % has a standard error of 3.5 points)."""
    warm_epochs: Share = 0.6
    """In the searches `warm` and `cheap` the share of the epochs for which a candidate is
    trained from the set before it."""
    ranking: Annotated[str, *one_of(*RANKINGS)] = "rgn"
    """Score by which the search `ranked` leaves out half of the units in every step."""
    ranks: tuple[Positive[int], ...] = (1, 4, 16)
    """Ranks of LoRA that are tried (official code: 1, 2, 4, ... 512)."""

    SMOKE: ClassVar = {"ranks": lambda ranks: ranks[:2]}
    OLDER: ClassVar = {"halving": 3, "race_images": 1, "warm_epochs": 0.5}


GreedyFlags = Annotated[Greedy, tyro.conf.OmitArgPrefixes]


def search_row(
    settings: Any, task: st.Task, job: Any, context: Context, name: str
) -> Row:
    """Returns the row of a search: the subset, its path, and what it took."""
    begin, recipe, kind = time.perf_counter(), settings.recipe, SEARCHES[name]
    greedy = settings.greedy
    units, folds = units_of(task.network, recipe), recipe.folds
    most = folds * (1 + len(units) * (len(units) + 1) // 2)
    ranking, flops = None, 0.0
    if kind.ranked:
        ranking, flops = gradient_ranking(task, recipe, units, greedy.ranking)
    with journal_of(settings, job, context, name) as journal:
        score = scorer(
            task,
            recipe,
            context.progress,
            share=kind.share,
            warm=greedy.warm_epochs if kind.warm else None,
            balanced=is_balanced(settings),
            most=most - len(journal.scores),
        )
        search = st.selection.greedy(
            units,
            score,
            start=greedy.start,
            stop_rule=greedy.stop_rule,
            epsilon=greedy.epsilon,
            most=greedy.most,
            folds=folds,
            journal=journal,
            halving=greedy.halving if kind.halving else None,
            race_from=-(-folds * greedy.race_images // len(task.train.y)),
            ranking=ranking,
            shortlist=-(-len(units) // 2) if kind.ranked else None,
            order="added" if kind.warm else "table",
        )
    return about_row(settings, task, job) | {
        "split": "search",
        "value": finite(search.value),
        "units": list(search.units),
        "path": [[list(subset), finite(value)] for subset, value in search.path],
        "runs": search.runs,
        "flops": search.flops + flops,
        "seconds": time.perf_counter() - begin,
    }


def journal_of(settings: Any, job: Any, context: Context, name: str) -> Any:
    """Returns the opened journal of a search, by the job without its method and seed; one of
    other data, weights or training is refused."""
    target = settings.target
    place = [v for k, v in job._asdict().items() if k not in ("method", "seed")]
    file = context.out / f"journal_{slug((*place, name))}.jsonl"
    about = {
        "search": name,
        "dataset": target.dataset,
        "train_examples": target.train_examples,
        "base": target.fingerprint(settings.common),
        **asdict(replace(settings.recipe, lanes=None)),  # how, not what
    }
    return st.selection.open_journal(file, about)


def rank_row(settings: Any, task: st.Task, job: Any, context: Context) -> Row:
    """Returns the row of the search for LoRA's rank over all candidates, by the same folds
    as a subset's."""
    begin, recipe = time.perf_counter(), settings.recipe
    ranks = settings.greedy.ranks

    def scored(rank: int) -> st.selection.Scorer:
        tuning = st.tuning.lora(rank)
        return scorer(
            task,
            recipe,
            context.progress,
            share=False,
            balanced=is_balanced(settings),
            tuning=tuning,
        )

    by_rank = {(f"rank {rank}",): scored(rank) for rank in ranks}

    def many(rank: Subset, places: Sequence[Any]) -> Iterator[st.selection.Score]:
        yield from by_rank[rank].many(("blocks",), places)

    # Ranks are the names of units here: what else the values depend on is one for all.
    score = next(iter(by_rank.values()))._replace(many=many)
    with journal_of(settings, job, context, LORA) as journal:
        values = st.selection.profile(
            [*by_rank], score, folds=recipe.folds, journal=journal
        )
        flops = sum(one.flops for one in journal.scores.values())
    means = {units: float(np.mean(scores)) for units, scores in values.items()}
    # What diverged (NaN) never wins, not even over an accuracy of 0.
    best = max(means, key=lambda one: np.nan_to_num(means[one], nan=-1.0))
    return about_row(settings, task, job) | {
        "split": "search",
        "value": finite(means[best]),
        "units": list(best),
        "path": [[list(units), finite(mean)] for units, mean in means.items()],
        "runs": recipe.folds * len(ranks),
        "flops": flops,
        "seconds": time.perf_counter() - begin,
    }


def jobs_of(
    settings: Any, searches: Sequence[str], methods: Sequence[str]
) -> Iterator[Job]:
    """Yields the searches of each shift, then every method under every seed."""
    for shift in settings.target.shifts:
        yield from (Job(shift, f"search {name}", 0) for name in searches)
        seeds = range(settings.common.seeds)
        yield from (Job(shift, *one) for one in product(methods, seeds))


def searched_rows(
    settings: Any, task: st.Task, job: Any, context: Context
) -> Iterator[Row]:
    """Yields the row of a search, or the test row of a method."""
    yield searched_row(settings, task, job, context)


def searched_row(settings: Any, task: st.Task, job: Any, context: Context) -> Row:
    """Returns the row of a job: of a search, or the test row of a method, whose units (or
    rank) are those that its search found."""
    kind, _, name = job.method.partition(" ")
    if kind == "search":
        if name == LORA:
            return rank_row(settings, task, job, context)
        return search_row(settings, task, job, context, name)
    if job.method != LORA and not job.method.startswith("SubTuning, "):
        units = NAMES.get(job.method, (job.method,))
        return final_row(settings, task, job, context, units)
    chosen = choice_of(job, context)
    if job.method != LORA:
        return final_row(settings, task, job, context, chosen)
    tuning = st.tuning.lora(int(chosen[0].removeprefix("rank ")))
    return final_row(settings, task, job, context, ("blocks",), tuning=tuning) | {
        "units": list(chosen)
    }


def finite(value: float) -> float | None:
    """Returns a score as rows have it: `None` where runs diverged."""
    return float(value) if np.isfinite(value) else None


def choice_of(job: Any, context: Context) -> Subset:
    """Returns what the search of a job's method chose: units, or a rank."""
    search = f"search {job.method.removeprefix('SubTuning, ')}"
    wanted = (job._replace(method=search, seed=0)._asdict()).items()
    row = next(row for row in context.earlier if wanted <= row.items())
    return tuple(row["units"])

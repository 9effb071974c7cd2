"""Which units to tune, by training them: finetuning profiles and greedy selection.

A search sees its candidates through one function, score(units, fold, seed) -> `Score`,
which trains these units on a fold and returns their accuracy on what the fold leaves out.
It never sees test data: a task seals them. After SubTuning (Kaplun et al. 2023).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, islice
from numbers import Real
from typing import NamedTuple

from subtune_jax.errors import (
    InputError,
    require_function,
    require_whole,
    unknown,
)
from subtune_jax.selection.journal import Journal, Score

Subset = tuple[str, ...]  # units in the order of the network's table
ScoreOf = Callable[[Subset, int, int], Score]
STARTS = ("none", "all", "better")
STOP_RULES = ("paper", "official")


class Search(NamedTuple):
    """What a search chose, and what it took.

    path: the sets it went through with their mean scores, the start first. runs and
    flops: of all evaluations that the search asked for, those of the journal among them.
    """

    units: Subset
    value: float
    path: tuple[tuple[Subset, float], ...]
    runs: int
    flops: float


def windows(units: Sequence[str], size: int) -> list[Subset]:
    """Returns every run of `size` consecutive units; of size 1, the units one by one."""
    _require_units(units)
    require_whole(size=size)
    if size > len(units):
        raise InputError(
            f"a run of {size} units is longer than the {len(units)} there are"
        )
    return [tuple(units[i : i + size]) for i in range(len(units) - size + 1)]


def pairs(units: Sequence[str]) -> list[Subset]:
    """Returns every pair of units, in their order."""
    _require_units(units)
    return list(combinations(units, 2))


def profile(
    subsets: Sequence[Subset],
    score: ScoreOf,
    *,
    folds: int = 1,
    seeds: int = 1,
    journal: Journal | None = None,
) -> dict[Subset, list[float]]:
    """Returns the finetuning profile: the scores of each subset over seeds and folds.

    The paper's profile has a subset for each unit (`windows(units, 1)`), for runs of
    consecutive units, or for all pairs (SubTuning, figures 1 to 3). journal: see
    `open_journal`. Raises `InputError` for no subsets.
    """
    if not subsets:
        raise InputError("there is no candidate: give units, or subsets of them")
    of = _evaluator(score, folds, seeds, journal or Journal({}))
    return {
        tuple(subset): [one.value for one in of(tuple(subset))] for subset in subsets
    }


def greedy(
    units: Sequence[str],
    score: ScoreOf,
    *,
    start: str = "none",
    stop_rule: str = "paper",
    epsilon: float = 0.0,
    most: int | None = None,
    folds: int = 1,
    seeds: int = 1,
    journal: Journal | None = None,
) -> Search:
    """Returns the subset of units that greedy selection ends with.

    S <- S + argmax_l mean score(S + {l}) from `start="none"`; from `all` units are taken
    away, and `better` starts from whichever of the two scores higher (of equals: none).
    stop_rule: `paper` stops before the first step that gains no more than epsilon, and
    `official` (the published code) steps even where the score falls, stops once it is
    more than epsilon below the best, and returns the best set that it saw. Of equal
    scores the first unit wins; a run that diverged (NaN) never does. most: the longest
    walk. folds and seeds: over how many the mean is taken. Raises `InputError` for no or
    doubled units, and for an unknown start or rule.
    """
    _require_units(units)
    if start not in STARTS:
        raise unknown("start of a search", start, STARTS)
    if stop_rule not in STOP_RULES:
        raise unknown("stop rule", stop_rule, STOP_RULES)
    if not (isinstance(epsilon, Real) and epsilon >= 0):
        raise InputError(f"epsilon must be a number from 0 up, got {epsilon!r}")
    if most is not None:
        require_whole(most=most)
    evaluate = _evaluator(score, folds, seeds, journal or Journal({}))
    asked: dict[Subset, list[Score]] = {}

    def mean(subset: Subset) -> float:
        if subset not in asked:
            asked[subset] = evaluate(subset)
        total = sum(one.value for one in asked[subset])
        return -math.inf if math.isnan(total) else total / len(asked[subset])

    first, adds = _start(tuple(units), start, mean)
    path = [(first, mean(first))]
    best = path[0]
    for step in islice(_walk(units, first, adds, mean), most):
        gain = step[1] - best[1]
        if stop_rule == "paper" and not gain > epsilon:
            break
        path.append(step)
        if gain > 0:
            best = step
        elif gain < -epsilon:
            break
    runs = [one for scores in asked.values() for one in scores]
    return Search(*best, tuple(path), len(runs), sum(one.flops for one in runs))


def _start(
    units: Subset, start: str, mean: Callable[[Subset], float]
) -> tuple[Subset, bool]:
    """Returns the first set of a walk, and whether its steps add units."""
    if start == "better":
        start = "all" if mean(units) > mean(()) else "none"
    return (units, False) if start == "all" else ((), True)


def _walk(
    units: Sequence[str], subset: Subset, adds: bool, mean: Callable[[Subset], float]
) -> Iterator[tuple[Subset, float]]:
    """Yields the best single move from the last set, again and again."""
    while moves := list(_moves(units, subset, adds)):
        subset = max(moves, key=mean)  # of equals the first
        yield subset, mean(subset)


def _moves(units: Sequence[str], subset: Subset, adds: bool) -> Iterator[Subset]:
    for unit in units:
        if (unit in subset) != adds:
            changed = set(subset) ^ {unit}
            yield tuple(u for u in units if u in changed)


def _evaluator(
    score: ScoreOf, folds: int, seeds: int, journal: Journal
) -> Callable[[Subset], list[Score]]:
    """Returns the function that scores a subset on every fold under every seed, once."""
    require_function(3, score=score)
    require_whole(folds=folds, seeds=seeds)
    return lambda subset: [
        journal.once((subset, fold, seed), score)
        for seed in range(seeds)
        for fold in range(folds)
    ]


def _require_units(units: Sequence[str]) -> None:
    if isinstance(units, str) or not units:
        raise InputError("there is no candidate: give the names of units, one or more")
    doubled = [unit for unit in units if list(units).count(unit) > 1]
    if doubled:
        raise InputError(f"the unit {doubled[0]!r} is given twice")

"""Which units to tune, by training them: finetuning profiles and greedy selection.

A search sees its candidates through one function, score(units, fold, seed) -> `Score`,
which trains these units on a fold and returns their accuracy on what the fold leaves out
(a `Scorer` does so for several folds and seeds at once). It never sees test data: a task
seals them. After SubTuning (Kaplun et al. 2023).
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from numbers import Real
from typing import NamedTuple

from subtune_jax.errors import (
    InputError,
    require_function,
    require_whole,
    unknown,
)
from subtune_jax.host_functions import described
from subtune_jax.selection.candidates import (
    Subset,
    moves,
    race,
    require_ranking,
    shortlisted,
)
from subtune_jax.selection.journal import Journal, Key, Score

FoldSeed = tuple[int, int]  # (fold, seed)
STARTS = ("none", "all", "better")
STOP_RULES = ("paper", "official")
ORDERS = ("table", "added")


class Scorer(NamedTuple):
    """A score of many folds and seeds: many(units, places) yields a `Score` for each place,
    (fold, seed), in their order. folds: how many it has; `None`: as many as are asked for.
    about() -> what its values depend on, by name, for a journal. renew(): called when a
    search begins: code counts as it is then."""

    many: Callable[[Subset, Sequence[FoldSeed]], Iterable[Score]]
    folds: int | None = None
    about: Callable[[], Mapping[str, str]] | None = None
    renew: Callable[[], None] | None = None

    def __call__(self, units: Subset, fold: int, seed: int) -> Score:
        (score,) = self.many(tuple(units), [(fold, seed)])
        return score


ScoreOf = Callable[[Subset, int, int], Score] | Scorer


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
    folds: int | None = None,
    seeds: int = 1,
    journal: Journal | None = None,
) -> dict[Subset, list[float]]:
    """Returns the finetuning profile: the scores of each subset over seeds and folds.

    The paper's profile has a subset for each unit (`windows(units, 1)`), for runs of
    consecutive units, or for all pairs (SubTuning, figures 1 to 3). folds: default: those
    of the score, or 1. journal: see `open_journal`. Raises `InputError` for no subsets, for
    other folds than the score has, and for the journal of another score.
    """
    if not subsets:
        raise InputError("there is no candidate: give units, or subsets of them")
    folds = _folds(score, folds)
    scores = _evaluator(score, folds, seeds, journal)
    places = range(folds * seeds)
    return {
        tuple(subset): [one.value for one in scores(tuple(subset), places)]
        for subset in subsets
    }


def greedy(
    units: Sequence[str],
    score: ScoreOf,
    *,
    start: str = "none",
    stop_rule: str = "paper",
    epsilon: float = 0.0,
    most: int | None = None,
    folds: int | None = None,
    seeds: int = 1,
    journal: Journal | None = None,
    halving: int | None = None,
    race_from: int = 1,
    ranking: Mapping[str, float] | None = None,
    shortlist: int | None = None,
    order: str = "table",
) -> Search:
    """Returns the subset of units that greedy selection ends with.

    S <- S + argmax_l mean score(S + {l}) from `start="none"`; from `all` units are taken
    away, and `better` starts from whichever of the two scores higher (of equals: none).
    stop_rule: `paper` stops before the first step that gains no more than epsilon, and
    `official` (the published code) steps even where the score falls, stops once it is
    more than epsilon below the best, and returns the best set that it saw. Of equal
    scores the first unit wins; a run that diverged (NaN) never does. most: the longest
    walk. folds and seeds: over how many the mean is taken; default: the folds of the score,
    or 1.

    Three options train less (ours, not the paper's). halving: the candidates of a step are
    scored on `race_from` folds, one of every `halving` on `halving` times as many folds, and
    so on until all folds and seeds are used; one that drops out has no mean. ranking and
    shortlist: a step tries only so many units, those ranked highest to add, or lowest to
    take away (RGN, say). order: `added` gives the score the units in the order in which
    they joined, so that a candidate can start from the set before it
    (`subset_score(warm=True)`).

    Raises `InputError` for no or doubled units, an unknown start, rule or order, a ranking
    without a finite value for one of the units, other folds than the score has, and the
    journal of another score.
    """
    _require_units(units)
    _require_rules(start, stop_rule, epsilon, most, order)
    require_ranking(units, ranking, shortlist, halving)
    require_whole(race_from=race_from)
    folds = _folds(score, folds)
    evaluate = _evaluator(score, folds, seeds, journal)
    places, asked = folds * seeds, dict[tuple[Subset, int], Score]()

    def mean(subset: Subset, count: int = places) -> float:
        """Returns the mean score of a subset on the first `count` folds and seeds."""
        scores = evaluate(subset, range(count))
        asked.update({(subset, place): one for place, one in enumerate(scores)})
        total = sum(one.value for one in scores)
        return -math.inf if math.isnan(total) else total / count

    first, adds = _start(tuple(units), start, mean)
    rungs = [places] if halving is None else _rungs(places, halving, race_from)

    def walk(subset: Subset) -> Iterator[tuple[Subset, float]]:
        """Yields the best single move from the last set, again and again."""
        while candidates := moves(units, subset, adds, order == "added"):
            listed = shortlisted(candidates, subset, ranking, shortlist)
            subset = race(listed, mean, rungs, halving or 1)
            yield subset, mean(subset)

    path = [(first, mean(first))]
    best = path[0]
    for step in islice(walk(first), most):
        gain = step[1] - best[1]
        if stop_rule == "paper" and not gain > epsilon:
            break
        path.append(step)
        if gain > 0:
            best = step
        elif gain < -epsilon:
            break
    return Search(*best, tuple(path), len(asked), sum(s.flops for s in asked.values()))


def _start(
    units: Subset, start: str, mean: Callable[[Subset], float]
) -> tuple[Subset, bool]:
    """Returns the first set of a walk, and whether its steps add units."""
    if start == "better":
        start = "all" if mean(units) > mean(()) else "none"
    return (units, False) if start == "all" else ((), True)


def _rungs(places: int, halving: int, first: int) -> list[int]:
    """Returns on how many folds and seeds candidates are scored, rung by rung."""
    rungs = [min(first, places)]
    while rungs[-1] < places:
        rungs.append(min(rungs[-1] * halving, places))
    return rungs


def _folds(score: ScoreOf, folds: int | None) -> int:
    """Returns the folds of a search; raises `InputError` for others than the score has."""
    own = score.folds if isinstance(score, Scorer) else None
    if folds is None:
        return own or 1
    require_whole(folds=folds)
    if own not in (None, folds):
        raise InputError(
            f"the score has {own} fold{'s' * (own != 1)}, and {folds} are asked for: leave "
            "folds out"
        )
    return folds


def _about(score: ScoreOf) -> Mapping[str, str]:
    """Returns what the values of a score depend on; a function is known by its code."""
    if isinstance(score, Scorer) and score.about is not None:
        return score.about()
    function = score.many if isinstance(score, Scorer) else score
    return {"score": hashlib.sha256(described(function).encode()).hexdigest()}


def _evaluator(
    score: ScoreOf, folds: int, seeds: int, journal: Journal | None
) -> Callable[[Subset, Iterable[int]], list[Score]]:
    """Returns the function that scores a subset on folds under seeds, once; places are
    counted fold by fold."""
    require_function(3, score=score)
    require_whole(seeds=seeds)
    if isinstance(score, Scorer) and score.renew is not None:
        score.renew()
    if journal is None:
        journal = Journal({})
    else:
        journal.require_score(_about(score))

    def missing(keys: list[Key]) -> Iterable[Score]:
        if isinstance(score, Scorer):
            return score.many(keys[0][0], [(fold, seed) for _, fold, seed in keys])
        return (score(*key) for key in keys)

    return lambda subset, places: journal.once(
        [(subset, place % folds, place // folds) for place in places], missing
    )


def _require_rules(
    start: str, stop_rule: str, epsilon: float, most: int | None, order: str
) -> None:
    if start not in STARTS:
        raise unknown("start of a search", start, STARTS)
    if stop_rule not in STOP_RULES:
        raise unknown("stop rule", stop_rule, STOP_RULES)
    if not (isinstance(epsilon, Real) and epsilon >= 0):
        raise InputError(f"epsilon must be a number from 0 up, got {epsilon!r}")
    if most is not None:
        require_whole(most=most)
    if order not in ORDERS:
        raise unknown("order of units", order, ORDERS)
    if order == "added" and start != "none":
        raise InputError(
            f"order 'added' needs start 'none', where units join one by one; got {start!r}"
        )


def _require_units(units: Sequence[str]) -> None:
    if isinstance(units, str) or not units:
        raise InputError("there is no candidate: give the names of units, one or more")
    doubled = [unit for unit in units if list(units).count(unit) > 1]
    if doubled:
        raise InputError(f"the unit {doubled[0]!r} is given twice")

"""The candidates of a step of a search: which there are, and which of them wins."""

import math
from collections.abc import Callable, Mapping, Sequence

from subtune_jax.errors import InputError, require_whole

Subset = tuple[
    str, ...
]  # in the order of the network's table, or in which units joined


def moves(
    units: Sequence[str], subset: Subset, adds: bool, append: bool = False
) -> list[Subset]:
    """Returns the sets that one more unit, or one fewer, makes of a set.

    append: a new unit comes last, instead of at its place among the units.
    """
    if not adds:
        return [tuple(u for u in subset if u != unit) for unit in subset]
    new = [unit for unit in units if unit not in subset]
    if append:
        return [(*subset, unit) for unit in new]
    return [tuple(u for u in units if u in {*subset, unit}) for unit in new]


def shortlisted(
    candidates: list[Subset],
    subset: Subset,
    ranking: Mapping[str, float] | None,
    count: int | None,
) -> list[Subset]:
    """Returns the `count` candidates whose unit ranks highest to add, or lowest to take
    away, in their order."""
    if ranking is None:
        return candidates

    def rank(candidate: Subset) -> float:
        (unit,) = set(candidate) ^ set(subset)
        return ranking[unit] if len(candidate) > len(subset) else -ranking[unit]

    kept = set(sorted(candidates, key=rank, reverse=True)[:count])
    return [candidate for candidate in candidates if candidate in kept]


def race(
    candidates: list[Subset],
    mean: Callable[[Subset, int], float],
    rungs: Sequence[int],
    halving: int,
) -> Subset:
    """Returns the candidate with the highest mean on the last rung's folds.

    After each rung before it one of every `halving` candidates goes on, rounded down but
    one at least (successive halving, Jamieson and Talwalkar 2016, over folds instead of
    epochs). Of equals the first goes on.
    """
    for count in rungs[:-1]:
        best = sorted(candidates, key=lambda one: mean(one, count), reverse=True)
        kept = set(best[: max(1, len(candidates) // halving)])
        candidates = [candidate for candidate in candidates if candidate in kept]
    return max(candidates, key=lambda one: mean(one, rungs[-1]))


def require_finite_scores(scores: Mapping[str, float]) -> None:
    """Raises `InputError` naming the first score that is NaN or infinite: no order of such
    scores means anything."""
    for name in [name for name, value in scores.items() if math.isnan(value)]:
        raise InputError(
            f"the score of {name!r} is NaN: did the loss or a gradient overflow?"
        )
    for name in [name for name, value in scores.items() if math.isinf(value)]:
        raise InputError(
            f"the score of {name!r} is infinite, as relative to weights that are all 0 "
            "(a fresh bias): leave it out, or score units that have other weights too"
        )


def require_ranking(
    units: Sequence[str],
    ranking: Mapping[str, float] | None,
    shortlist: int | None,
    halving: int | None,
) -> None:
    """Raises `InputError` unless the two are given together, the ranking has every unit,
    and halving leaves out something."""
    if (ranking is None) != (shortlist is None):
        raise InputError("ranking and shortlist are given together or not at all")
    missing = [] if ranking is None else [unit for unit in units if unit not in ranking]
    if missing:
        raise InputError(f"the ranking has no unit {missing[0]!r}")
    require_finite_scores({} if ranking is None else ranking)
    if shortlist is not None:
        require_whole(shortlist=shortlist)
    if halving is not None:
        require_whole(halving=halving)
        if halving < 2:
            raise InputError(f"halving must be 2 or more, got {halving}")

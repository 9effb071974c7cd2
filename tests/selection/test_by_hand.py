"""Walks of a search over scores that are written down."""

import math
from itertools import permutations

import numpy as np
import pytest

from subtune_jax.errors import InputError
from subtune_jax.selection import greedy
from subtune_jax.selection.candidates import race
from subtune_jax.selection.journal import Score


def of_table(table):
    return lambda units, fold, seed: Score(table["".join(units)])


def test_the_official_walk_measures_a_gain_against_the_best_so_far():
    """10, then 9.5 and 9.8: that is a rebound, and no gain over 10."""
    table = {"": 1.0, "a": 10.0, "b": 2.0, "c": 3.0}
    table |= {"ab": 9.5, "ac": 9.0, "abc": 9.8}
    found = greedy(list("abc"), of_table(table), stop_rule="official", epsilon=1.0)
    assert found.units == ("a",) and found.value == 10.0
    assert [value for _, value in found.path] == [1.0, 10.0, 9.5, 9.8]
    table["abc"] = 8.5  # more than epsilon below the best, and not below the last
    found = greedy(
        list("abc"), of_table(table | {"ab": 9.2}), stop_rule="official", epsilon=1.0
    )
    assert found.units == ("a",) and len(found.path) == 4


@pytest.mark.parametrize(
    ("count", "halving", "kept"), [(5, 2, 2), (7, 3, 2), (2, 3, 1), (8, 4, 2)]
)
def test_one_of_every_so_many_goes_on_rounded_down(count, halving, kept):
    asked = []

    def mean(candidate, folds):
        asked.append((candidate, folds))
        return float(candidate[0])

    candidates = [(str(n),) for n in range(count)]
    assert race(candidates, mean, [1, 4], halving) == (str(count - 1),)
    last = {candidate for candidate, folds in asked if folds == 4}
    assert last == {(str(n),) for n in range(count - kept, count)}


def test_a_candidate_that_diverged_on_one_fold_never_wins():
    scores = {("a", 0): 9.0, ("a", 1): math.nan, ("b", 0): 1.0, ("b", 1): 1.0}
    found = greedy(
        ["a", "b"],
        lambda units, fold, seed: Score(scores.get(("".join(units), fold), 0.0)),
        folds=2,
        most=1,
    )
    assert found.units == ("b",)


def test_scores_of_a_ranking_choose_by_value_and_not_by_place():
    asked = []

    def score(units, fold, seed):
        asked.append("".join(units))
        return Score(float(len(units)))

    ranking = {"a": 0.5, "b": 2.0, "c": 1.0}
    greedy(list("abc"), score, ranking=ranking, shortlist=1)
    assert asked[:3] == ["", "b", "bc"]
    with pytest.raises(InputError, match="the ranking has no unit 'c'"):
        greedy(list("abc"), score, ranking={"a": 1.0, "b": 2.0}, shortlist=1)
    assert np.isfinite(list(ranking.values())).all()


def test_of_equal_candidates_the_first_of_the_table_wins_whatever_ranks_highest():
    """All score 1, and the shortlist is of b and a, in that order in the table."""
    ranking = {"c": 1.0, "b": 2.0, "a": 3.0}
    table = {"".join(s): 1.0 for n in range(4) for s in permutations("cba", n)}
    search = greedy(
        list("cba"),
        of_table(table),
        ranking=ranking,
        shortlist=2,
        stop_rule="official",
        most=1,
    )
    assert [units for units, _ in search.path] == [(), ("b",)]

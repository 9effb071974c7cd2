"""Profiles and greedy selection on scores that a reader can follow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from subtune_jax.errors import InputError
from subtune_jax.host_functions import named
from subtune_jax.selection import (
    Score,
    greedy,
    open_journal,
    pairs,
    profile,
    windows,
)

UNITS = ("a", "b", "c", "d")
# The scores of subsets of UNITS; the best is "bd", and "c" alone misleads.
TABLE = {
    "": 50, "a": 52, "b": 55, "c": 58, "d": 55,
    "ab": 54, "ac": 58.5, "ad": 56, "bc": 59, "bd": 70, "cd": 59,
    "abc": 57, "abd": 66, "acd": 60, "bcd": 64, "abcd": 62,
}  # fmt: skip


def table(units, fold, seed):
    return Score(TABLE["".join(units)], flops=len(units))


def names(search):
    return ["".join(units) for units, _ in search.path]


def test_windows_and_pairs():
    assert windows(UNITS, 1) == [("a",), ("b",), ("c",), ("d",)]
    assert windows(UNITS, 3) == [("a", "b", "c"), ("b", "c", "d")]
    assert pairs(UNITS[:3]) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_a_profile_has_the_scores_of_every_fold_and_seed():
    def score(units, fold, seed):
        return Score(TABLE["".join(units)] + fold + 10 * seed)

    found = profile(windows(UNITS, 2), score, folds=2, seeds=2)
    assert found == {
        ("a", "b"): [54, 55, 64, 65],
        ("b", "c"): [59, 60, 69, 70],
        ("c", "d"): [59, 60, 69, 70],
    }


@pytest.mark.parametrize(
    ("settings", "path", "chosen"),
    [
        # c gains 8, then bc 1 (of equals the first: bc before cd), then bcd 5.
        ({}, ["", "c", "bc", "bcd"], "bcd"),
        ({"epsilon": 1.0}, ["", "c"], "c"),  # a gain of 1 is not more than 1
        ({"epsilon": 8.0}, [""], ""),
        ({"most": 2}, ["", "c", "bc"], "bc"),
        # Taking away c gives 66, then a gives 70; nothing is better than bd.
        ({"start": "all"}, ["abcd", "abd", "bd"], "bd"),
        ({"start": "better"}, ["abcd", "abd", "bd"], "bd"),
        # The official rule steps on to abcd, 2 below the best, and stops there or ends.
        ({"stop_rule": "official"}, ["", "c", "bc", "bcd", "abcd"], "bcd"),
        # Of b and d, which are equal, the first is taken away.
        ({"stop_rule": "official", "start": "all"}, ["abcd", "abd", "bd", "d"], "bd"),
        (
            {"stop_rule": "official", "start": "all", "epsilon": 15.0},
            ["abcd", "abd", "bd", "d", ""],
            "bd",
        ),
    ],
)
def test_the_path_of_a_walk(settings, path, chosen):
    search = greedy(UNITS, table, **settings)
    assert names(search) == path
    assert "".join(search.units) == chosen
    assert search.value == TABLE[chosen]


def test_halving_drops_candidates_fold_by_fold():
    # On the first fold "a" leads, which the others do not bear out.
    def score(units, fold, seed):
        lead = 20 if units == ("a",) and fold == 0 else 0
        return Score(TABLE["".join(units)] + lead)

    search = greedy(UNITS, score, folds=4, most=1, halving=2)
    # Four on one fold leave a and c, on two folds a; c would win on all four.
    assert names(search) == ["", "a"]
    assert search.runs == 4 + (4 * 1 + 2 * 1 + 1 * 2)
    assert names(greedy(UNITS, score, folds=4, most=1)) == ["", "c"]
    # A race that begins on two folds leaves both until all four are used.
    later = greedy(UNITS, score, folds=4, most=1, halving=2, race_from=2)
    assert names(later) == ["", "c"] and later.runs == 4 + (4 * 2 + 2 * 2)
    every = greedy(UNITS, score, folds=4, most=1, halving=2, race_from=9)
    assert every == greedy(UNITS, score, folds=4, most=1)
    # Of the rung's mean over folds, not of the last fold alone.
    assert greedy(UNITS, table, folds=4, halving=2).path == greedy(UNITS, table).path


def test_a_ranking_shortens_the_list_of_candidates():
    ranking = {"a": 1.0, "b": 4.0, "c": 2.0, "d": 3.0}
    search = greedy(UNITS, table, ranking=ranking, shortlist=2)
    # b and d come first (of equals b); then d and c; then c and a.
    assert names(search) == ["", "b", "bd"]
    assert search.runs == 1 + 2 + 2 + 2
    back = greedy(UNITS, table, start="all", ranking=ranking, shortlist=1)
    assert names(back) == ["abcd", "bcd", "bd"]  # a, then c: the lowest go first


def test_units_come_in_the_order_in_which_they_joined():
    seen = []

    def score(units, fold, seed):
        seen.append("".join(units))
        return table(sorted(units), fold, seed)

    search = greedy(UNITS, score, order="added")
    assert names(search) == ["", "c", "cb", "cbd"]
    assert seen[:8] == ["", "a", "b", "c", "d", "ca", "cb", "cd"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"halving": 1}, "halving must be 2 or more, got 1"),
        ({"race_from": 0}, "race_from must be a positive whole number, got 0"),
        ({"shortlist": 2}, "ranking and shortlist are given together"),
        ({"ranking": {"a": 1}, "shortlist": 1}, "the ranking has no unit 'b'"),
        ({"order": "random"}, "unknown order of units 'random': expected one of"),
        ({"order": "added", "start": "all"}, "order 'added' needs start 'none'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, problem):
    with pytest.raises(InputError, match=problem):
        greedy(UNITS, table, **options)


def test_of_equal_starts_nothing_is_tuned_at_first():
    search = greedy(UNITS, lambda units, fold, seed: Score(1.0), start="better")
    assert search.path == (((), 1.0),) and search.units == ()


def test_runs_and_flops_are_counted_once():
    search = greedy(UNITS, table, folds=5)
    # The paper's count: 5 folds of 1 + 4 + 3 + 2 + 1 candidates.
    assert search.runs == 5 * (1 + 4 + 3 + 2 + 1)
    assert search.flops == 5 * (0 + 4 * 1 + 3 * 2 + 2 * 3 + 1 * 4)


def test_a_candidate_that_diverged_never_wins():
    def score(units, fold, seed):
        lost = "".join(units) == "c" and fold == 1
        return Score(float("nan") if lost else TABLE["".join(units)])

    assert names(greedy(UNITS, score, folds=2, most=1)) == ["", "b"]
    nothing = greedy(UNITS, lambda *asked: Score(float("nan")))
    assert nothing.units == () and nothing.value == -float("inf")


def test_a_journal_continues_and_repeats_nothing(tmp_path):
    file, calls = tmp_path / "search" / "journal.jsonl", []

    def counted(units, fold, seed):
        calls.append((units, fold, seed))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return table(units, fold, seed)

    counted = named("table", counted)  # it reads what it changes
    with pytest.raises(KeyboardInterrupt), open_journal(file, {"folds": 2}) as journal:
        greedy(UNITS, counted, folds=2, journal=journal)
    with file.open("a") as cut:
        cut.write('{"units": ["a"')  # as a kill leaves it
    with open_journal(file, {"folds": 2}) as journal:
        again = greedy(UNITS, counted, folds=2, journal=journal)
        with pytest.raises(InputError, match="another process is searching with"):
            with open_journal(file, {"folds": 2}):
                pass
    assert again == greedy(UNITS, table, folds=2)
    assert len(calls) == again.runs + 1 and len(set(calls)) == again.runs
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2 + again.runs
    with pytest.raises(InputError, match=r"of another search: folds 2 \(now 3\)"):
        with open_journal(file, {"folds": 3}):
            pass
    file.write_text('{"scores": []}\n')
    with pytest.raises(InputError, match="is not the journal of a search"):
        with open_journal(file):
            pass


# Imported once, and forked: what is killed is in the middle of its search.
SEARCH = """
import os, random, signal, sys, time, warnings
from pathlib import Path
from subtune_jax.host_functions import named
from subtune_jax.selection import greedy, open_journal
from tests.selection.test_search import UNITS, lines_of, table

warnings.simplefilter("ignore")  # no device was started, so that a fork is safe
file, rng = Path(sys.argv[1]), random.Random(0)


def slow(units, fold, seed):
    time.sleep(0.02)
    return table(units, fold, seed)


def search():
    with open_journal(file) as journal:
        return "".join(greedy(UNITS, named("slow", slow), folds=5, journal=journal).units)


for point in sorted(rng.sample(range(1, 50), 10)):
    child = os.fork()
    if child == 0:
        search()
        os._exit(0)
    while lines_of(file) < point:
        time.sleep(0.001)
    time.sleep(rng.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
print(search())
"""


@pytest.mark.slow
def test_killed_ten_times_it_chooses_the_same_and_repeats_nothing(tmp_path):
    file = tmp_path / "journal.jsonl"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SEARCH, str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "bcd\n"
    rows = [json.loads(line) for line in file.read_text().splitlines()[2:]]
    keys = [(tuple(row["units"]), row["fold"], row["seed"]) for row in rows]
    assert len(keys) == len(set(keys)) == greedy(UNITS, table, folds=5).runs


def lines_of(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_what_cannot_be_searched_is_one_sentence():
    for units in ((), [], "block1"):
        with pytest.raises(InputError, match="there is no candidate: give"):
            greedy(units, table)
    with pytest.raises(InputError, match="there is no candidate: give"):
        profile([], table)
    with pytest.raises(InputError, match="the unit 'a' is given twice"):
        greedy(("a", "b", "a"), table)
    with pytest.raises(InputError, match="unknown start of a search 'al': .* 'all'"):
        greedy(UNITS, table, start="al")
    with pytest.raises(InputError, match="unknown stop rule 'papre': .* 'paper'"):
        greedy(UNITS, table, stop_rule="papre")
    with pytest.raises(InputError, match="epsilon must be a number from 0 up, got -1"):
        greedy(UNITS, table, epsilon=-1)
    with pytest.raises(
        InputError, match="folds must be a positive whole number, got 0"
    ):
        greedy(UNITS, table, folds=0)
    with pytest.raises(InputError, match="a run of 5 units is longer than the 4 there"):
        windows(UNITS, 5)
    with pytest.raises(InputError, match="score must be a function of 3 arguments"):
        greedy(UNITS, {"a": 1})

"""A study's runs: what is chosen, and what is said of those that diverged."""

from typing import NamedTuple

import jax
import numpy as np

from experiments.targets import Task
from experiments.trials import Fitting, Trial, best_of, choose
from subtune_jax.metrics import accuracy
from subtune_jax.selection.select import select
from subtune_jax.training.optimizers import adam, sgd
from subtune_jax.training.phases import Phase
from tests import toy

FITTING = Fitting(batch_size=16)
PARTS = ("train", "validation", "test")


class Try(NamedTuple):
    number: float


def task(**changes):
    parts = {name: toy.points(48, seed) for seed, name in enumerate(PARTS)}
    return Task(toy.mlp(), **parts)._replace(**changes)


def phases(*rules):
    labels = select(toy.mlp(), {"g": [".*"]})
    return [Phase(labels, rule, 3) for rule in rules]


def rows(task, made, variants=((1,),)):
    return list(choose(task, FITTING, [Try(*v) for v in variants], made, 0))


def test_a_run_that_diverges_after_an_epoch_keeps_it_and_is_tested():
    whole = rows(task(), lambda _: phases(adam(1e-2)))
    lost = rows(task(), lambda _: phases(adam(1e-2), sgd(1e38)))
    assert [row["status"] for row in whole] == ["ok", "ok"]
    assert [row["status"] for row in lost] == ["diverged", "diverged"]
    for before, after in zip(whole, lost, strict=True):
        assert after["value"] == before["value"] and after["epoch"] == 1
    assert lost[0]["steps"] > 3


def test_a_run_that_diverges_in_its_first_epoch_has_no_value_and_no_test():
    found = rows(task(), lambda _: phases(sgd(1e38)))
    assert [(r["split"], r["value"], r["status"]) for r in found] == [
        ("validation", None, "diverged"),
        ("test", None, "diverged"),
    ]


def test_a_score_that_is_not_a_number_wins_nothing():
    scores = iter([50.0, np.nan, 60.0, 55.0, np.nan, np.nan, np.nan, 70.0])

    def scripted(outputs, targets):
        return next(scores)

    made = task(metrics={"validation": scripted, "test": accuracy})
    (row, test) = rows(made, lambda _: phases(*[adam(1e-2)] * 3))
    assert (row["value"], row["epoch"]) == (60.0, 2)
    trials = [
        Trial({"value": value}, network)
        for value, network in [(None, None), (80.0, "a"), (82.0, "b"), (82.0, "c")]
    ]
    assert best_of(trials) is trials[2]
    assert best_of(trials[:1]) == Trial({}, None)


def test_the_test_part_is_read_by_the_chosen_run_alone():
    read = []

    def counted(outputs, targets):
        read.append(1)
        return accuracy(outputs, targets)

    made = task(metrics={"validation": accuracy, "test": counted})
    found = rows(made, lambda v: phases(adam(1e-2 * v[0])), ((0.1,), (1.0,), (2.0,)))
    assert [r["split"] for r in found] == ["validation"] * 3 + ["test"]
    assert len(read) == 1
    best = max(found[:-1], key=lambda row: row["value"])
    assert found[-1]["number"] == best["number"]


def test_the_norm_of_a_study_is_that_of_its_runs():
    network, moved = toy.small_resnet("batch"), {}
    parts = {name: toy.images(24, seed) for seed, name in enumerate(PARTS)}
    labels = select(network, {"g": ["head"]})
    for norm in ("stored", "batch"):
        kept = []
        list(
            choose(
                Task(network, **parts),
                Fitting(batch_size=8, norm=norm),
                [Try(1)],
                lambda _: [Phase(labels, adam(1e-3), 3)],
                0,
                after=lambda made, kept=kept: kept.append(made) or (),
            )
        )
        (made,) = kept
        pairs = zip(*(jax.tree.leaves(n.stats) for n in (network, made)), strict=True)
        moved[norm] = any(np.any(a != b) for a, b in pairs)
    assert moved == {"stored": False, "batch": True}

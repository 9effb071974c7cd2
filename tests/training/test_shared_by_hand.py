"""What runs of a search share and cost, worked out by hand."""

import jax
import numpy as np
import pytest

import subtune_jax as st
from subtune_jax import training, tree
from subtune_jax.data.splits import balanced_folds
from subtune_jax.errors import InputError
from subtune_jax.training.suffix import kept_cuts
from tests import toy

KEY = jax.random.key(0)
LINEAR = {"one": 4 * 6, "two": 6 * 6, "head": 6 * 3}  # multiply-adds of an example


def task_of(network, data):
    return st.Task(network, data, data, st.data.Sealed(data))


def labels(network, *names):
    return st.select(network, {"g": list(names)})


def test_a_cut_counts_the_activations_of_all_data():
    """6 floats an example after either stage: 24 bytes of 10 + 20 examples."""
    network, few, more = toy.mlp(), toy.points(10), toy.points(20)
    for budget, first in ((24 * 30, 2), (24 * 30 - 1, 0), (24 * 20, 0)):
        cut = kept_cuts(network, (few, more), budget)(2)
        assert cut.network.first == first
    assert [len(part.x) for part in kept_cuts(network, (few, more), 999)(2).data] == [
        10,
        20,
    ]


@pytest.mark.parametrize("seed", [0, 3])
def test_folds_are_those_of_their_seed(seed):
    """A rate of 1e-9 moves no prediction: a fold's score is the pretrained network's."""
    network, data = toy.mlp(), toy.points(45)

    def phases_of(network, units, examples):
        return st.Phase(labels(network, "head"), st.sgd(1e-9), 1)

    score = training.subset_score(
        task_of(network, data), phases_of, key=KEY, folds=5, fold_seed=seed
    )
    found = [score((), fold, 0).value for fold in range(5)]
    parts = balanced_folds(data.y, 5, seed)
    assert found == [st.evaluate(network, data.only(part)) for part in parts]
    assert len(set(found)) > 1


def test_a_phase_that_normalizes_by_the_batch_shares_no_features():
    network, data = toy.small_resnet(), toy.images(40)

    def phases_of(network, units, examples):
        return st.Phase(labels(network, "head"), st.sgd(0.1), 1, norm="batch")

    score = training.subset_score(task_of(network, data), phases_of, key=KEY, folds=2)
    with pytest.raises(InputError, match="norm 'batch' may use batch statistics"):
        score((), 0, 0)


def test_a_run_costs_what_each_of_its_phases_trains():
    """2 FLOPs a multiply-add: forward, weights of what trains, and inputs above."""
    network, data = toy.mlp(), toy.points(16)
    forward = 2 * sum(LINEAR.values())
    head = forward + 2 * LINEAR["head"]
    one = forward + 2 * LINEAR["one"] + 2 * LINEAR["two"] + 2 * LINEAR["head"]
    phases = [
        st.Phase(labels(network, "head"), st.sgd(0.1), 3),
        st.Phase(labels(network, "one"), st.sgd(0.1), 2),
    ]
    found = training.run_flops(network, phases, data, 8, scored=5)
    assert found == 8 * (3 * head + 2 * one) + 5 * forward


def test_lanes_share_their_seconds(monkeypatch):
    times = iter([10.0, 16.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times, 16.0))
    network, data = toy.mlp(), toy.points()
    tuned = st.tune(
        network,
        lambda rate: st.Phase(labels(network, "head"), st.sgd(rate), 2),
        [0.1, 0.2, 0.3],
        task_of(network, data),
        key=KEY,
        lanes=True,
    )
    assert [trial.seconds for trial in tuned.trials] == [2.0, 2.0, 2.0]


def test_a_lane_that_diverges_keeps_its_best_epoch():
    """As `fit` does: the first epoch ends before the rate has grown the weights past
    floats."""
    network, data = toy.mlp(), toy.points(16)
    every = labels(network, ".*")
    phases = [st.Phase(every, st.sgd(0.1), 2), st.Phase(every, st.sgd(1e38), 9)]
    settings = st.Settings(batch_size=16)

    def validate(tuned):
        return st.evaluate(tuned, data)

    with pytest.raises(st.DivergedError) as alone:
        st.fit(network, phases, data, key=KEY, validate=validate, settings=settings)
    runs = [training.Run(phases, KEY)]
    (lane,) = training.sweep(network, runs, data, validate=validate, settings=settings)
    assert isinstance(lane, st.DivergedError) and lane.step == alone.value.step
    assert lane.kept.epoch == alone.value.kept.epoch > 0
    assert lane.kept.scores == alone.value.kept.scores
    for a, b in zip(
        jax.tree.leaves(lane.kept.network.params),
        jax.tree.leaves(alone.value.kept.network.params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert tree.count(lane.kept.trainable) == 4 * 6 + 6 + 6 * 6 + 6 + 6 * 3 + 3


def test_trials_are_scored_on_validation_data_alone():
    network, parts = toy.mlp(), [toy.points(40, seed) for seed in range(3)]
    task = st.Task(network, parts[0], parts[1], st.data.Sealed(parts[2]))
    tuned = st.tune(
        network,
        lambda rate: st.Phase(labels(network, "head"), st.sgd(rate), 3),
        [0.1],
        task,
        key=KEY,
    )
    scores = [st.evaluate(tuned.network, part) for part in parts]
    assert tuned.best.value == scores[1] and scores[2] != scores[1]

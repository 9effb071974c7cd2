"""What is chosen among variants, what is said of runs that diverged, and lanes."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from subtune_jax.data.task import Sealed, Task, test_once
from subtune_jax.errors import InputError
from subtune_jax.metrics import accuracy
from subtune_jax.selection.select import select
from subtune_jax.training.mesh import placement
from subtune_jax.training.optimizers import adam, sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings
from subtune_jax.training.tune import Trial, best_of, slug, tune
from tests import toy

KEY = jax.random.key(0)


class Variant(NamedTuple):
    learning_rate: float


def task(**changes):
    train, validation, test = (toy.points(48, seed) for seed in range(3))
    return Task(toy.mlp(), train, validation, Sealed(test))._replace(**changes)


def phases(*rules):
    labels = select(toy.mlp(), {"g": [".*"]})
    return [Phase(labels, rule, 3) for rule in rules]


def tuned(one, phases_of, variants=(1.0,), place=None, **how):
    settings = Settings(batch_size=16, place=place)
    return tune(
        one.network, phases_of, variants, one, key=KEY, settings=settings, **how
    )


def test_the_best_variant_and_epoch_on_validation_data_are_chosen():
    rates = (1e-4, 3e-2, 1e-3)
    found = tuned(task(), lambda rate: phases(adam(rate), adam(rate)), rates)
    values = [trial.value for trial in found.trials]
    assert found.best is found.trials[int(np.argmax(values))]
    assert [trial.variant for trial in found.trials] == list(rates)
    assert [trial.steps for trial in found.trials] == [6, 6, 6]
    scores = test_once(found, task())
    outputs = np.asarray(found.network(toy.points(48, 2).x))
    assert scores == {"accuracy": accuracy(outputs, toy.points(48, 2).y)}


def test_a_run_that_diverges_after_an_epoch_keeps_it():
    whole = tuned(task(), lambda _: phases(adam(1e-2))).best
    lost = tuned(task(), lambda _: phases(adam(1e-2), sgd(1e38))).best
    assert (whole.status, lost.status) == ("ok", "diverged")
    assert lost.value == whole.value and lost.epoch == 1 and lost.steps > 3


def test_where_every_run_diverges_at_once_nothing_is_chosen():
    found = tuned(task(), lambda _: phases(sgd(1e38)))
    assert found.best is None
    assert [(t.value, t.status) for t in found.trials] == [(None, "diverged")]
    with pytest.raises(ArithmeticError, match="every run diverged"):
        test_once(found, task())


def test_a_score_that_is_not_a_number_wins_nothing():
    scores = iter([50.0, np.nan, 60.0, 55.0, np.nan, np.nan, np.nan])

    def scripted(outputs, targets):
        return next(scores)

    one = task(metrics={"validation": scripted, "test": accuracy})
    found = tuned(one, lambda _: phases(*[adam(1e-2)] * 3))
    assert (found.best.value, found.best.epoch) == (60.0, 2)
    trials = [Trial(v, v, 1, "ok", 1, 0.0, None) for v in (None, 80.0, 82.0, 82.0)]
    assert best_of(trials) is trials[2]
    assert best_of(trials[:1]) is None


def test_the_test_part_is_read_by_test_once_alone():
    read = []

    def counted(outputs, targets):
        read.append(len(targets))
        return accuracy(outputs, targets)

    one = task(metrics={"validation": accuracy, "test": counted})
    found = tuned(one, lambda rate: phases(adam(rate)), (1e-3, 1e-2, 2e-2))
    assert read == []
    test_once(found, one)
    assert read == [48]


@pytest.mark.slow
def test_lanes_choose_as_the_loop_does():
    rates = (1e-3, 1e-2)
    one = tuned(task(), lambda rate: phases(adam(rate)), rates, lanes=False)
    other = tuned(task(), lambda rate: phases(adam(rate)), rates, lanes=True)
    assert one.best.variant == other.best.variant
    for a, b in zip(one.trials, other.trials, strict=True):
        assert (a.value, a.epoch, a.steps) == (b.value, b.epoch, b.steps)
    for a, b in zip(
        *(jax.tree.leaves(t.network.params) for t in (one, other)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_finished_runs_are_not_repeated_and_each_is_reported(tmp_path, monkeypatch):
    variants = [Variant(1e-3), Variant(1e-2)]
    told = []

    def run():
        return tuned(
            task(),
            lambda v: phases(adam(v.learning_rate)),
            variants,
            checkpoint=tmp_path,
            progress=told.append,
        )

    first = run()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(map(slug, variants))
    assert [trial.variant for trial in told] == variants
    monkeypatch.setattr("subtune_jax.training.loop.compiled_step", None)
    assert [t.value for t in run().trials] == [t.value for t in first.trials]


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(InputError, match="at least one variant"):
        tuned(task(), lambda _: phases(adam(1e-2)), ())
    for settings in ({"checkpoint": tmp_path}, {"place": placement(1)}):
        with pytest.raises(InputError, match="lanes fill one device"):
            tuned(task(), lambda _: phases(adam(1e-2)), lanes=True, **settings)


def test_the_norm_is_that_of_all_runs():
    network, moved = toy.small_resnet("batch"), {}
    train, validation, test = (toy.images(24, seed) for seed in range(3))
    one = Task(network, train, validation, Sealed(test))
    labels = select(network, {"g": ["head"]})
    for norm in ("stored", "batch"):
        found = tune(
            network,
            lambda rate: Phase(labels, adam(rate), 3),
            [1e-3],
            one,
            key=KEY,
            settings=Settings(batch_size=8, norm=norm),
        )
        leaves = (jax.tree.leaves(n.stats) for n in (network, found.network))
        moved[norm] = any(np.any(a != b) for a, b in zip(*leaves, strict=True))
    assert moved == {"stored": False, "batch": True}


@pytest.mark.parametrize("lanes", [False, True])
def test_every_trial_is_reported_and_the_best_alone_keeps_what_trained(lanes):
    """What trains may be as large as the network, and trials are many."""
    reported: list[Trial] = []
    rates = (1e-4, 3e-2, 1e-3)
    found = tuned(
        task(),
        lambda rate: phases(adam(rate)),
        rates,
        lanes=lanes,
        progress=reported.append,
    )
    assert [trial.variant for trial in reported] == list(rates)
    assert [trial is found.best for trial in found.trials] == [
        trial.trainable is not None for trial in found.trials
    ]

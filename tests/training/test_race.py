"""Variants that race: who goes on, what it takes, and that a run goes on where it was."""

import jax
import numpy as np
import pytest

from subtune_jax import recipes
from subtune_jax.data.task import Sealed, Task
from subtune_jax.errors import InputError
from subtune_jax.training.optimizers import adam
from subtune_jax.training.race import race
from subtune_jax.training.settings import Settings
from subtune_jax.training.tune import tune
from tests import toy

KEY = jax.random.key(0)
RATES = [1e-5, 1e-1, 1e-4, 1e-2, 1e-3]


def task():
    data = toy.points(48)
    return Task(toy.mlp(), data, toy.points(30, seed=1), Sealed(data))


def phases(rate, steps):
    return recipes.tune_units(toy.mlp(), ["one", "head"], adam(rate), steps)


def test_the_best_go_on_and_end_where_a_whole_run_ends():
    told = []
    how = {"key": KEY, "settings": Settings(batch_size=16)}
    won = race(
        toy.mlp(), phases, RATES, task(), rungs=(3, 6, 12), halving=2,
        progress=lambda trial: told.append((trial.variant, trial.steps)), **how,
    )  # fmt: skip
    # Five run for 3 steps, three of them to 6, two to 12.
    assert [steps for _, steps in told] == [3] * 5 + [6] * 3 + [12] * 2
    assert [rate for rate, _ in told[:5]] == RATES
    whole = tune(toy.mlp(), lambda rate: phases(rate, 12), RATES, task(), **how)
    by_rate = {trial.variant: trial for trial in whole.trials}
    finished = [trial for trial in won.trials if trial.steps == 12]
    assert len(won.trials) == 5 and len(finished) == 2
    for trial in finished:
        assert trial.value == by_rate[trial.variant].value
        pairs = trial.network, by_rate[trial.variant].network
        leaves = (jax.tree.leaves(network.params) for network in pairs)
        assert all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    assert won.best.value == max(trial.value for trial in finished)
    early = [trial for trial in won.trials if trial.steps == 3]
    assert max(t.value for t in early) <= min(
        t.value for t in won.trials if t.steps > 3
    )


def test_what_diverges_never_goes_on():
    won = race(
        toy.mlp(),
        phases,
        [1e38, 1e-2],
        task(),
        rungs=(3, 6),
        key=KEY,
        settings=Settings(batch_size=16),
    )
    assert won.best.variant == 1e-2
    lost = race(
        toy.mlp(),
        phases,
        [1e38],
        task(),
        rungs=(3, 6),
        key=KEY,
        settings=Settings(batch_size=16),
    )
    assert lost.best is None and len(lost.trials) == 1


@pytest.mark.parametrize(
    ("variants", "options", "problem"),
    [
        ([], {"rungs": (3,)}, "race needs a list of at least one variant"),
        (RATES, {"rungs": ()}, "race needs at least one rung"),
        (RATES, {"rungs": (6, 3)}, "rungs must rise and halving be 2 or more"),
        (RATES, {"rungs": (3, 6), "halving": 1}, "rungs must rise and halving"),
        (RATES, {"rungs": (0, 6)}, "rung 0 must be a positive whole number"),
    ],
)
def test_a_race_that_cannot_be_is_refused(variants, options, problem):
    with pytest.raises(InputError, match=problem):
        race(toy.mlp(), phases, variants, task(), key=KEY, **options)

"""One device or eight: the same numbers, and nothing that travels unasked."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from subtune_jax.data.batches import padded
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.selection import scores
from subtune_jax.selection.select import select
from subtune_jax.training.loop import epochs
from subtune_jax.training.mesh import data_mesh
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import make_plan
from subtune_jax.training.predict import evaluate
from subtune_jax.training.resume import first_snapshot
from subtune_jax.training.settings import Settings
from subtune_jax.training.step import traced_step
from tests import toy
from tests.processes import QUICK
from tests.tuning.test_contract import TUNINGS

pytestmark = pytest.mark.slow

KEY = jax.random.key(3)


OTHERS = ("batch statistics", "suffix", "fast", "scores", "served")


@pytest.fixture(scope="module")
def eight() -> dict:
    run = [sys.executable, "-m", "tests.training.eight_devices"]
    done = subprocess.run(run, env=QUICK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*TUNINGS, *OTHERS])
def test_eight_devices_give_the_numbers_of_one_in_float64(eight, name):
    assert eight[name] < 1e-9


def test_nothing_travels_on_eight_devices_and_steps_are_compiled_once(eight):
    assert eight["programs"] == 2


def test_nothing_travels_on_one_device_and_a_step_is_compiled_once(uncrowded):
    network = toy.mlp()
    network = network._replace(params=jax.tree.map(np.asarray, network.params))
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 3)
    plan = make_plan(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    )
    begin, batches = first_snapshot(plan), [padded(toy.points(16), 16)]
    with jax.transfer_guard("disallow"):
        list(epochs(plan, begin))
        evaluate(network, toy.points())
        for score in (
            scores.relative_gradient_norm,
            scores.signal_to_noise,
            scores.fisher,
        ):
            score(network, batches, cross_entropy)
    state = plan.place.whole(first_snapshot(plan).state)
    given = state, plan.network.params, plan.place(batches[0])
    with jax.transfer_guard("disallow"):  # another setting is another trace
        step = traced_step(plan.traces, begin.running.program, *given)
    assert step.run._cache_size() == 1


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(
        InputError, match="mesh asks for 64 devices: expected 1 to 1 here"
    ):
        data_mesh(64)

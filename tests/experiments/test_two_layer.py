import chex
import jax
import numpy as np
import pytest

from experiments.common.two_layer import input_shift, output_shift, theorem_gap

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_first_layer_tuning_repairs_what_full_tuning_never_does():
    keys = jax.random.split(jax.random.key(0), 20)
    gaps = {
        tuned: jax.vmap(lambda key, tuned=tuned: theorem_gap(key, tuned=tuned))(keys)
        for tuned in ("first", "full")
    }
    first, full = (np.asarray(gaps[tuned].population) for tuned in ("first", "full"))
    chex.assert_shape(first, (20, 400))
    assert first[:, -1].max() < 1e-4 and np.median(first[:, -1]) < 1e-20
    assert full.min() > 5e-3  # at every logged step of every seed
    assert (
        np.median(np.asarray(gaps["full"].train)[:, -1]) < 1e-6
    )  # the sample is fitted


def test_a_first_layer_repairs_input_shift_and_a_last_layer_output_shift():
    for seed in range(3):
        inputs, outputs = (f(jax.random.key(seed)) for f in (input_shift, output_shift))
        assert inputs.first < 1e-20 < 0.1 < inputs.last
        assert outputs.last < 1e-20 < 1 < outputs.first

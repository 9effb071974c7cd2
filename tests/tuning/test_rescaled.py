"""Factors train instead of weights."""

import jax
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings
from subtune_jax.tuning.rescaled import rescaled
from tests import toy


def test_weights_are_factors_times_the_base_and_the_head_is_free():
    network = toy.mlp()
    labels = select(network, {"g": ["two/kernel"], "head": ["head/bias"]})
    tuning = rescaled()
    trainable, fixed = tuning.init(network.params, labels, None)
    np.testing.assert_array_equal(trainable["two"]["kernel"]["factor"], np.ones((6, 6)))
    np.testing.assert_array_equal(
        trainable["head"]["bias"], network.params["head"]["bias"]
    )
    doubled = jax.tree.map(lambda v: 2 * v, trainable)
    made = tuning.materialize(doubled, fixed, network.params)
    np.testing.assert_array_equal(
        made["two"]["kernel"], 2 * network.params["two"]["kernel"]
    )
    np.testing.assert_array_equal(
        made["one"]["kernel"], network.params["one"]["kernel"]
    )


def test_a_weight_of_zero_stays_and_one_step_of_adam_moves_all_by_the_same_share():
    network, points = toy.mlp(), toy.points(16)
    kernel = network.params["two"]["kernel"].at[0, 0].set(0.0)
    params = {**network.params, "two": {**network.params["two"], "kernel": kernel}}
    network = network._replace(params=params)
    labels = select(network, {"g": ["two/kernel"]})
    phase = Phase(labels, adam(0.01), 1, rescaled())
    made = fit(
        network,
        phase,
        Dataset(*points),
        key=jax.random.key(0),
        settings=Settings(batch_size=16),
    )
    moved = np.asarray(made.network.params["two"]["kernel"])
    assert moved[0, 0] == 0.0
    old = np.ravel(kernel)[1:]
    np.testing.assert_allclose(np.abs(moved.ravel()[1:] / old - 1), 0.01, rtol=1e-2)

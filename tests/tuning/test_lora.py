"""LoRA: the change of a kernel is a product of the rank that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import subtune_jax as st
from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings
from subtune_jax.tuning.lora import lora, materialize
from tests import toy

KEY = jax.random.key(0)


def test_the_product_by_hand():
    params = {"one": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, "head": {}}
    factors = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[10.0, 0.0]])}
    trainable = {"one": {"kernel": factors}}
    whole = materialize(trainable, {"lora": jnp.float32(0.5)}, params)
    np.testing.assert_array_equal(whole["one"]["kernel"], [[6.0, 2.0], [13.0, 4.0]])


@pytest.mark.parametrize("rank", [1, 2])
def test_changes_of_dense_and_convolution_kernels_have_the_rank(rank):
    network = toy.small_resnet()
    labels = select(network, {"body": ["block1_0", "block2_0"], "head": ["head"]})
    phase = Phase(labels, sgd(0.1), 8, lora(rank, alpha=2.0 * rank))
    result = fit(network, phase, toy.images(), key=KEY, settings=Settings(batch_size=8))
    before, after = tree.flatten(network.params), tree.flatten(result.network.params)
    moved = {p for p in before if bool((before[p] != after[p]).any())}
    body = {p for p in moved if not p.startswith("head")}
    assert body and all(p.endswith("kernel") for p in body)  # biases and scales rest
    for path in body:
        change = np.asarray(after[path] - before[path], np.float64)
        values = np.linalg.svd(change.reshape(-1, change.shape[-1]), compute_uv=False)
        assert (values > 1e-3 * values[0]).sum() == rank
    factors = tree.flatten(result.trainable)
    assert factors["block1_0/conv1/kernel/a"].shape == (3 * 3 * 8, rank)
    assert factors["block1_0/conv1/kernel/b"].shape == (rank, 8)


def test_a_rank_or_scale_that_cannot_be():
    for rank in (0, 1.5, "2"):
        with pytest.raises(InputError, match="rank must be a positive whole number"):
            lora(rank)
    with pytest.raises(InputError, match="alpha must be a positive number, got -1"):
        lora(2, alpha=-1)


def test_the_scale_of_a_low_rank_change_is_alpha_over_rank():
    network = toy.mlp()
    labels = st.select(network, {"g": ["two/kernel"]})
    for alpha, scale in ((None, 1.0), (8, 2.0), (1, 0.25)):
        parts = st.tuning.lora(4, alpha).init(network.params, labels)
        assert float(parts.fixed["lora"]) == scale
    (factors,) = st.tuning.lora_factors(parts.trainable, 0.25).values()
    assert factors.scale == 0.25 and factors.a.shape == (6, 4)


def test_dropout_of_a_low_rank_change_leaves_inputs_out():
    """With A = B = 1 a kept input adds rank / (1 - p) to each output, and one left out
    nothing; without a key all are there."""
    network = toy.mlp()
    labels = st.select(network, {"g": ["two/kernel"]})
    tuning = st.tuning.lora(4, dropout=0.5)
    parts = tuning.init(network.params, labels)
    ones = jax.tree.map(lambda x: 0 * x + 1, parts.trainable)
    base = network.params["two"]["kernel"]

    def added(key):
        made = tuning.materialize(ones, parts.fixed, network.params, key)
        return np.asarray(made["two"]["kernel"] - base)

    np.testing.assert_allclose(added(None), np.full((6, 6), 4), rtol=1e-5)
    rows = np.concatenate([added(jax.random.key(seed))[:, 0] for seed in range(20)])
    np.testing.assert_allclose(rows, np.where(rows > 1, 8, 0), atol=1e-5)
    assert 40 < (rows > 1).sum() < 80
    with pytest.raises(InputError, match="dropout must be from 0 up to 1, got 1"):
        st.tuning.lora(4, dropout=1)


def test_every_kernel_draws_its_own_factors():
    network = toy.mlp(width=4)  # two kernels of one shape
    labels = select(network, {"g": ["one/kernel", "two/kernel"]})
    factors = tree.flatten(lora(2).init(network.params, labels, KEY).trainable)
    one, two = factors["one/kernel/a"], factors["two/kernel/a"]
    assert one.shape == two.shape and not np.intersect1d(one, two).size
    # Uniform on both sides of 0, within 1 / sqrt(rows).
    assert max(abs(one).max(), abs(two).max()) <= 0.5 and one.min() < 0 < one.max()

"""LoRA: the change of a kernel is a product of the rank that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

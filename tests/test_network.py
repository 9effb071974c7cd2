import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.errors import InputError
from subtune_jax.flops import contraction_flops
from subtune_jax.labels import lowest_trainable, stages_with_batch_stats
from subtune_jax.network import Stage, forward, remat
from subtune_jax.selection.select import select
from tests import toy


def test_forward_is_the_composition_of_its_stages():
    net, x = toy.mlp(), toy.points().x
    p = net.params
    h = jnp.tanh(x @ p["one"]["kernel"] + p["one"]["bias"][None])
    h = jnp.tanh(h @ p["two"]["kernel"] + p["two"]["bias"][None])
    np.testing.assert_allclose(
        net(x), h @ p["head"]["kernel"] + p["head"]["bias"][None], rtol=1e-5
    )


def noisy(params, stats, x, *, batch_stats, key):
    return x + jax.random.normal(key, x.shape), stats


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_prefix_then_suffix_is_the_whole_bit_for_bit_keys_included(cut):
    stages = tuple(Stage(name, noisy) for name in "abc")
    empty, key, x = {name: {} for name in "abc"}, jax.random.key(7), jnp.zeros((2, 3))
    whole, _ = forward(stages, empty, empty, x, key=key)
    front, _ = forward(stages, empty, empty, x, key=key, stop=cut)
    back, _ = forward(stages, empty, empty, front, key=key, start=cut)
    np.testing.assert_array_equal(whole, back)


def test_rematerialized_stages_give_the_same_gradients_for_more_flops():
    net, batch = toy.mlp(), toy.points()

    def gradient(network):
        def loss(params):
            return forward(network.stages, params, net.stats, batch.x)[0].sum()

        return jax.grad(loss), contraction_flops(jax.grad(loss), net.params)

    whole, cost = gradient(net)
    again, dearer = gradient(remat(net))
    body = net._replace(stages=net.stages[:2])  # the head's outputs are not needed
    assert dearer == cost + contraction_flops(body, batch.x)
    chex.assert_trees_all_equal(whole(net.params), again(net.params))
    np.testing.assert_array_equal(net(batch.x), remat(net)(batch.x))


@pytest.mark.parametrize(
    ("entry", "index"), [("stem", 1), ("block2", 3), ("block3_0/conv2", 4), ("head", 6)]
)
def test_lowest_trainable_stage(entry, index):
    net = toy.small_resnet()
    assert lowest_trainable(net.stages, select(net, {"g": [entry]})) == index


def test_batch_stats_follow_the_norm_mode():
    net = toy.small_resnet("batch")
    block = select(net, {"g": ["block2"]})
    conv = select(net, {"g": ["block2_0/conv1"]})
    every = {"block1_0", "block2_0", "block3_0", "pool"}
    assert stages_with_batch_stats(net.stats, block, "stored") == set()
    assert stages_with_batch_stats(net.stats, block, "tuned") == {"block2_0"}
    assert stages_with_batch_stats(net.stats, conv, "tuned") == set()
    assert stages_with_batch_stats(net.stats, conv, "batch") == every
    with pytest.raises(
        InputError, match="unknown norm mode 'frozen'.*stored, tuned, batch"
    ):
        stages_with_batch_stats(net.stats, block, "frozen")

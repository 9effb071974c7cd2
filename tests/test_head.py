import chex
import jax
import numpy as np
import pytest

from subtune_jax.errors import InputError
from subtune_jax.head import LECUN_NORMAL, replace_head
from tests import toy


def test_a_new_head_has_the_size_asked_and_leaves_the_body_alone():
    net = toy.mlp()
    new = replace_head(net, 7, jax.random.key(0))
    chex.assert_shape(new.params["head"]["kernel"], (6, 7))
    assert new.params["two"] is net.params["two"]
    np.testing.assert_array_equal(new(toy.points().x), np.zeros((48, 7)))
    drawn = replace_head(net, 7, jax.random.key(0), init=LECUN_NORMAL)
    assert float(abs(drawn.params["head"]["kernel"]).min()) > 0


def test_what_is_no_linear_head_is_refused():
    net = toy.small_resnet()
    body = net._replace(stages=net.stages[:-2])
    with pytest.raises(
        InputError, match="'block3_0' is not a linear head.*found conv1, conv2"
    ):
        replace_head(body, 3, jax.random.key(0))
    with pytest.raises(
        InputError, match="num_classes must be a positive whole number, got 0"
    ):
        replace_head(net, 0, jax.random.key(0))


@pytest.mark.parametrize("mode", ["batch", "batch_affine"])
def test_features_are_normalized_by_the_batch_or_by_stored_statistics(mode):
    net = replace_head(
        toy.mlp(), 3, jax.random.key(0), init=LECUN_NORMAL, normalize=mode
    )
    stage, params = net.stages[-1], net.params["head"]
    x = np.random.default_rng(0).normal(2.0, 3.0, (64, 6)).astype(np.float32)
    if mode == "batch_affine":
        params = {**params, "norm": {"scale": np.full(6, 2.0), "bias": np.full(6, 0.5)}}
    scale, bias = (2.0, 0.5) if mode == "batch_affine" else (1.0, 0.0)
    stats = net.stats["head"]
    stored, same = stage.apply(params, stats, x, batch_stats=False, key=None)
    z = scale * x / np.sqrt(1 + 1e-5) + bias  # at first: mean 0, variance 1
    np.testing.assert_allclose(stored, z @ params["kernel"], rtol=2e-4, atol=1e-5)
    assert same is stats
    by_batch, moved = stage.apply(params, stats, x, batch_stats=True, key=None)
    z = scale * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + bias
    np.testing.assert_allclose(by_batch, z @ params["kernel"], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(moved["norm"]["mean"], 0.1 * x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moved["norm"]["var"], 0.9 + 0.1 * x.var(0), rtol=1e-4)


def test_an_unknown_normalization_is_said_and_a_normalized_head_is_replaced():
    with pytest.raises(InputError, match="unknown normalization of a head 'batches'"):
        replace_head(toy.mlp(), 3, normalize="batches")
    normed = replace_head(toy.mlp(), 3, normalize="batch_affine")
    plain = replace_head(normed, 4)
    assert plain.stats["head"] == {} and set(plain.params["head"]) == {"kernel", "bias"}
    np.testing.assert_array_equal(plain(toy.points().x), np.zeros((48, 4)))

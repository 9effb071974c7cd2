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
    with pytest.raises(InputError, match="num_classes must be a positive number, got 0"):
        replace_head(net, 0, jax.random.key(0))

"""Dropout: the share that is kept, the scale, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from subtune_jax.models.dropout import Dropout, below, dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_the_share_that_is_kept_is_scaled_so_that_the_mean_stays(rate):
    x = jnp.full((100, 2_000), 3.0)
    dropped = np.asarray(Dropout(rate, nnx.Rngs(0))(x))
    kept = dropped != 0
    scale = 65_536 / round((1 - rate) * 65_536)
    np.testing.assert_allclose(dropped[kept], 3 * scale, rtol=1e-6)
    error = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(kept.mean() - (1 - rate)) < 4 * error


@pytest.mark.parametrize("width", [1, 7, 8])
def test_every_element_is_drawn_by_itself(width):
    """Neighbours, and the two halves of a word, are independent: a correlation of two
    columns of 40,000 draws has a standard error of 0.005."""
    drawn = below(20_000, jax.random.key(1), (40_000, width))
    drawn = np.asarray(drawn, np.float64)
    np.testing.assert_allclose(drawn.mean(axis=0), 20_000 / 65_536, atol=4 * 0.0023)
    apart = np.corrcoef(drawn.T).reshape(width, width) - np.eye(width)
    assert np.abs(apart).max() < 0.025


def test_both_halves_of_a_random_word_are_compared():
    words = np.asarray(jax.random.bits(jax.random.key(2), (30, 2), jnp.uint32))
    expected = np.concatenate([words & 0xFFFF, words >> 16], axis=1) < 9_000
    drawn = np.asarray(below(9_000, jax.random.key(2), (30, 4)))
    np.testing.assert_array_equal(drawn, expected)
    drawn = np.asarray(below(9_000, jax.random.key(2), (30, 3)))
    np.testing.assert_array_equal(drawn, expected[:, :3])


def test_calls_draw_anew_and_types_stay():
    layer, x = Dropout(0.5, nnx.Rngs(0)), jnp.ones((4, 32), jnp.bfloat16)
    first, second = layer(x), layer(x)
    assert first.dtype == jnp.bfloat16 and (first != second).any()


def test_nothing_is_drawn_where_dropout_is_off():
    x = jnp.ones((4, 32))
    layer = Dropout(0.5, nnx.Rngs(0))
    layer.set_attributes(deterministic=True)
    assert layer(x) is x
    assert dropout(0.0, nnx.Rngs(0))(x) is x


def test_a_rate_next_to_one_keeps_one_level_in_65536():
    assert Dropout(1 - 1e-9, nnx.Rngs(0)).kept == 1

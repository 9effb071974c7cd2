"""Elements swapped in a leaf: by NumPy on a CPU, by XLA on an accelerator, alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import deltas
from subtune_jax.deltas import elements
from subtune_jax.errors import InputError
from subtune_jax.network import Network, Stage
from subtune_jax.training.loop import fit
from subtune_jax.training.settings import Settings
from tests import toy
from tests.deltas.test_delta import KEY, PATTERNS, bits, setup


@pytest.mark.parametrize("dtype", PATTERNS)
def test_the_accelerator_s_program_moves_the_same_bits(dtype):
    size, rng = 8 * np.dtype(dtype).itemsize, np.random.default_rng(0)
    old = rng.integers(0, 2**size, (10, 20), dtype=np.uint64).astype(f"u{size // 8}")
    places = np.array([0, 7, 31, 150, 199])
    values = np.array(PATTERNS[dtype][:5], f"u{size // 8}")
    by_hand = old.copy()
    by_hand.reshape(-1)[places] = values
    leaf, new = jnp.asarray(old.view(dtype)), values.view(dtype)
    for swap in (elements._swap, elements._swap_in_place):
        index, padded = elements._padded(leaf, places, new)
        assert len(index[0]) == len(padded) == 8
        after, taken = swap(jnp.array(leaf), index, padded)
        for ours, theirs in ((after, by_hand), (taken[:5], old.ravel()[places])):
            np.testing.assert_array_equal(np.asarray(ours).view(theirs.dtype), theirs)
    after, taken = elements.swapped(leaf, places, new)
    np.testing.assert_array_equal(np.asarray(after).view(by_hand.dtype), by_hand)
    np.testing.assert_array_equal(np.asarray(leaf).view(old.dtype), old)


def test_tasks_of_other_sizes_share_a_program():
    leaf = jnp.zeros((31, 7))
    before = elements._swap._cache_size()
    for count in (5, 6, 7, 8):
        places = np.arange(count)
        elements._swap(leaf, *elements._padded(leaf, places, np.ones(count, "f4")))
    assert elements._swap._cache_size() == before + 1


def test_a_network_that_is_given_away_comes_back():
    network, phase = setup("fixed_mask")
    tuned = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network
    delta, first = deltas.extract(network, tuned), bits(network)
    assert delta.elements
    held = network.params["two"]["kernel"]
    after, overwritten = deltas.apply(network, delta, donate=True)
    assert held.is_deleted() and bits(after) == bits(tuned)
    back = deltas.undo(after, overwritten, donate=True)
    assert bits(back) == first
    with pytest.raises(InputError, match="has no 'params/two/"):
        deltas.undo(toy.mlp(width=7), overwritten)
    jax.block_until_ready(back.params)


def test_a_leaf_that_lies_transposed_in_memory():
    leaf = np.arange(12, dtype=np.float32).reshape(3, 4).T
    after, taken = elements.swapped(leaf, np.array([1, 5]), np.array([-1.0, -5.0]))
    np.testing.assert_array_equal(taken, [4, 9])
    np.testing.assert_array_equal(
        after, [[0, -1, 8], [1, 5, -5], [2, 6, 10], [3, 7, 11]]
    )
    np.testing.assert_array_equal(leaf, np.arange(12).reshape(3, 4).T)


def test_tied_leaves_are_one_array_and_are_not_given_away():
    def apply(params, stats, x, *, batch_stats, key):
        return x, stats

    def tied(one, other):
        params = {"a": {"w": one}, "b": {"w": other}}
        stages = (Stage("a", apply), Stage("b", apply))
        return Network(stages, params, {"a": {}, "b": {}}, {})

    leaf = jnp.arange(200.0)
    delta = deltas.extract(tied(leaf, leaf), tied(leaf.at[3].set(-1), leaf))
    assert delta.elements.keys() == {"params/a/w"}
    after, _ = deltas.apply(tied(leaf, leaf), delta, donate=True)
    assert not leaf.is_deleted()
    assert (
        float(after.params["a"]["w"][3]) == -1 and float(after.params["b"]["w"][3]) == 3
    )

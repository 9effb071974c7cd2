"""Element masks on leaves whose order a reader can see."""

import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.data.batches import padded
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.selection import elements, scores
from subtune_jax.selection.select import select
from tests import toy

VALUES = {"a": np.array([3.0, -1.0, 2.0, 9.0]), "b": np.array([5.0, 0.0])}


def lists(found):
    return {path: index.tolist() for path, index in found.items()}


def test_highest_and_lowest_in_each_leaf_or_in_all():
    assert lists(elements.highest(VALUES, 2)) == {"a": [0, 3], "b": [0, 1]}
    assert lists(elements.lowest(VALUES, 1)) == {"a": [1], "b": [1]}
    assert lists(elements.highest(VALUES, 3, "all")) == {"a": [0, 3], "b": [0]}
    assert lists(elements.lowest(VALUES, 1, "all")) == {"a": [1]}
    assert elements.count(elements.highest(VALUES, 2)) == 4


def test_random_elements_are_a_function_of_the_seed():
    big = {"a": np.zeros(100), "b": np.zeros(50)}
    one, two, other = (elements.random(big, 20, s, "all") for s in (0, 0, 1))
    assert lists(one) == lists(two) != lists(other)
    assert elements.count(one) == 20 and set(one) == {"a", "b"}


def test_outliers_are_beyond_their_leafs_deviation():
    many = {"a": np.r_[np.zeros(99), 10.0], "b": np.arange(10.0)}
    assert lists(elements.beyond(many, 3.0)) == {"a": [99]}


def test_magnitudes_are_of_a_group():
    network = toy.mlp()
    labels = select(network, {"g": ["two"], "h": ["head/bias"]})
    found = elements.magnitudes(network.params, labels, "g")
    assert set(found) == {"two/bias", "two/kernel"}
    want = np.abs(np.asarray(network.params["two"]["kernel"])).ravel()
    np.testing.assert_array_equal(found["two/kernel"], want)


def test_fisher_of_elements_sums_to_that_of_leaves():
    network, batch = toy.mlp(), padded(toy.points(6), 9)
    labels, batches = select(network, {"g": ["two"]}), [batch, batch]
    each = scores.fisher_elements(network, batches, cross_entropy, labels)
    assert set(tree.flatten(each)) == {"two/bias", "two/kernel"}  # no others are made
    whole = scores.fisher(network, [batch], cross_entropy)
    for path, leaf in tree.flatten(each).items():
        assert float(leaf.mean()) == pytest.approx(whole[path], rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: elements.highest(VALUES, 3), "3 elements are asked of b, which has 2"),
        (lambda: elements.highest(VALUES, 7, "all"), "7 elements .* which has 6"),
        (lambda: elements.highest(VALUES, 0), "n must be a positive number, got 0"),
        (lambda: elements.highest(VALUES, 1, "every"), "unknown scope 'every'"),
        (lambda: elements.beyond(VALUES, 9.0), "no element is beyond 9.0"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_an_unknown_group_is_refused():
    network = toy.mlp()
    labels = select(network, {"g": ["two"]})
    with pytest.raises(InputError, match="unknown group 'frozen': expected one of g"):
        elements.magnitudes(network.params, labels, "frozen")


def test_random_elements_are_drawn_anew_in_every_leaf():
    values = {name: np.zeros(50) for name in "abc"}
    drawn = elements.random(values, 10, seed=0)
    assert len({tuple(index) for index in drawn.values()}) == 3
    again = elements.random(values, 10, seed=0)
    assert all(np.array_equal(drawn[name], again[name]) for name in "abc")

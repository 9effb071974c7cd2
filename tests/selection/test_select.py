import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.selection.select import (
    assert_frozen,
    count_trainable,
    coverage,
    select,
)
from tests import toy


def chosen(network, *entries):
    labels = select(network, {"g": entries})
    return [name for name, label in tree.flatten(labels).items() if label == "g"]


@pytest.mark.parametrize(
    ("entry", "paths"),
    [
        ("head", ["head/bias", "head/kernel"]),
        ("bias", ["head/bias", "one/bias", "two/bias"]),
        ("one/kernel", ["one/kernel"]),
        ("(one|two)/bias", ["one/bias", "two/bias"]),
        ("body", ["one/bias", "one/kernel", "two/bias", "two/kernel"]),
        ("coarse:body", ["one/bias", "one/kernel", "two/bias", "two/kernel"]),
    ],
)
def test_entries_select_units_components_and_runs_of_components(entry, paths):
    assert chosen(toy.mlp(), entry) == paths


@pytest.mark.parametrize(
    "entry", ["on", "ernel", "ead", "one/ker", "coarse:one", "fine:body", "x"]
)
def test_near_misses_match_nothing_and_say_so(entry):
    with pytest.raises(
        InputError, match="matches no unit and no path: nearest units are (body|head)"
    ):
        select(toy.mlp(), {"g": [entry]})


def test_the_nearest_paths_are_shown():
    with pytest.raises(InputError, match="nearest paths are two/kernel"):
        select(toy.mlp(), {"g": ["two/kernal"]})


def test_the_first_group_wins_and_an_empty_group_is_refused():
    net = toy.mlp()
    labels = select(net, {"head": ["head"], "body": [".*"]})
    assert labels["head"]["kernel"] == "head"
    assert labels["two"]["kernel"] == "body"
    with pytest.raises(InputError, match="'head' of group 'b'.*group 'a' already has"):
        select(net, {"a": [".*"], "b": ["head"]})
    with pytest.raises(
        InputError, match="group 'a' selects nothing: its list is empty"
    ):
        select(net, {"a": []})
    with pytest.raises(InputError, match="a selection is a dict"):
        select(net, "head")
    with pytest.raises(InputError, match="not a regular expression"):
        select(net, {"a": ["("]})
    with pytest.raises(InputError, match="cannot name a group"):
        select(net, {"frozen": ["head"]})


def test_coverage_counts_leaves_and_numbers_in_stage_order():
    net = toy.mlp()
    labels = select(net, {"g": ["one/bias", "head"]})
    assert coverage(net, labels) == [
        ("one", "g", 1, 6),
        ("one", "frozen", 1, 24),
        ("two", "frozen", 2, 42),
        ("head", "g", 2, 21),
    ]
    assert count_trainable(net, labels) == 27


def test_assert_frozen_names_what_moved():
    net = toy.mlp()
    labels = select(net, {"g": ["head"]})
    moved = {
        **net.params,
        "two": {**net.params["two"], "bias": net.params["two"]["bias"] + 1e-7},
    }
    assert_frozen(net.params, net.params, labels)
    with pytest.raises(AssertionError, match="frozen leaves moved: two/bias"):
        assert_frozen(net.params, moved, labels)


def test_alternatives_are_units_or_patterns_and_match_each_on_its_own():
    network = toy.small_resnet()

    def selected(entry):
        labels = tree.flatten(select(network, {"g": [entry]}))
        return {path for path, label in labels.items() if label == "g"}

    both = selected("block1") | selected("head")
    assert selected("block1|head") == both == selected("coarse:block1|head")
    assert selected("head|block1_0/conv1") == selected("head") | selected(
        "block1_0/conv1"
    )
    assert selected(r"block(1|2)_0/conv[12]|head") > selected("head")
    with pytest.raises(
        InputError, match="selector 'block9' matches no unit and no path"
    ):
        selected("block9|head")


def with_leaf(network, name, leaf):
    one = {**network.params["one"], name: leaf}
    return network._replace(params={**network.params, "one": one})


def test_tables_of_integers_are_never_chosen():
    network = with_leaf(toy.mlp(), "steps", np.arange(3))
    assert chosen(network, "one") == ["one/bias", "one/kernel"]
    with pytest.raises(InputError, match="matches only one/steps int64"):
        select(network, {"g": ["one/steps"]})


def test_frozen_leaves_are_compared_by_their_bits():
    """NaN is NaN here, and 0.0 is not -0.0."""

    def params(*values):
        return with_leaf(toy.mlp(), "bias", np.array(values, np.float32)).params

    labels = select(toy.mlp(), {"g": ["head"]})
    assert_frozen(params(0.0, np.nan), params(0.0, np.nan), labels)
    with pytest.raises(AssertionError, match="frozen leaves moved: one/bias"):
        assert_frozen(params(0.0, np.nan), params(-0.0, np.nan), labels)

"""What trains under a fixed mask is what was chosen, and costs only that."""

import jax
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam, sgd
from subtune_jax.training.phases import Phase, Settings
from subtune_jax.training.state import start
from subtune_jax.tuning.anchor import l2_sp
from subtune_jax.tuning.fixed_mask import fixed_mask, largest_changes, mask_indices
from subtune_jax.tuning.method import Ended, Parts
from subtune_jax.tuning.rescaled import rescaled
from subtune_jax.tuning.subset import subset
from tests import toy

KEY = jax.random.key(0)


def test_chosen_elements_move_and_no_other():
    network, index = toy.mlp(), np.array([3, 0, 17])
    labels = select(network, {"g": ["two/kernel", "head"]})
    phase = Phase(labels, adam(1e-2), 5, fixed_mask({"two/kernel": index}))
    made = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network
    moved = np.ravel(made.params["two"]["kernel"] != network.params["two"]["kernel"])
    assert np.flatnonzero(moved).tolist() == [0, 3, 17]
    assert np.all(made.params["head"]["kernel"] != network.params["head"]["kernel"])
    np.testing.assert_array_equal(
        made.params["one"]["kernel"], network.params["one"]["kernel"]
    )


def test_moments_are_kept_for_the_chosen_elements_alone():
    network = toy.mlp()
    labels = select(network, {"g": ["two/kernel"]})
    phase = Phase(labels, adam(1e-2), 5, fixed_mask({"two/kernel": np.arange(7)}))
    _, state = start(network, phase, Settings(cross_entropy), KEY)
    assert tree.count(state.trainable) == 7
    sizes = {leaf.size for leaf in jax.tree.leaves(state.opt_state)}
    assert sizes == {1, 7}


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ({"two/kernel": [0, 0]}, "must be distinct integers from 0 up"),
        ({"two/kernel": [-1]}, "must be distinct integers"),
        ({"two/kernel": [0.5]}, "must be distinct integers"),
        ({"two/kernel": [36]}, "index 36 is past the 36 elements of 'two/kernel'"),
        ({"two/kernal": [0]}, "there is no leaf 'two/kernal'"),
    ],
)
def test_indices_that_cannot_be_are_refused(indices, message):
    network = toy.mlp()
    labels = select(network, {"g": ["two/kernel"]})
    with pytest.raises(InputError, match=message):
        tuning = fixed_mask({path: np.array(index) for path, index in indices.items()})
        fit(network, Phase(labels, adam(1e-2), 1, tuning), toy.points(), key=KEY)


def test_a_leaf_without_a_chosen_element_is_not_trained():
    network = toy.mlp()
    labels = select(network, {"g": ["two"], "head": ["head"]})
    tuning = fixed_mask({"two/kernel": np.array([3]), "two/bias": np.zeros(0, int)})
    trainable, fixed = tuning.init(network.params, labels, None)
    assert {p: v.size for p, v in tree.flatten(trainable).items()} == {
        "two/kernel": 1,
        "head/kernel": 18,
        "head/bias": 3,
    }
    groups = tree.flatten(tuning.groups(trainable, labels))
    assert groups == {"two/kernel": "g", "head/kernel": "head", "head/bias": "head"}
    made = tuning.materialize(trainable, fixed, network.params)
    np.testing.assert_array_equal(made["two"]["bias"], network.params["two"]["bias"])


def test_the_mask_of_a_run_comes_back_with_it_and_from_its_checkpoint(tmp_path):
    network = toy.mlp()
    labels = select(network, {"g": ["two/kernel", "head"]})
    mask = {"two/kernel": np.array([3, 9])}
    phase = Phase(labels, adam(1e-2), 5, fixed_mask(mask))
    for _ in range(2):  # the second is read from the checkpoint
        result = fit(network, phase, toy.points(), key=KEY, checkpoint=tmp_path)
        indices = mask_indices(result.trainable, result.fixed)
        assert {path: list(index) for path, index in indices.items()} == {
            "two/kernel": [3, 9]
        }


@pytest.mark.parametrize("tuning", [subset(), l2_sp(0.1), rescaled()])
def test_a_run_without_a_mask_says_so(tuning):
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["two", "head"]}), adam(1e-2), 1, tuning)
    result = fit(network, phase, toy.points(), key=KEY)
    with pytest.raises(InputError, match="these values have no mask: tune with"):
        mask_indices(result.trainable, result.fixed)


def test_decay_pulls_chosen_elements_to_the_base_and_whole_leaves_to_0():
    """Of phases that differ in the decay of their one step of SGD at 0.1 alone, the second
    moved by 0.1 * 0.5 * (v - w_0) less, and the head, which has no mask, by 0.05 w."""
    network = toy.mlp()
    labels = select(network, {"g": ["two/kernel"], "head": ["head"]})
    first = Phase(labels, sgd(0.5), 4, keeps=False)

    def tuned(tuning, *rules):
        phases = [first, *(Phase(labels, rule, 1, tuning) for rule in rules)]
        phases = phases if rules else [first._replace(keeps=True)]
        return fit(network, phases, toy.points(), key=KEY).network.params

    def plain(decay):
        return sgd(0.1, momentum=0.0)._replace(weight_decay=decay)

    base, live = network.params["two"]["kernel"], tuned(subset())
    for tuning in (fixed_mask({"two/kernel": np.arange(5)}), largest_changes(5)):
        free, pulled = (tuned(tuning, plain(decay)) for decay in (0.0, 0.5))
        less = np.ravel(free["two"]["kernel"] - pulled["two"]["kernel"])
        chosen = np.flatnonzero(np.ravel(free["two"]["kernel"] != base))
        assert len(chosen) == 5
        change = np.ravel(live["two"]["kernel"] - base)[chosen]
        np.testing.assert_allclose(less[chosen], 0.05 * change, rtol=1e-4, atol=1e-7)
        head = free["head"]["kernel"] - pulled["head"]["kernel"]
        np.testing.assert_allclose(head, 0.05 * live["head"]["kernel"], rtol=1e-4)


def test_indices_in_any_order_are_kept_in_that_of_the_leaf():
    """The compiler is promised sorted places."""
    network = toy.mlp()
    labels = select(network, {"g": ["two/kernel"]})
    parts = fixed_mask({"two/kernel": [17, 0, 3]}).init(network.params, labels)
    assert parts.fixed["two"]["kernel"].tolist() == [0, 3, 17]
    flat = np.ravel(network.params["two"]["kernel"])
    np.testing.assert_array_equal(parts.trainable["two"]["kernel"], flat[[0, 3, 17]])


@pytest.mark.parametrize(
    ("start", "begins"),
    # w is 2 and 4 at two places of zeros, behind gates of 0.5.
    [("change", [1.0, 2.0]), ("base", [0.0, 0.0]), ("ungated", [2.0, 4.0])],
)
def test_chosen_elements_start_where_they_are_asked_to(start, begins):
    network = toy.mlp()
    params = {**network.params}
    params["one"] = jax.tree.map(np.zeros_like, params["one"])
    labels = select(network, {"body": ["one/kernel"]})
    w = np.zeros((4, 6), np.float32)
    w[0, 5], w[2, 1] = 2, 4
    trainable = {"one": {"kernel": {"w": w}}}

    def materialize(trainable, fixed, params, key=None):
        half = trainable["one"]["kernel"]["w"] / 2
        return {**params, "one": {**params["one"], "kernel": half}}

    tuning = subset()._replace(materialize=materialize)
    live = materialize(trainable, {}, params)
    ended = Ended(tuning, Parts(trainable, {}), live)
    after = largest_changes(2, start=start).take_over(ended, params, labels, KEY)
    assert after.fixed["one"]["kernel"].tolist() == [5, 13]
    assert after.trainable["one"]["kernel"].tolist() == begins

from functools import partial

import jax
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.data.batches import padded
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.selection.rate_multipliers import auto_rgn, auto_snr, normalized
from subtune_jax.selection.scores import relative_gradient_norm, signal_to_noise
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings
from tests import toy

KEY = jax.random.key(0)
SCORE = {"a": 1.0, "b": 4.0, "c": 2.0}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("max", {"a": 0.25, "b": 1.0, "c": 0.5}),
        ("minmax", {"a": 0.0, "b": 1.0, "c": pytest.approx(1 / 3)}),
        ("none", SCORE),
    ],
)
def test_normalization(how, expected):
    assert normalized(SCORE, how) == expected


def test_equal_scores_are_factors_of_one():
    same, zero = {"a": 2.0, "b": 2.0}, {"a": 0.0, "b": 0.0}
    ones = {"a": 1.0, "b": 1.0}
    assert normalized(same, "minmax") == normalized(same, "max") == ones
    assert normalized(zero, "max") == normalized(zero, "minmax") == ones
    assert normalized(zero, "none") == zero


def test_a_tensor_of_zeros_counts_as_the_highest_and_sets_no_scale():
    zero = {**SCORE, "z": float("inf"), "still": 0.0}
    for how, others in (
        ("max", {"a": 0.25, "b": 1.0, "c": 0.5}),
        ("minmax", {"a": 0.25, "b": 1.0, "c": 0.5}),
        ("none", SCORE),
    ):
        top = others["b"]
        assert normalized(zero, how) == {**others, "z": top, "still": 0.0}
    alone = {"y": float("inf"), "z": float("inf")}
    for how in ("max", "minmax", "none"):
        assert normalized(alone, how) == {"y": 1.0, "z": 1.0}


def test_a_head_of_zeros_moves_under_auto_rgn():
    network = toy.mlp()
    network = network._replace(
        params={
            **network.params,
            "head": jax.tree.map(np.zeros_like, network.params["head"]),
        }
    )
    labels = select(network, {"g": ["two", "head"]})
    rule = auto_rgn(cross_entropy)
    phase = Phase(labels, adam(1e-2), 6, multipliers=rule, reset_moments=True)
    after = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(after.params["head"]))


def test_units_that_share_a_leaf_have_no_one_multiplier():
    network = toy.mlp()._replace(
        units={"t": {"all": ("one", "two"), "first": ("one",)}}
    )
    with pytest.raises(
        InputError, match="'all' and 'first' of table 't' share 'one/bias'"
    ):
        made(network, auto_rgn(cross_entropy, table="t"), ".*")


def made(network, rule, *entries):
    labels = select(network, {"g": entries})
    paths = [n for n, label in tree.flatten(labels).items() if label == "g"]
    stream = (padded(toy.points(16, seed), 16) for seed in range(9))
    return rule(network, stream, paths)


def test_auto_rgn_is_the_max_normalized_score_of_the_trainable_tensors():
    network = toy.mlp()
    batches = [padded(toy.points(16, seed), 16) for seed in range(5)]
    score = relative_gradient_norm(network, batches, cross_entropy)
    paths = ("one/bias", "one/kernel", "two/bias", "two/kernel")
    top = max(score[path] for path in paths)
    found = made(network, auto_rgn(cross_entropy), "one", "two")
    assert found == {path: pytest.approx(score[path] / top) for path in paths}


def test_units_share_a_multiplier_and_leaves_in_none_get_none():
    network = toy.mlp()
    part = network._replace(units={"some": {"body": ("one",), "head": ("head",)}})
    found = made(part, auto_rgn(cross_entropy, table="some"), ".*")
    assert found["one/bias"] == found["one/kernel"]
    assert found["two/bias"] == found["two/kernel"] == 0.0
    assert max(found.values()) == 1.0


def test_auto_snr_is_all_or_nothing():
    network = toy.mlp()
    low, some, none = (
        made(network, auto_snr(cross_entropy, threshold=t), ".*")
        for t in (0.0, 0.5, 1.1)
    )
    assert set(low.values()) == {1.0}
    assert set(some.values()) == {0.0, 1.0}
    assert set(none.values()) == {0.0}
    official = auto_snr(
        cross_entropy, threshold=0.95, mode="official", normalization="none"
    )
    assert set(made(network, official, ".*").values()) <= {0.0, 1.0}


def run(network, seen=None, **settings):
    rule = auto_rgn(cross_entropy)

    def counted(*args):
        factors = rule(*args)
        if seen is not None:
            seen.append(factors)
        return factors

    labels = select(network, {"g": ["one", "two"]})
    phase = Phase(labels, adam(1e-2), 12, multipliers=counted, **settings)
    return fit(
        network,
        phase,
        toy.points(),
        key=KEY,
        settings=Settings(batch_size=16, cache_bytes=0),
    )


def test_multipliers_are_refreshed_every_epoch_without_retracing_the_step():
    seen, traces = [], []
    network = toy.mlp(traces=traces)
    run(network, seen)
    assert len(seen) == 4  # 12 steps of 3 an epoch
    assert seen[0] != seen[1]
    # The shapes that the network can take, the step and the score.
    assert len(traces) == 3


def test_a_tensor_with_multiplier_zero_does_not_move():
    network = toy.mlp()
    labels = select(network, {"g": [".*"]})

    def only_bias(network, batches, paths):
        return {path: float(path.endswith("bias")) for path in paths}

    phase = Phase(labels, adam(1e-2), 6, multipliers=only_bias)
    after = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network.params
    np.testing.assert_array_equal(
        after["two"]["kernel"], network.params["two"]["kernel"]
    )
    assert np.all(after["two"]["bias"] != network.params["two"]["bias"])


def test_moments_are_kept_or_reset():
    network = toy.mlp()
    kept, reset = (run(network, reset_moments=r).trainable for r in (False, True))
    assert np.any(kept["one"]["kernel"] != reset["one"]["kernel"])


def test_bad_settings_are_refused():
    with pytest.raises(
        InputError, match="unknown normalization 'min-max'.*mean 'minmax'"
    ):
        auto_rgn(cross_entropy, normalization="min-max")
    with pytest.raises(InputError, match="unknown SNR mode 'exact'"):
        auto_snr(cross_entropy, threshold=0.5, mode="exact")
    with pytest.raises(InputError, match="batches must be a positive number, got 0"):
        auto_rgn(cross_entropy, batches=0)


@pytest.mark.parametrize("rule", [auto_rgn, partial(auto_snr, threshold=0.5)])
def test_scores_are_of_the_first_five_batches(rule):
    network, taken = toy.mlp(), []

    def stream():
        for seed in range(9):
            taken.append(seed)
            yield padded(toy.points(16, seed), 16)

    rule(cross_entropy)(network, stream(), ["two/bias", "two/kernel"])
    assert taken == [0, 1, 2, 3, 4]


def test_the_threshold_of_auto_snr_is_of_scores_from_0_to_1():
    network = toy.mlp()
    batches = [padded(toy.points(16, seed), 16) for seed in range(5)]
    score = signal_to_noise(network, batches, cross_entropy)
    low, high = min(score.values()), max(score.values())
    for threshold in (0.01, 0.3, 0.7):  # divided by the highest, the lowest is 0.02
        found = made(network, auto_snr(cross_entropy, threshold=threshold), ".*")
        expected = {
            p: float((v - low) / (high - low) >= threshold) for p, v in score.items()
        }
        assert found == expected


def test_a_head_of_zeros_that_hides_the_body_has_a_factor_of_one():
    hidden = {"body": 0.0, "head": float("inf")}
    for how in ("max", "none"):
        assert normalized(hidden, how)["head"] == 1.0

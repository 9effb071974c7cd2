"""Scores of a two-layer linear network against values worked out by hand."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.data.batches import Dataset, padded
from subtune_jax.data.batches import in_order as batches_of
from subtune_jax.errors import InputError
from subtune_jax.flops import contraction_flops
from subtune_jax.head import replace_head
from subtune_jax.losses import cross_entropy, squared_error
from subtune_jax.network import Network, Stage, forward
from subtune_jax.selection import gradients, scores
from tests import toy


def matrix(params, stats, x, *, batch_stats, key):
    return x @ params["w"], stats


def linear_network():
    """f(x) = x B v with B = [[1, 2], [0, 1]] and v = [[1], [-1]]."""
    params = {
        "first": {"w": jnp.array([[1.0, 2.0], [0.0, 1.0]])},
        "last": {"w": jnp.array([[1.0], [-1.0]])},
    }
    stages = (Stage("first", matrix), Stage("last", matrix))
    units = {"coarse": {"both": ("first", "last")}}
    return Network(stages, params, {"first": {}, "last": {}}, units)


X = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
Y = np.array([[1.0], [0.0]], np.float32)
BATCH = padded(Dataset(X, Y), 2)

# By hand: hidden = [[1, 2], [0, 2]]; outputs = [-1, -2]; residuals e = [-2, -2].
# Loss of an example (o - y)^2, its gradients: dv = 2 e h, dB = 2 e x^T v^T.
DV = np.array([[-4.0, -8.0], [0.0, -8.0]])[..., None]
DB = np.array([[[-4.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [-8.0, 8.0]]])


def test_relative_gradient_norm():
    found = scores.relative_gradient_norm(linear_network(), [BATCH], squared_error)
    g_b, g_v = DB.mean(0), DV.mean(0)
    assert found["first/w"] == pytest.approx(np.linalg.norm(g_b) / np.sqrt(6))
    assert found["first/w"] == pytest.approx(np.sqrt(4 + 4 + 16 + 16) / np.sqrt(6))
    assert found["last/w"] == pytest.approx(np.sqrt(4 + 64) / np.sqrt(2))
    groups = scores.unit_groups(linear_network(), "coarse")
    both = scores.relative_gradient_norm(
        linear_network(), [BATCH], squared_error, groups
    )
    assert both["both"] == pytest.approx(np.sqrt((40 + 68) / 8))
    assert np.linalg.norm(g_v) == pytest.approx(np.sqrt(68))


def test_it_is_the_mean_of_ratios_over_batches_and_infinite_at_norm_zero():
    network = linear_network()
    other = padded(Dataset(X[::-1] * 3, Y), 2)
    one, two, both = (
        scores.relative_gradient_norm(network, b, squared_error)["last/w"]
        for b in ([BATCH], [other], [BATCH, other])
    )
    assert both == pytest.approx((one + two) / 2)
    zero = {**network.params, "last": {"w": jnp.zeros((2, 1))}}
    found = scores.relative_gradient_norm(
        network._replace(params=zero), [BATCH], squared_error
    )
    # A head of zeros passes no gradient on to the body, and has one of its own.
    assert found == {"first/w": 0.0, "last/w": float("inf")}
    still = padded(Dataset(X, np.zeros((2, 1), np.float32)), 2)
    found = scores.relative_gradient_norm(
        network._replace(params=zero), [still], squared_error
    )
    assert found == {"first/w": 0.0, "last/w": 0.0}


def test_signal_to_noise_over_examples():
    found = scores.signal_to_noise(linear_network(), [BATCH], squared_error)
    mean, var = DV.mean(0), DV.var(0, ddof=1)
    np.testing.assert_allclose(mean.ravel(), [-2, -8])
    np.testing.assert_allclose(var.ravel(), [8, 0])
    expected = np.mean([4 / 8, 64 / 1e-8])
    assert found["last/w"] == pytest.approx(expected, rel=1e-5)
    mean, var = DB.mean(0), DB.var(0, ddof=1)
    assert found["first/w"] == pytest.approx(np.mean(mean**2 / var), rel=1e-5)
    assert found["first/w"] == pytest.approx(0.5, rel=1e-5)


def test_signal_to_noise_over_microbatches():
    data = Dataset(np.repeat(X, 2, axis=0), np.repeat(Y, 2, axis=0))
    micro = scores.signal_to_noise(
        linear_network(), [padded(data, 4)], squared_error, mode="microbatch", micro=2
    )
    plain = scores.signal_to_noise(linear_network(), [BATCH], squared_error)
    assert micro["first/w"] == pytest.approx(plain["first/w"], rel=1e-5)


# A stored gradient, as PyTorch has it: (out, in). Its code's score, worked out beside it.
STORED = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]])


def test_the_official_formula_on_a_stored_gradient():
    variance = np.array([1.0, 3.0])  # over axis 0: (1, 3, 2) and (2, 2, 5), unbiased
    expected = np.mean(STORED**2 / (variance + 1e-8))
    assert expected == pytest.approx((1 + 9 + 4 + (4 + 4 + 25) / 3) / 6)
    ours = scores._official_ratios(jnp.asarray(STORED.T)) / STORED.size
    assert float(ours) == pytest.approx(expected, rel=1e-6)
    assert float(scores._official_ratios(jnp.ones((4, 1)))) == 0.0
    found = scores.signal_to_noise(
        linear_network(), [BATCH], squared_error, mode="official"
    )
    g = DB.mean(0)
    variance = g.var(axis=1, ddof=1, keepdims=True)
    assert found["first/w"] == pytest.approx(
        np.mean(g**2 / (variance + 1e-8)), rel=1e-5
    )
    assert found["last/w"] == 0.0


def test_fisher_is_the_mean_square_of_example_gradients():
    found = scores.fisher(linear_network(), [BATCH], squared_error)
    assert found["first/w"] == pytest.approx(np.mean(DB**2)) == pytest.approx(20.0)
    assert found["last/w"] == pytest.approx(np.mean(DV**2)) == pytest.approx(36.0)


def test_magnitude_is_the_root_mean_square():
    found = scores.magnitude(linear_network())
    assert found == {
        "first/w": pytest.approx(np.sqrt(6 / 4)),
        "last/w": pytest.approx(1.0),
    }


def test_agreement_is_spearmans():
    made = {
        "a": {"x": 1.0, "y": 2.0, "z": 3.0},
        "b": {"x": 10.0, "y": 40.0, "z": 30.0},
        "c": {"z": 0.0, "y": 1.0, "x": 2.0},
    }
    found = scores.rank_agreement(made)
    assert found["a", "a"] == pytest.approx(1.0)
    assert found["a", "b"] == found["b", "a"] == pytest.approx(0.5)
    assert found["a", "c"] == pytest.approx(-1.0)


def test_an_unknown_mode_or_table_is_refused():
    with pytest.raises(InputError, match="unknown SNR mode 'offical'.*mean 'official'"):
        scores.signal_to_noise(linear_network(), [BATCH], squared_error, mode="offical")
    with pytest.raises(InputError, match="unknown unit table 'fine'"):
        scores.unit_groups(linear_network(), "fine")


@pytest.mark.slow
def test_a_score_costs_little_more_than_its_gradients():
    network = toy.small_resnet("group")
    data = toy.images(16)
    batch = padded(data, 16)
    half = gradients.scored_half(network.params)

    def loss(params):
        return cross_entropy(
            forward(network.stages, params, network.stats, data.x)[0], data.y
        ).mean()

    whole = contraction_flops(jax.grad(loss), network.params)

    def batches(params):
        network_ = network._replace(params=params)
        return gradients.batch_gradient(
            network_, cross_entropy, scores._squares, half, batch
        )

    def rows(params):
        network_ = network._replace(params=params)
        return gradients.row_moments(network_, cross_entropy, half, batch, 1, 5)

    for run in (batches, rows):
        assert whole <= contraction_flops(run, network.params) <= 1.3 * whole


def test_gradients_of_what_is_not_scored_cost_nothing():
    network, data = toy.small_resnet("group"), toy.images(16)
    batch, top = padded(data, 16), network.stages[-1].name

    def flops(half):
        def run(params):
            network_ = network._replace(params=params)
            return gradients.row_moments(network_, cross_entropy, half, batch, 1, 16)

        return contraction_flops(run, network.params)

    every = [path for path in tree.flatten(network.params)]
    head = [path for path in every if path.startswith(top)]
    alone, full = (
        flops(gradients.scored_half(network.params, paths)) for paths in (head, every)
    )
    assert alone < 0.4 * full
    groups = {"head": head}
    found = scores.fisher(network, [batch], cross_entropy, groups)
    assert list(found) == ["head"]


def test_memory_is_that_of_a_chunk_whatever_the_batch():
    network = toy.mlp()
    half = gradients.scored_half(network.params)

    def temporary(size):
        batch = padded(toy.points(size), size)
        run = jax.jit(
            partial(
                gradients._row_moments, network.stages, cross_entropy, 1, size // 4
            ),
            donate_argnums=0,
        )
        moments = gradients._no_moments(half)
        args = moments, half, network.params, network.stats, batch, jnp.int32(0)
        return run.lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert (
        temporary(64) <= temporary(8) + 64 * 16
    )  # the inputs of 64 rows of two numbers


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["per_example", "microbatch"])
def test_a_chunk_is_a_matter_of_memory_alone(mode):
    network, batch = toy.mlp(), padded(toy.points(13), 13)
    for score in (
        lambda chunk: scores.signal_to_noise(
            network, [batch], cross_entropy, mode=mode, micro=2, chunk=chunk
        ),
        lambda chunk: scores.fisher(network, [batch], cross_entropy, chunk=chunk),
    ):
        whole = score(64)
        for chunk in (1, 4, 5):
            assert score(chunk) == pytest.approx(whole, rel=1e-4)


def test_a_score_compiles_once_for_all_batches():
    traces: list = []
    network = toy.mlp(traces=traces)
    made = [padded(toy.points(16, seed), 16) for seed in range(5)]
    scores.relative_gradient_norm(network, made, cross_entropy)
    scores.relative_gradient_norm(network, made, cross_entropy)
    assert len(traces) == 2  # the shapes that the network can take, and the score


@pytest.mark.parametrize("mode", ["per_example", "microbatch"])
def test_padding_rows_are_no_examples(mode):
    network, data = toy.mlp(), toy.points(6)

    def snr(batch):
        settings = {"mode": mode, "micro": 2}
        return scores.signal_to_noise(network, [batch], cross_entropy, **settings)

    def fisher(batch):
        return scores.fisher(network, [batch], cross_entropy)

    for score in (snr, fisher):
        whole, ragged = score(padded(data, 6)), score(padded(data, 11))
        assert ragged == pytest.approx(whole, rel=1e-4)


def test_microbatches_shrink_until_there_are_two_and_single_examples_are_left_out():
    network = toy.mlp()
    six, one = padded(toy.points(6), 6), padded(toy.points(1), 6)

    def snr(batches, micro):
        settings = {"mode": "microbatch", "micro": micro}
        return scores.signal_to_noise(network, batches, cross_entropy, **settings)

    assert snr([six], 8) == snr([six], 3) != snr([six], 2)
    assert snr([six, one], 2) == snr([six], 2)
    with pytest.raises(InputError, match="a score needs a batch"):
        snr([one], 2)
    with pytest.raises(InputError, match="micro must be a positive number, got 0"):
        snr([six], 0)


def test_a_score_that_is_the_same_everywhere_agrees_with_nothing():
    found = scores.rank_agreement(
        {"a": {"x": 1.0, "y": 1.0}, "b": {"x": 1.0, "y": 2.0}}
    )
    assert np.isnan(found["a", "b"]) and found["b", "b"] == pytest.approx(1)


def test_a_unit_sums_over_its_leaves_whatever_other_units_hold():
    network = linear_network()._replace(
        units={"t": {"all": ("first", "last"), "one": ("last",), "w": ("w",)}}
    )
    groups = scores.unit_groups(network, "t")
    assert groups == {
        "all": ["first/w", "last/w"],
        "one": ["last/w"],
        "w": ["first/w", "last/w"],
    }
    found = scores.fisher(network, [BATCH], squared_error, groups)
    # 4 entries of mean square 20 and 2 of 36, by hand above.
    both = (4 * 20 + 2 * 36) / 6
    assert found == {
        name: pytest.approx(v)
        for name, v in {"all": both, "one": 36.0, "w": both}.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "vit"])
def test_every_unit_of_the_kinds_of_a_transformer_has_a_score(family):
    network, data = toy.transformer(family)
    head = network.stages[-1].name  # a head of zeros would hide the body
    kernel = jax.random.normal(jax.random.key(1), network.params[head]["kernel"].shape)
    params = {**network.params, head: {**network.params[head], "kernel": kernel}}
    network = network._replace(params=params)
    found = scores.relative_gradient_norm(
        network,
        [padded(data, len(data.y))],
        cross_entropy,
        scores.unit_groups(network, "kinds"),
    )
    assert set(found) == set(network.units["kinds"])
    assert all(value > 0 for value in found.values())


def test_examples_of_a_ragged_last_batch_count_as_the_others():
    network, data = toy.mlp(), toy.points(10)
    whole = scores.fisher(network, [padded(data, 10)], cross_entropy)
    parts = [padded(data.take(slice(0, 8)), 8), padded(data.take(slice(8, 10)), 8)]
    assert scores.fisher(network, parts, cross_entropy) == pytest.approx(
        whole, rel=1e-5
    )
    labels = jax.tree.map(lambda _: "all", network.params)
    one, other = (
        scores.fisher_elements(network, batches, cross_entropy, labels)
        for batches in ([padded(data, 10)], parts)
    )
    chex.assert_trees_all_close(one, other, rtol=1e-5)


def test_a_number_that_a_loss_reads_and_that_changed_is_read_by_a_new_function():
    """A score knows functions by the objects that they are; see docs/long_runs.md."""
    network, scale = toy.mlp(), [1.0]
    batch = padded(toy.points(8), 8)

    def found():
        def loss(outputs, targets):
            return scale[0] * cross_entropy(outputs, targets)

        return [
            score(network, [batch], loss)["one/kernel"]
            for score in (scores.relative_gradient_norm, scores.fisher)
        ]

    norm, square = found()
    scale[0] = 2.0
    assert found() == [pytest.approx(2 * norm), pytest.approx(4 * square)]


def test_leaves_that_cannot_train_have_no_score_and_half_ones_are_float32():
    def apply(params, stats, x, *, batch_stats, key):
        return x @ params["w"].astype(x.dtype) * params["times"], stats

    params = {
        "one": {
            "w": jnp.full((2, 1), 300.0, jnp.float16),
            "times": jnp.int32(1),
            "phase": jnp.ones(2, jnp.complex64),
            "none": jnp.zeros((0, 3)),
        }
    }
    network = Network((Stage("one", apply),), params, {"one": {}}, {})
    batch = padded(Dataset(np.full((2, 2), 1.0, np.float32), np.zeros((2, 1))), 2)
    # f = 600, so that the gradient 1,200 of each weight has a square beyond float16.
    for score in (scores.fisher, scores.relative_gradient_norm, scores.signal_to_noise):
        assert list(score(network, [batch], squared_error)) == ["one/w"]
    assert list(scores.magnitude(network)) == ["one/w"]
    assert scores.magnitude(network)["one/w"] == pytest.approx(300.0)
    found = scores.fisher(network, [batch], squared_error)
    assert found["one/w"] == pytest.approx(1200.0**2)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, y: (o - y) ** 2, r"shape \[., 1\].*expected one number per example"),
        (lambda o, y: ((o - y) ** 2).mean(), r"returned shape \[\]"),
    ],
)
def test_a_loss_of_another_shape_is_refused(loss, message):
    for score in (scores.fisher, scores.relative_gradient_norm, scores.signal_to_noise):
        with pytest.raises(InputError, match=message):
            score(linear_network(), [BATCH], loss)


def test_weights_and_targets_of_another_number_are_refused():
    network = linear_network()
    column = BATCH._replace(weight=BATCH.weight[:, None])
    with pytest.raises(InputError, match=r"weights of a batch have shape \[2, 1\]"):
        scores.relative_gradient_norm(network, [column], squared_error)
    short = BATCH._replace(y=BATCH.y[:1])
    for score in (scores.relative_gradient_norm, scores.fisher):
        with pytest.raises(InputError, match="2 inputs and 1 targets"):
            score(network, [short], squared_error)


def test_groups_are_read_as_selections_are_and_what_matches_nothing_is_said():
    network, batch = toy.mlp(), next(batches_of(toy.points(), 48))
    whole = scores.relative_gradient_norm(network, [batch])
    given = {"a": "one", "b": ["two/kernel", "two/bias"], "c": ["head/kernel"]}
    by_unit = scores.relative_gradient_norm(network, [batch], groups=given)
    assert list(by_unit) == ["a", "b", "c"]
    assert by_unit["c"] == pytest.approx(whole["head/kernel"])
    one = [np.ravel(leaf) for leaf in network.params["one"].values()]
    size = float(np.sqrt(np.mean(np.square(np.concatenate(one)))))
    assert scores.magnitude(network, {"a": "one"})["a"] == pytest.approx(size)
    for score in (scores.relative_gradient_norm, scores.signal_to_noise, scores.fisher):
        with pytest.raises(
            InputError, match="'two/kernle' matches no unit and no path"
        ):
            score(network, [batch], groups={"a": ["one"], "b": ["two/kernle"]})
    with pytest.raises(InputError, match="a dict of units, got list"):
        scores.relative_gradient_norm(network, [batch], groups=["one"])


def test_a_choice_that_says_nothing_is_refused():
    with pytest.raises(InputError, match="no scores to choose from"):
        scores.top({}, 1)
    network = replace_head(toy.mlp(), 3)
    score = scores.relative_gradient_norm(network, batches_of(toy.points(), 48))
    assert score["head/kernel"] == np.inf and score["one/kernel"] == 0
    with pytest.raises(InputError, match="the score of 'one/.*' is 0.*a new head"):
        scores.top(score, 3)
    batches = batches_of(toy.points(), 48)
    scores.signal_to_noise(network, batches)
    with pytest.raises(InputError, match="used up: make them again"):
        scores.signal_to_noise(network, batches)

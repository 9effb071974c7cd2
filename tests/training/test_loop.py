import jax
import numpy as np
import pytest

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.selection.select import select
from subtune_jax.training.loop import DivergedError, epochs, fit
from subtune_jax.training.optimizers import adam, sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import make_plan
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.training.settings import Settings
from tests import toy

KEY = jax.random.key(0)


def phase(network, rule=adam(1e-2), steps=12):
    return Phase(select(network, {"g": [".*"]}), rule, steps)


def test_an_epoch_is_a_pass_over_the_data_and_the_end_of_a_run_is_one():
    network = toy.mlp()
    points = list(
        epochs(
            make_plan(
                network,
                phase(network, steps=7),
                toy.points(48),
                key=KEY,
                settings=Settings(batch_size=16),
            )
        )
    )
    assert [(p.number, p.step) for p in points] == [(1, 3), (2, 6), (3, 7)]
    assert all(np.isfinite([p.loss, p.grad_norm]).all() for p in points)


def test_the_best_epoch_is_kept_and_of_equals_the_first():
    network, scores = toy.mlp(), iter([0.0, 50.0, 70.0, 70.0, 60.0])
    seen = []

    def validate(net):
        seen.append(np.asarray(net.params["head"]["kernel"]).copy())
        return next(scores)

    result = fit(
        network,
        phase(network),
        toy.points(),
        key=KEY,
        settings=Settings(batch_size=16),
        validate=validate,
    )
    assert result.epoch == 2
    assert result.scores == [50.0, 70.0, 70.0, 60.0]
    np.testing.assert_array_equal(result.network.params["head"]["kernel"], seen[2])
    np.testing.assert_array_equal(result.trainable["head"]["kernel"], seen[2])


def test_a_loss_that_is_not_finite_names_its_step():
    network = toy.mlp()

    def loss(outputs, labels):
        return cross_entropy(outputs, labels) / 0 - np.inf

    with pytest.raises(
        DivergedError, match="diverged at step 1, where the loss was nan"
    ) as error:
        fit(
            network, phase(network), toy.points(), key=KEY, settings=Settings(loss=loss)
        )
    assert error.value.step == 1
    assert error.value.kept is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused_when_they_are_taken(bad):
    network, data = toy.mlp(), toy.points()
    x = data.x.copy()
    x[40, 2] = bad
    for use in (
        lambda d: fit(network, phase(network), d, key=KEY),
        lambda d: evaluate(network, d),
        lambda d: predict(network, d),
    ):
        with pytest.raises(InputError, match="the inputs must be finite numbers"):
            use(Dataset(x, data.y))


def test_a_rate_that_is_too_high_diverges_at_a_later_step():
    network = toy.mlp()
    with pytest.raises(DivergedError) as error:
        fit(
            network,
            phase(network, sgd(1e38), 12),
            toy.points(),
            key=KEY,
            settings=Settings(batch_size=16),
        )
    assert 1 < error.value.step <= 12


def test_a_ragged_batch_is_padded_with_weight_zero():
    network = toy.mlp()
    data = toy.points(20)
    one = fit(
        network,
        phase(network, steps=1),
        data,
        key=KEY,
        settings=Settings(batch_size=20),
    ).trainable
    two = fit(
        network,
        phase(network, steps=1),
        data,
        key=KEY,
        settings=Settings(batch_size=64),
    ).trainable
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_ragged_batch_is_dropped_under_batch_statistics():
    network = toy.small_resnet("batch")
    points = list(
        epochs(
            make_plan(
                network,
                phase(network, steps=4),
                toy.images(20),
                key=KEY,
                settings=Settings(batch_size=8, norm="batch"),
            )
        )
    )
    assert [p.step for p in points] == [2, 4]
    with pytest.raises(InputError, match="batch size 64 is more than the 20 examples"):
        fit(
            network,
            phase(network),
            toy.images(20),
            key=KEY,
            settings=Settings(norm="batch"),
        )


def test_evaluation_counts_each_example_once():
    network, data = toy.mlp(), toy.points(50)
    np.testing.assert_allclose(
        predict(network, data, batch_size=16), network(data.x), rtol=1e-5
    )
    right = np.argmax(np.asarray(network(data.x)), -1) == data.y
    assert evaluate(network, data, batch_size=16) == pytest.approx(100 * right.mean())


def test_weights_that_are_not_finite_are_no_result():
    network = toy.mlp()
    with pytest.raises(DivergedError, match="diverged at step 1"):
        fit(network, phase(network, sgd(3e38, l2=10.0), 1), toy.points(), key=KEY)


def test_a_score_that_is_not_a_number_is_passed_over():
    network, scores = toy.mlp(), iter([0.0, np.nan, 50.0, 70.0, 60.0])
    result = fit(
        network,
        phase(network),
        toy.points(),
        key=KEY,
        validate=lambda net: next(scores),
        settings=Settings(batch_size=16),
    )
    assert result.epoch == 3


def test_inputs_and_targets_of_different_number_are_refused():
    network, data = toy.mlp(), toy.points(48)
    with pytest.raises(InputError, match="48 inputs and 30 targets"):
        fit(network, phase(network), data._replace(y=data.y[:30]), key=KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 0}, r"key must be one jax.random.key\(seed\), got int"),
        ({"key": jax.random.split(KEY)}, "key must be one"),
        ({"data": ([1], [0])}, "data must be a Dataset, got tuple"),
        ({"network": "resnet"}, "network must be a Network, got str"),
        (
            {"data": Dataset(np.zeros((2, 4), np.float32), np.array([0, 7]))},
            "labels are 0 to 7: the network has 3 outputs, so labels 0 to 2",
        ),
        (
            {"data": Dataset(np.zeros((2, 4), np.float32), np.array([-1, 1]))},
            "labels are -1 to 1",
        ),
    ],
)
def test_wrong_kinds_of_arguments_are_one_sentence(change, message):
    given = {"network": toy.mlp(), "data": toy.points(), "key": KEY} | change
    chosen = phase(toy.mlp())
    with pytest.raises(InputError, match=message):
        fit(given["network"], chosen, given["data"], key=given["key"])


def test_a_rate_must_be_a_number():
    with pytest.raises(
        InputError, match="learning_rate must be a positive number, got '1e-2'"
    ):
        adam("1e-2")


def test_networks_and_results_are_shown_in_a_line():
    network = toy.mlp()
    assert repr(network) == "Network(93 parameters in stages one, two, head)"
    result = fit(network, phase(network, steps=1), toy.points(), key=KEY)
    assert repr(result) == "FitResult(93 tuned parameters, kept epoch 1, no score)"

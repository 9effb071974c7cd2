"""Test-time training: what moves, when it is forgotten, and that it compiles once."""

import jax
import numpy as np
import pytest

from subtune_jax import programs, tree
from subtune_jax.errors import InputError
from subtune_jax.losses import entropy, marginal_entropy
from subtune_jax.network import forward
from subtune_jax.selection.select import select
from subtune_jax.training import test_time
from subtune_jax.training.loop import DivergedError
from subtune_jax.training.optimizers import sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.test_time import adapt_to_stream
from tests import toy

KEY = jax.random.key(0)
HEAD = select(toy.small_resnet("group"), {"g": ["head"]})


def stream(count=4, size=6):
    data = toy.points(count * size)
    return [(x, x[:1]) for x in np.split(data.x, count)]


def run(network, views, *, units=("one",), rate=0.1, loss=marginal_entropy, **settings):
    phase = Phase(select(network, {"g": list(units)}), sgd(rate, momentum=0.0), 1)
    return list(adapt_to_stream(network, phase, views, loss=loss, key=KEY, **settings))


def test_a_step_is_plain_gradient_descent_on_the_marginal_entropy():
    network, (view,) = toy.mlp(), stream(1)
    (found,) = run(network, [view], rate=0.1)

    def loss(one):
        outputs, _ = forward(
            network.stages, {**network.params, "one": one}, network.stats, view[0]
        )
        return marginal_entropy(outputs)[0]

    grads = jax.grad(loss)(network.params["one"])
    one = jax.tree.map(lambda w, g: w - 0.1 * g, network.params["one"], grads)
    want = network._replace(params={**network.params, "one": one})(view[1])
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    assert loss(one) < loss(network.params["one"])


def test_episodic_forgets_and_online_keeps():
    network, views = toy.mlp(), stream()
    base = tree.fingerprint(network.params)
    alone = [run(network, [view])[0] for view in views]
    episodic = run(network, views, episodic=True)
    online = run(network, views)
    np.testing.assert_array_equal(episodic, alone)
    np.testing.assert_array_equal(online[0], alone[0])
    assert np.abs(np.subtract(online[3], alone[3])).max() > 1e-4
    assert tree.fingerprint(network.params) == base


def test_only_the_chosen_leaf_moves():
    network, x = toy.mlp(), toy.points(6).x
    (found,) = run(network, [(x, x)], units=["head/bias"])
    moved = found - np.asarray(network(x))
    assert np.abs(moved).max() > 1e-4
    np.testing.assert_allclose(moved, moved[:1].repeat(6, axis=0), atol=1e-6)


def test_a_stream_compiles_one_step():
    traces = []
    network = toy.mlp(traces=traces)
    run(network, stream(2))
    assert len(traces) == 2  # the step and the prediction
    compiled = len(programs._programs)
    run(network, stream(5), rate=0.01)
    assert len(traces) == 4 and len(programs._programs) == compiled


def test_batch_statistics_are_those_of_the_batch_that_is_predicted():
    network = toy.small_resnet()
    x = toy.images(12).x
    phase = Phase(select(network, {"g": ["kinds:norms"]}), sgd(1e-9), 1)
    (found,) = adapt_to_stream(
        network, phase, [(x, x)], loss=entropy, key=KEY, norm="batch"
    )
    every = frozenset(stage.name for stage in network.stages)
    want, _ = forward(
        network.stages, network.params, network.stats, x, batch_stats=every
    )
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    assert np.abs(found - np.asarray(network(x))).max() > 1e-3


def test_what_cannot_be_is_refused_or_said():
    network = toy.mlp()
    frozen = jax.tree.map(lambda _: "frozen", network.params)
    every = select(network, {"g": [".*"]})
    with pytest.raises(InputError, match="phase 0 trains nothing"):
        next(
            adapt_to_stream(
                network, Phase(frozen, sgd(0.1), 1), stream(), loss=entropy, key=KEY
            )
        )
    weighted = Phase(every, sgd(0.1), 1, multipliers=lambda *args: {})
    with pytest.raises(InputError, match="a stream has none"):
        next(adapt_to_stream(network, weighted, stream(), loss=entropy, key=KEY))
    bad = [(np.full((2, 4), np.nan, np.float32), np.zeros((1, 4), np.float32))]
    with pytest.raises(DivergedError, match="diverged at step 2"):
        run(network, [*stream(1, 2), *bad])


def test_an_image_has_copies_of_its_own_by_seed_and_is_predicted_itself(monkeypatch):
    network, data, seen = toy.small_resnet("group"), toy.images(3), []

    def spy(network, phase, views, **settings):
        seen.append(list(views))
        return iter([])

    monkeypatch.setattr(test_time, "adapt_to_stream", spy)
    for seed in (0, 1, 0):
        test_time.memo(network, HEAD, data, copies=5, seed=seed)
    one, other, again = seen
    shapes = [(copies.shape, image.shape) for copies, image in one]
    assert shapes == [((5, 8, 8, 1), (1, 8, 8, 1))] * 3
    np.testing.assert_array_equal([image[0] for _, image in one], data.x)
    assert np.any(other[0][0] != one[0][0])
    np.testing.assert_array_equal(again[2][0], one[2][0])


def test_a_batch_of_tent_is_adapted_to_and_predicted(monkeypatch):
    network, data, seen = toy.small_resnet("group"), toy.images(5), []

    def spy(network, phase, views, **settings):
        seen.extend(views)
        return iter([])

    monkeypatch.setattr(test_time, "adapt_to_stream", spy)
    result = test_time.tent(network, HEAD, data, batch_size=2)
    assert [len(x) for x, _ in seen] == [2, 2, 1]
    for x, predicted in seen:
        np.testing.assert_array_equal(x, predicted)
    assert result.outputs.shape == (0, 3) and not result.diverged


@pytest.mark.slow
def test_episodic_memo_forgets_and_online_does_not():
    network, data = toy.small_resnet("group"), toy.images(3)

    def outputs(data, episodic):
        settings = {"learning_rate": 0.1, "copies": 4, "episodic": episodic}
        result = test_time.memo(network, HEAD, data, **settings)
        assert not result.diverged
        return result.outputs

    first = data.take(np.arange(1))
    episodic, online = outputs(data, True), outputs(data, False)
    np.testing.assert_allclose(episodic[:1], outputs(first, False), rtol=1e-5)
    np.testing.assert_allclose(episodic[:1], online[:1], rtol=1e-5)
    assert np.abs(episodic[1:] - online[1:]).max() > 1e-4


def test_a_stream_that_diverges_keeps_what_it_had():
    network = toy.small_resnet("group")
    every = select(network, {"g": [".*"]})
    result = test_time.memo(network, every, toy.images(3), learning_rate=1e30, copies=2)
    assert result.diverged and len(result.outputs) < 3

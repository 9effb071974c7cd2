"""Whole runs of a network that is so small that its numbers can be worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import ragged
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Network, Stage
from subtune_jax.selection.select import select
from subtune_jax.training.loop import epochs, fit
from subtune_jax.training.optimizers import adam, sgd
from subtune_jax.training.phases import Phase, Settings, check
from subtune_jax.training.plan import make_plan
from subtune_jax.training.prefix_cache import cached_stages
from subtune_jax.training.test_time import adapt_to_stream
from subtune_jax.tuning.anchor import l1_sp, l2_sp
from tests import toy

KEY = jax.random.key(0)
X = np.array([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]], np.float32)
SLOPE = X.mean(axis=0)  # [1, 1]: the gradient of the mean output


def linear(params, stats, x, *, batch_stats, key):
    return x @ params["w"], stats


def network() -> Network:
    """f(x) = x w, with w = [1, 2]."""
    params = {"one": {"w": jnp.array([[1.0], [2.0]])}}
    return Network((Stage("one", linear),), params, {"one": {}}, {})


def output(outputs, targets):
    """A loss whose gradient is the mean input, whatever the weights are."""
    return outputs[:, 0]


def half_square(outputs, targets):
    return outputs[:, 0] ** 2 / 2


def moved(rule, steps, *, loss=output, x=X, batch_size=3, **phase):
    """Returns how far w moves."""
    labels = {"one": {"w": "g"}}
    data = Dataset(x, np.zeros((len(x), 1), np.float32))
    made = fit(
        network(),
        Phase(labels, rule, steps, **phase),
        data,
        key=KEY,
        settings=Settings(loss=loss, batch_size=batch_size, cache_bytes=0),
    )
    return np.asarray(made.network.params["one"]["w"])[:, 0] - [1.0, 2.0]


def test_the_penalty_of_an_anchor_pulls_back():
    plain = sgd(0.1, momentum=0.0)
    # d <- d - r (g + s d), from 0: d_n = -(g / s) (1 - (1 - r s)^n).
    expected = -(SLOPE / 0.5) * (1 - (1 - 0.1 * 0.5) ** 4)
    np.testing.assert_allclose(moved(plain, 4, tuning=l2_sp(0.5)), expected, rtol=1e-5)
    # d <- d - r (g + s sign d): 0.1 at the first step, 0.1 (1 - 0.5) at each other.
    expected = -0.1 * SLOPE * (1 + 3 * 0.5)
    np.testing.assert_allclose(moved(plain, 4, tuning=l1_sp(0.5)), expected, rtol=1e-5)


def test_padding_rows_do_not_weigh():
    rule = sgd(0.1, momentum=0.0)
    whole, padded = (moved(rule, 1, batch_size=size) for size in (3, 8))
    np.testing.assert_allclose(padded, -0.1 * SLOPE, rtol=1e-6)
    np.testing.assert_allclose(padded, whole, rtol=1e-6)


def test_adam_is_that_of_its_paper():
    w, m, v = np.array([1.0, 2.0]), 0.0, 0.0
    for step in range(1, 6):
        g = (X @ w) @ X / len(X)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    found = moved(adam(0.1), 5, loss=half_square)
    np.testing.assert_allclose(found, w - [1.0, 2.0], rtol=1e-4)


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps():
    x = np.array([[1.0, 0.0], [5.0, 0.0], [9.0, 0.0], [1.0, 0.0]], np.float32)
    data = Dataset(x, np.zeros((4, 1), np.float32))
    phase = Phase({"one": {"w": "g"}}, sgd(1e-6), 4)
    settings = Settings(loss=output, batch_size=2, cache_bytes=0)
    run = make_plan(network(), phase, data, key=KEY, settings=settings)
    points = list(epochs(run))
    assert [p.loss for p in points] == [pytest.approx(4.0, rel=1e-4)] * 2


def test_multipliers_see_the_network_as_it_stands():
    seen = []

    def factors(live, batches, paths):
        seen.append(np.asarray(live.params["one"]["w"])[:, 0])
        return {path: 1.0 for path in paths}

    rule = sgd(0.1, momentum=0.0)
    moved(rule, 3, multipliers=factors)
    expected = [[1.0, 2.0], [0.9, 1.9], [0.8, 1.8]]
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


def test_a_ragged_batch_is_dropped_under_accumulation():
    data = Dataset(np.ones((5, 2), np.float32), np.zeros((5, 1), np.float32))

    def steps(accumulate):
        phase = Phase({"one": {"w": "g"}}, sgd(0.1), 4)
        settings = Settings(loss=output, batch_size=2, accumulate=accumulate)
        return make_plan(network(), phase, data, key=KEY, settings=settings)

    assert [steps(n).per_epoch for n in (1, 2)] == [3, 2]


def test_adaptation_takes_the_steps_of_its_phase():
    for steps in (1, 2, 3):
        phase = Phase({"one": {"w": "g"}}, sgd(0.1, momentum=0.0), steps)
        (found,) = adapt_to_stream(network(), phase, [(X, X)], loss=output, key=KEY)
        w = np.array([1.0, 2.0]) - 0.1 * steps * SLOPE
        np.testing.assert_allclose(found[:, 0], X @ w, rtol=1e-5)


def test_a_phase_of_one_epoch_computes_no_prefix(monkeypatch):
    asked = []

    def counted(*args):
        asked.append(1)
        return 0

    monkeypatch.setattr("subtune_jax.training.loop.cached_stages", counted)
    base = toy.mlp()
    labels = select(base, {"g": ["head"]})
    for steps, times in ((3, 0), (4, 1)):
        fit(
            base,
            Phase(labels, sgd(0.1), steps),
            toy.points(),
            key=KEY,
            settings=Settings(batch_size=16),
        )
        assert len(asked) == times


def test_the_bytes_of_texts_are_those_of_their_tokens():
    base, data = toy.transformer("bert")
    lengths = [8, 4, 4]
    x = {
        name: ragged([row[:n] for row, n in zip(rows, lengths, strict=False)], (8,))
        for name, rows in data.x.items()
    }
    data = Dataset(x, data.y[:3])
    phase = Phase(select(base, {"g": ["layer_1"]}), sgd(0.1), 9)
    (program,) = check(base, [phase], Settings(cross_entropy))
    # 16 tokens of 16 float32 numbers and a mask of a byte.
    budget = 16 * (16 * 4 + 1)
    assert cached_stages(base, program, data, budget) == 2  # embeddings and layer_0
    assert cached_stages(base, program, data, budget - 1) == 0

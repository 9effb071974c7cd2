"""Lines and planes through networks, statistics refitted, drift and CKA."""

from itertools import permutations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.data.batches import in_order
from subtune_jax.errors import InputError
from subtune_jax.evaluation import (
    body,
    distances,
    gradient_norms,
    line,
    linear_cka,
    plane,
    refit_statistics,
    surface,
)
from subtune_jax.head import replace_head
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Network, Stage, forward
from tests import toy


def identity(params, stats, x, *, batch_stats, key):
    """Returns the inputs: what is tested here are parameters."""
    del params, batch_stats, key
    return x, stats


def at(*values) -> Network:
    """Returns a network with one leaf."""
    leaf = jnp.array(values, jnp.float32)
    return Network((Stage("a", identity),), {"a": {"w": leaf}}, {"a": {}}, {})


def leaf(network):
    return np.asarray(network.params["a"]["w"])


def test_a_plane_has_the_distances_of_its_networks():
    origin, one, other = at(1, 1, 0), at(4, 1, 0), at(2, 5, 0)
    flat = plane(origin, one, other)
    np.testing.assert_allclose(flat.corners, [(0, 0), (3, 0), (1, 4)])
    for corner, network in zip(flat.corners, (origin, one, other), strict=True):
        np.testing.assert_allclose(leaf(flat.at(*corner)), leaf(network), atol=1e-6)
    np.testing.assert_allclose(leaf(flat.at(0, 1)), [1, 2, 0], atol=1e-6)
    values = surface(flat, lambda n: leaf(n).sum(), [0, 3], [0, 1, 2])
    np.testing.assert_allclose(values, [[2, 5], [3, 6], [4, 7]], atol=1e-5)
    with pytest.raises(InputError, match="lie on one line"):
        plane(origin, one, at(7, 1, 0))
    with pytest.raises(InputError, match="same stages, leaves and shapes"):
        plane(origin, one, at(1, 2))
    heads = (replace_head(toy.mlp(), 3, normalize=mode) for mode in (None, "batch"))
    with pytest.raises(InputError, match="one head by evaluation.with_head"):
        list(line(*heads, [0.5]))


def test_a_line_goes_from_one_to_the_other():
    shares, networks = zip(*line(at(0, 2), at(4, 0), [0, 0.25, 1]), strict=True)
    assert shares == (0, 0.25, 1)
    np.testing.assert_allclose([leaf(n) for n in networks], [[0, 2], [1, 1.5], [4, 0]])


def test_refitted_statistics_are_means_over_the_whole_batches():
    network, data = replace_head(toy.mlp(), 3, normalize="batch"), toy.points(50)
    norm = refit_statistics(network, data, batch_size=16).stats["head"]["norm"]
    features = np.asarray(body(network)(data.x[:48])).reshape(3, 16, 6)
    expected = {"mean": features.mean(axis=1), "var": features.var(axis=1)}
    for name, value in norm.items():
        np.testing.assert_allclose(value, expected[name].mean(axis=0), rtol=1e-4)
    with pytest.raises(InputError, match="a whole batch of 256"):
        refit_statistics(network, data)
    assert refit_statistics(toy.mlp(), data).stats == toy.mlp().stats


def test_large_statistics_are_refitted_as_small_ones_are():
    network = replace_head(toy.mlp(), 3, normalize="batch")
    body_params = {
        **network.params["two"],
        "kernel": network.params["two"]["kernel"] * 0,
    }
    data = toy.points(48)
    wide = network._replace(
        stages=(*network.stages[:1], Stage("two", scaled), network.stages[2]),
        params={**network.params, "two": body_params},
    )
    norm = refit_statistics(wide, data, batch_size=16).stats["head"]["norm"]
    features = np.asarray(body(wide)(data.x)).reshape(3, 16, 6)
    assert features.var(axis=1).mean() > 1e7
    np.testing.assert_allclose(
        norm["var"], features.var(axis=1).mean(axis=0), rtol=1e-3
    )


def scaled(params, stats, x, *, batch_stats, key):
    """Returns features of a large scale."""
    del params, batch_stats, key
    return 1e4 * x, stats


def test_refitted_statistics_do_not_depend_on_the_stored_ones():
    network, data = toy.small_resnet("batch"), toy.images(24)
    once = refit_statistics(network, data, batch_size=8)
    again = refit_statistics(once, data, batch_size=8)
    chex.assert_trees_all_close(once.stats, again.stats, rtol=1e-4, atol=1e-5)
    one, other = (jax.tree.leaves(n.stats) for n in (network, once))
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(one, other, strict=True))


def test_drift_is_by_stage_and_a_head_of_another_size_has_none():
    base = toy.mlp()
    moved = jax.tree.map(lambda x: x, base.params)
    moved["one"]["bias"] = moved["one"]["bias"] + 2.0
    found = distances(base._replace(params=moved), base)
    assert found == {"one": pytest.approx(2 * np.sqrt(6)), "two": 0.0, "head": 0.0}
    batch = next(iter(in_order(toy.points(), 48)))
    norms = gradient_norms(base, batch)

    def loss(params):
        return cross_entropy(
            forward(base.stages, params, base.stats, batch.x)[0], batch.y
        ).mean()

    gradient = jax.grad(loss)(base.params)
    for stage, norm in norms.items():
        leaves = jax.tree.leaves(gradient[stage])
        expected = np.sqrt(sum(np.square(g).sum() for g in leaves))
        assert norm == pytest.approx(float(expected), rel=1e-5)


def test_cka_is_blind_to_rotation_and_scale():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    wide = [linear_cka(*rng.normal(size=(2, 64, 2000))) for _ in range(5)]
    assert np.abs(wide).max() < 0.1  # independent: the biased estimator gives 0.97
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))

    def hsic(k, l):  # noqa: E741
        """The U-statistic, over all quadruples of different examples."""
        every = permutations(range(6), 4)
        return np.mean(
            [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in every]
        )

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(x, y) == pytest.approx(expected)
    x = rng.normal(size=(50, 4))
    with pytest.raises(InputError, match="CKA needs four examples or more, got 3"):
        linear_cka(x[:3], x[:3])
    with pytest.raises(InputError, match="of the same examples"):
        linear_cka(x, x[:20])
    with pytest.raises(InputError, match="have no CKA"):
        linear_cka(x, np.ones((50, 3)))

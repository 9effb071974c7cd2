"""Probes and lines on networks with statistics, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

import subtune_jax as st
from subtune_jax import evaluation
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Pixels, Source
from tests import toy


def test_a_kept_head_brings_the_names_of_its_outputs():
    source = toy.mlp()._replace(source=Source(classes=("c", "a", "b")))
    target = st.replace_head(source, 2, jax.random.key(1))
    target = target._replace(source=Source(reads=Pixels(1), classes=("x", "y")))
    kept = evaluation.with_head(target, source)
    assert kept.source == source.source
    np.testing.assert_array_equal(
        kept.params["head"]["kernel"], source.params["head"]["kernel"]
    )


def test_a_refitted_head_is_at_the_minimum_of_its_loss():
    """d/dW [mean CE + l2 / 2 ||W||^2] = 0, in the paper's features at mean 0, variance 1."""
    network, data, l2 = toy.mlp(), toy.points(60), 0.1
    fitted = evaluation.refit_head(network, data, 3, l2=l2, iterations=500)
    head, norm = fitted.params["head"], fitted.stats["head"]["norm"]
    x = st.predict(evaluation.body(network), data)
    np.testing.assert_allclose(norm["mean"], x.mean(axis=0), rtol=1e-4, atol=1e-6)
    z = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)

    def loss(kernel):
        return cross_entropy(
            z @ kernel + head["bias"][None], jnp.asarray(data.y)
        ).mean()

    slope = jax.grad(loss)(head["kernel"]) + l2 * head["kernel"]
    assert np.abs(head["kernel"]).max() > 0.1 and np.abs(slope).max() < 1e-3


def test_statistics_lie_on_the_line_too():
    one = toy.small_resnet()
    other = one._replace(
        params=jax.tree.map(lambda x: x + 2, one.params),
        stats=jax.tree.map(lambda x: x + 4, one.stats),
    )
    quarter, three = (n for _, n in evaluation.line(one, other, [0.25, 0.75]))
    for network, share in ((quarter, 0.25), (three, 0.75)):
        for own, start, step in (
            (network.params, one.params, 2 * share),
            (network.stats, one.stats, 4 * share),
        ):
            for a, b in zip(*map(jax.tree.leaves, (own, start)), strict=True):
                np.testing.assert_allclose(a, b + step, rtol=1e-5)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.losses import entropy, marginal_entropy


def test_entropy_of_literal_distributions():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]))
    want = [1.5 * np.log(2), np.log(3)]
    np.testing.assert_allclose(entropy(logits), want, rtol=1e-6)


def test_marginal_entropy_is_that_of_the_mean_probabilities():
    logits = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]])) + 7.0
    np.testing.assert_allclose(marginal_entropy(logits), [np.log(2)] * 2, rtol=1e-6)
    assert entropy(logits)[0] == pytest.approx(0.325083, rel=1e-5)


def test_certain_outputs_have_entropy_zero_and_finite_gradients():
    logits = jnp.array([[300.0, 0.0, 0.0], [300.0, -jnp.inf, 0.0]])
    for loss in (entropy, marginal_entropy):
        np.testing.assert_allclose(loss(logits), [0.0, 0.0], atol=1e-6)
        grads = jax.grad(lambda z, loss=loss: loss(z).sum())(logits[:1])
        assert np.isfinite(grads).all()

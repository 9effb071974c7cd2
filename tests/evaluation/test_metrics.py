import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.evaluation.metrics import (
    accuracy,
    cross_entropy,
    squared_error,
    worst_group_accuracy,
)

LOGITS = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
LABELS = np.array([0, 1, 1, 1])


def test_accuracy_in_percent_and_of_the_worst_group():
    assert accuracy(LOGITS, LABELS) == 75.0
    assert worst_group_accuracy(np.array([0, 1, 0, 1]))(LOGITS, LABELS) == 50.0


def test_cross_entropy_of_uniform_logits_is_log_k():
    losses = cross_entropy(jnp.zeros((3, 10)), jnp.array([0, 4, 9]))
    np.testing.assert_allclose(losses, np.log(10), rtol=1e-6)


def test_squared_error_refuses_silent_broadcasting():
    np.testing.assert_allclose(
        squared_error(jnp.ones((2, 2)), jnp.zeros((2, 2))), [1, 1]
    )
    with pytest.raises(ValueError, match="differ in shape"):
        squared_error(jnp.ones((2, 1)), jnp.zeros((2,)))

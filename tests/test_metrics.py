import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy, squared_error
from subtune_jax.metrics import METRICS, accuracy, span_accuracy, worst_group_accuracy

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
    with pytest.raises(InputError, match="differ in shape"):
        squared_error(jnp.ones((2, 1)), jnp.zeros((2,)))


@pytest.mark.parametrize("labels", [LABELS[:, None], LABELS[:3], np.array(0)])
def test_labels_that_would_broadcast_have_no_score(labels):
    for name in ("accuracy", "f1", "matthews"):
        with pytest.raises(
            InputError, match=r"the labels have shape .*: expected \[4\]"
        ):
            METRICS[name](LOGITS, labels)
    with pytest.raises(InputError, match="the labels have shape"):
        worst_group_accuracy(np.zeros(4))(LOGITS, labels)
    with pytest.raises(InputError, match=r"\[4\], and the targets \[3\]"):
        METRICS["spearman"](LOGITS[:, 0], LABELS[:3])
    with pytest.raises(InputError, match="labels have shape"):
        span_accuracy(np.zeros((4, 5, 2)), LABELS)


def test_outputs_that_are_no_numbers_have_no_score():
    lost = np.where(np.arange(8).reshape(4, 2) == 0, np.nan, LOGITS)
    for name in ("accuracy", "f1", "matthews"):
        assert np.isnan(METRICS[name](lost, LABELS))
    for name in ("pearson", "spearman"):
        assert np.isnan(METRICS[name](lost[:, 0], LABELS))
    assert np.isnan(worst_group_accuracy(np.array([0, 1, 0, 1]))(lost, LABELS))
    assert np.isnan(span_accuracy(np.full((4, 5, 2), np.nan), np.zeros((4, 2), int)))


def test_f1_is_of_class_one():
    called = np.eye(2)[
        [1, 0, 0, 0]
    ]  # of two ones, one is found; nothing else is called 1
    assert METRICS["f1"](called, np.array([1, 1, 0, 0])) == pytest.approx(200 / 3)

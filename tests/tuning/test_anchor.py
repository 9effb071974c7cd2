from functools import partial

import jax
import jax.numpy as jnp
import pytest

from subtune_jax.errors import InputError
from subtune_jax.tuning.anchor import l1_sp, l2_sp

BASE = {
    "body": {"w": jnp.array([1.0, 2.0]), "b": jnp.zeros(1)},
    "head": {"w": jnp.ones(2)},
}
TUNED = {
    "body": {"w": jnp.array([1.5, 0.0]), "b": None},
    "head": {"w": jnp.full(2, 9.0)},
}


LABELS = {"body": {"w": "g", "b": "frozen"}, "head": {"w": "head"}}


def penalty(tuning, tuned):
    fixed = tuning.init(BASE, LABELS, None).fixed
    return tuning.penalty(tuned, fixed, BASE)


def test_penalties_of_a_literal_tree_leave_out_the_head():
    assert float(penalty(l2_sp(0.5), TUNED)) == pytest.approx(0.25 * (0.25 + 4.0))
    assert float(penalty(l1_sp(0.5), TUNED)) == pytest.approx(0.5 * 2.5)


def test_gradients_are_strength_times_distance_and_strength_times_sign():
    l2 = jax.grad(lambda t: penalty(l2_sp(0.5), t))(TUNED)["body"]["w"]
    l1 = jax.grad(lambda t: penalty(l1_sp(0.5), t))(TUNED)["body"]["w"]
    assert l2.tolist() == [0.25, -1.0]
    assert l1.tolist() == [0.5, -0.5]
    at_rest = TUNED | {"body": {"w": BASE["body"]["w"], "b": None}}
    for tuning in (l1_sp(0.5), l2_sp(0.5)):
        slope = jax.grad(partial(penalty, tuning))(at_rest)["body"]["w"]
        assert slope.tolist() == [0.0, 0.0]


def test_a_strength_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="strength must be a positive number, got -1"):
        l2_sp(-1)

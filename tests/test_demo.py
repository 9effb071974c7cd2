"""The demo networks: pretrained once, and of use to the tasks beside them."""

import numpy as np
import pytest

from subtune_jax.data.shifts import shift
from subtune_jax.data.task import test_once
from subtune_jax.demo import digits, docstrings
from subtune_jax.training.predict import predict

pytestmark = pytest.mark.slow


def test_digits_are_pretrained_on_the_other_half():
    task = digits.digits_task("none", 0)
    scores = test_once(lambda data: predict(task.network, data), task)
    assert scores["accuracy"] > 60  # after the tests' short pretraining; chance is 10
    halves = digits.digits_halves()
    one, other = ({x.tobytes() for x in half.x} for half in halves.values())
    assert len(one | other) > 1780 and len(one & other) < 5  # a few digits are twins
    assert {x.tobytes() for x in task.train.x} <= other


def test_the_second_network_is_read_from_the_cache(monkeypatch):
    first = digits.digits_network(shift("none"))
    monkeypatch.setattr(digits, "fit", None)  # nothing is trained
    again = digits.digits_network(shift("none"))
    kernel = first.params["head"]["kernel"], again.params["head"]["kernel"]
    np.testing.assert_array_equal(*kernel)


def test_docstrings_have_a_fresh_head_and_balanced_parts():
    task = docstrings.docstrings_task(seed=1)
    assert np.bincount(task.train.y).tolist() == [25, 25, 25, 25]
    assert not np.any(task.network.params["head"]["kernel"])

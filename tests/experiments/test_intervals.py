"""Bootstrap intervals against closed forms."""

import numpy as np
import pytest

from experiments.common.report.intervals import paired_interval
from subtune_jax.metrics import accuracy

LABELS = np.zeros(400, int)
RIGHT, WRONG = np.eye(2)[LABELS], np.eye(2)[1 - LABELS]


def test_equal_methods_do_not_differ_and_opposite_ones_by_all():
    same = paired_interval(accuracy, [RIGHT] * 3, [RIGHT] * 3, [LABELS] * 3, draws=20)
    assert same == (0.0, 0.0, 0.0)
    all_ = paired_interval(accuracy, [RIGHT] * 3, [WRONG] * 3, [LABELS] * 3, draws=20)
    assert all_ == (100.0, 100.0, 100.0)


def test_one_seed_has_the_interval_of_a_paired_proportion():
    """A tenth of 400 examples differ: 10 plus or minus 1.96 * 100 sqrt(0.1 * 0.9 / 400)."""
    other = np.where(np.arange(400)[:, None] < 40, WRONG, RIGHT)
    mean, low, high = paired_interval(accuracy, [RIGHT], [other], [LABELS], draws=2000)
    assert mean == pytest.approx(10.0)
    assert (low, high) == pytest.approx((10 - 2.94, 10 + 2.94), abs=0.5)


def test_seeds_that_disagree_widen_it():
    """Three seeds, differences of 100, 0 and 0: means of three drawn seeds, 0 to 100."""
    interval = paired_interval(
        accuracy, [RIGHT] * 3, [WRONG, RIGHT, RIGHT], [LABELS] * 3, draws=500
    )
    assert interval.mean == pytest.approx(100 / 3)
    assert interval.low == 0.0
    assert interval.high in (pytest.approx(200 / 3), pytest.approx(100.0))

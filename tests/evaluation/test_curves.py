"""Numbers of curves that a reader can work out."""

import pytest

from subtune_jax.errors import InputError
from subtune_jax.evaluation import area, at_step, first_reaching, forgotten
from subtune_jax.training.watch import Record

RECORDS = [
    Record(step, {"target": target, "source": source})
    for step, target, source in [(0, 10, 90), (2, 30, 80), (10, 70, 40)]
]


def test_the_area_is_that_under_straight_lines():
    assert area(RECORDS, "target", 2) == 20
    assert area(RECORDS, "target", 10) == (20 * 2 + 50 * 8) / 10
    assert area(RECORDS, "target", 6) == (20 * 2 + 40 * 4) / 6


def test_the_source_drop_is_read_where_the_target_is_first_reached():
    assert first_reaching(RECORDS, "target", 15) == 2
    assert forgotten(RECORDS, 15) == 10
    assert forgotten(RECORDS, 31) == 50
    assert forgotten(RECORDS, 71) is None
    assert at_step(RECORDS, "source", 6) == 60


def test_what_records_do_not_have_is_said():
    with pytest.raises(InputError, match="'targt'.*'target'"):
        area(RECORDS, "targt", 2)
    with pytest.raises(InputError, match="end at step 10, before 11"):
        area(RECORDS, "target", 11)
    with pytest.raises(InputError, match="of steps 0 to 10, not of 12"):
        at_step(RECORDS, "target", 12)
    with pytest.raises(InputError, match="no records"):
        area([], "target", 2)

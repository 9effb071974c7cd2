"""Places come back, the code is canonical, and its size is that of Rice's code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from subtune_jax.deltas import codec

places = some.sets(some.integers(0, 2**40), max_size=60).map(sorted)


@given(places)
def test_places_come_back_and_have_one_code(values):
    coded = codec.encode(np.array(values, np.int64))
    assert codec.decode(coded).tolist() == values
    again = codec.encode(codec.decode(coded))
    assert (again.count, again.low_bits) == (coded.count, coded.low_bits)
    np.testing.assert_array_equal(again.unary, coded.unary)
    np.testing.assert_array_equal(again.low, coded.low)


def test_a_code_by_hand():
    # Gaps 3, 0, 5 with r = 1: 1|1, 0|0, 10|1 -> unary 10 0 110, low 1 0 1.
    coded = codec.encode(np.array([3, 4, 10]))
    assert coded.count == 3 and coded.low_bits == 1
    assert np.unpackbits(coded.unary, bitorder="little").tolist() == [
        1,
        0,
        0,
        1,
        1,
        0,
        0,
        0,
    ]
    assert np.unpackbits(coded.low, bitorder="little").tolist() == [
        1,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
    ]


def test_of_equal_codes_the_one_with_fewer_low_bits_counts():
    """A gap of 1 is `10` and `0|1`: two bits either way."""
    assert codec.encode(np.array([1])).low_bits == 0


@given(some.lists(some.integers(0, 5000), min_size=1, max_size=80))
def test_no_other_r_takes_fewer_bits(gaps):
    gaps = np.array(gaps)
    coded = codec.encode(np.cumsum(gaps + 1) - 1)

    def bits(r):
        return int((gaps >> r).sum()) + len(gaps) * (1 + r)

    assert bits(coded.low_bits) == min(map(bits, range(20)))


@pytest.mark.parametrize(("share", "most"), [(0.005, 1.2), (0.05, 0.9)])
def test_random_places_take_the_bytes_that_were_computed(share, most):
    # 3.2 and 2.9 bytes a value with two-byte values; the entropy is 1.135 and 0.716.
    chosen = np.flatnonzero(np.random.default_rng(0).random(4_000_000) < share)
    coded = codec.encode(chosen)
    each = (coded.unary.nbytes + coded.low.nbytes) / len(chosen)
    p = len(chosen) / 4_000_000
    entropy = -(np.log2(p) + (1 - p) / p * np.log2(1 - p)) / 8
    assert entropy < each < most


def test_streams_that_are_too_short():
    coded = codec.encode(np.arange(0, 900, 9))
    for short in (
        coded._replace(unary=coded.unary[:-2]),
        coded._replace(low=coded.low[:-2]),
        coded._replace(count=coded.count + 20),
    ):
        with pytest.raises(ValueError, match="too short"):
            codec.decode(short)

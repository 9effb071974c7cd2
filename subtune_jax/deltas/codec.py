"""Sorted places among many, as bits: Rice codes of the gaps between them.

A gap g is the number of places that are skipped. Its code is g >> r in unary (that many
ones and a zero) and then its r lowest bits. The unary parts of all gaps form one stream
and the low bits another: the size is the same, and both are written and read by whole
arrays, without a loop over places. Imports NumPy alone.
"""

from typing import NamedTuple

import numpy as np


class Coded(NamedTuple):
    """Places as two streams of bits, each filled with zeros to whole bytes.

    count: the number of places. low_bits: r, the bits of a gap in the second stream.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count
    low_bits: int
    unary: np.ndarray  # uint8
    low: np.ndarray  # uint8


def encode(places: np.ndarray) -> Coded:
    """Returns the code of places, int[n], strictly rising from 0 up.

    The same places have one code: r is the one with the fewest bits, the lowest of equals.
    """
    places = np.asarray(places, np.int64)
    gaps = np.diff(places, prepend=-1) - 1
    r = _low_bits(gaps)
    ends = np.cumsum((gaps >> r) + 1) - 1  # where the zero of each unary part stands
    bits = np.ones(ends[-1] + 1 if len(ends) else 0, np.uint8)
    bits[ends] = 0
    rest = (gaps[:, None] >> np.arange(r)) & 1
    low = np.packbits(rest.astype(np.uint8).ravel(), bitorder="little")
    return Coded(len(places), r, np.packbits(bits, bitorder="little"), low)


def decode(coded: Coded) -> np.ndarray:
    """Returns the places, int64[n]; raises `ValueError` for streams that are too short."""
    count, r = coded.count, coded.low_bits
    if not 0 <= r < 63:
        raise ValueError(f"gaps of {r} low bits")
    bits = np.unpackbits(coded.unary, bitorder="little")
    ends = np.flatnonzero(bits == 0)[:count]
    rest = np.unpackbits(coded.low, bitorder="little")[: count * r]
    if len(ends) < count or len(rest) < count * r:
        raise ValueError("the stream of places is too short")
    high = np.diff(ends, prepend=-1) - 1
    low = rest.reshape(count, r) @ (1 << np.arange(r, dtype=np.int64))
    return np.cumsum((high << r) + low + 1) - 1


def _low_bits(gaps: np.ndarray) -> int:
    """Returns the r with the fewest bits, sum(g >> r) + n (1 + r)."""
    if not len(gaps):
        return 0
    # The best r is near log2 of the mean gap; three around it are tried.
    near = max(int(np.log2(gaps.mean() + 1)), 0)
    tried = range(max(near - 2, 0), near + 2)
    bits = {r: int((gaps >> r).sum()) + len(gaps) * (1 + r) for r in tried}
    return min(bits, key=lambda r: (bits[r], r))

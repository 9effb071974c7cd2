"""How large the weights of a unit are."""

from typing import NamedTuple

import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.network import Network
from subtune_jax.selection.select import match


class Statistics(NamedTuple):
    """Magnitudes of n weights w, all as floats.

    l2 = ||w||_2 grows with n; rms = ||w||_2 / sqrt(n) and mean = mean |w| do not.
    kurtosis = E[(w - E w)^4] / Var(w)^2: 3 for a normal distribution, more with
    outliers, NaN for weights that are all the same.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count
    l2: float
    rms: float
    mean: float
    max: float
    kurtosis: float


def statistics(weights: np.ndarray) -> Statistics:
    """Returns the statistics of weights of any shape; raises `InputError` for none."""
    w = np.asarray(weights, np.float64).ravel()
    if not w.size:
        raise InputError("there are no weights to describe")
    centred, l2 = w - w.mean(), float(np.linalg.norm(w))
    spread = float(np.mean(centred**2))
    kurtosis = float(np.mean(centred**4)) / spread**2 if spread else float("nan")
    size = np.abs(w)
    rms = l2 / np.sqrt(w.size)
    return Statistics(
        w.size, l2, float(rms), float(size.mean()), float(size.max()), kurtosis
    )


def unit_weights(network: Network, entry: str, part: str | None = None) -> np.ndarray:
    """Returns the weights that a selector matches, in one row.

    part: only the leaves of that name (`kernel`, `scale`, `bias`, `embedding`), which
    may be none. Raises `InputError` as `select`.
    """
    found, leaves = match(network, entry), tree.flatten(network.params)
    names = [n for n in found if part in (None, n.rpartition("/")[2])]
    return np.concatenate([np.zeros(0), *(np.ravel(leaves[n]) for n in names)])

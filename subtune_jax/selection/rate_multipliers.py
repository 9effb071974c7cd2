"""Auto-RGN and Auto-SNR: learning-rate multipliers from gradient scores.

Each returns `multipliers(network, batches, paths) -> {path: factor}` for the trainable
paths, to be called at the start of every epoch (`Phase.multipliers`). Scores are
normalized over these paths (or their units) alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice

import numpy as np

from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.network import Network
from subtune_jax.selection.candidates import require_finite_scores
from subtune_jax.selection.scores import (
    SNR_MODES,
    Score,
    relative_gradient_norm,
    signal_to_noise,
    unit_groups,
)

NORMALIZATIONS = ("max", "minmax", "none")
Multipliers = Callable[[Network, Iterable, Sequence[str]], Mapping[str, float]]


def auto_rgn(
    loss: Callable,
    *,
    table: str | None = None,
    normalization: str = "max",
    batches: int = 5,
) -> Multipliers:
    """Returns the multipliers w_i = RGN_i / max_j RGN_j, of tensors or units.

    RGN over the first `batches` batches of the epoch (5: official code). table: `None`
    for a multiplier per tensor (the paper), or a unit table, whose units share one;
    leaves in no unit get 0. normalization: `max`, `minmax` ((r - min) / (max - min))
    or `none`. Lee et al. 2023; norms are excluded there by not selecting them.
    Raises `InputError` for an unknown normalization, and the multipliers for a score that is
    NaN.
    """
    _check(normalization, batches)
    score = partial(relative_gradient_norm, loss=loss)
    return partial(_multipliers, score, table, normalization, batches)


def auto_snr(
    loss: Callable,
    *,
    threshold: float,
    mode: str = "per_example",
    table: str | None = None,
    normalization: str = "minmax",
    batches: int = 5,
) -> Multipliers:
    """Returns the multipliers 1 where SNR_i >= threshold, else 0.

    The stated form normalizes SNR to 0..1 over tensors (`minmax`) first, and its
    threshold is chosen on validation data; the official code is `mode="official"`,
    `normalization="none"`, `threshold=0.95` (Lee et al. 2023). Raises
    `InputError` for an unknown mode or normalization.
    """
    _check(normalization, batches)
    if mode not in SNR_MODES:
        raise unknown("SNR mode", mode, SNR_MODES)
    score = partial(signal_to_noise, loss=loss, mode=mode)

    def multipliers(
        network: Network, stream: Iterable, paths: Sequence[str]
    ) -> Mapping[str, float]:
        found = _multipliers(
            score, table, normalization, batches, network, stream, paths
        )
        return {path: float(value >= threshold) for path, value in found.items()}

    return multipliers


def _multipliers(
    score: Callable,
    table: str | None,
    normalization: str,
    batches: int,
    network: Network,
    stream: Iterable,
    paths: Sequence[str],
) -> Mapping[str, float]:
    groups = _groups(network, table, paths)
    found = score(network, islice(stream, batches), groups=groups)
    require_finite_scores({n: v for n, v in found.items() if not np.isinf(v)})
    scaled = normalized(found, normalization)
    units = {path: unit for unit, found in groups.items() for path in found}
    return {path: scaled.get(units.get(path, ""), 0.0) for path in paths}


def _groups(
    network: Network, table: str | None, paths: Sequence[str]
) -> dict[str, list[str]]:
    """Returns `{unit: its trainable paths}`; raises `InputError` where a path is in two."""
    if table is None:
        return {path: [path] for path in paths}
    held = {
        unit: [path for path in inside if path in set(paths)]
        for unit, inside in unit_groups(network, table).items()
    }
    owner: dict[str, str] = {}
    for unit, inside in held.items():
        for path in inside:
            if path in owner:
                raise InputError(
                    f"units {owner[path]!r} and {unit!r} of table {table!r} share "
                    f"{path!r}, which can have one multiplier: choose a table whose "
                    "units do not overlap"
                )
            owner[path] = unit
    return {unit: inside for unit, inside in held.items() if inside}


def normalized(score: Score, how: str) -> Score:
    """Returns r / max r (`max`), (r - min) / (max - min) (`minmax`), or r (`none`).

    Where that has no value (all are 0, or under `minmax` equal) all are 1. A tensor that
    is 0 has an infinite RGN and counts as the highest finite one: at a factor of 0 it
    would stay 0 for ever.
    """
    finite = [value for value in score.values() if np.isfinite(value)]
    low, high = (min(finite), max(finite)) if any(finite) else (0.0, 1.0)
    score = {name: min(value, high) for name, value in score.items()}
    if how == "none":
        return score
    if not any(score.values()) or (how == "minmax" and high == low):
        return {name: 1.0 for name in score}
    base = low if how == "minmax" else 0.0
    return {name: (value - base) / (high - base) for name, value in score.items()}


def _check(normalization: str, batches: int) -> None:
    require_positive(batches=batches)
    if normalization not in NORMALIZATIONS:
        raise unknown("normalization", normalization, NORMALIZATIONS)

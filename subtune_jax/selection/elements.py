"""Which elements of the selected leaves to tune: `{path: indices}` for `fixed_mask`.

After the high-magnitude weights of AkbarTajari et al. 2022; how the paper chooses them was
not read, and is reconstructed here (see docs/methods.md).
"""

from collections.abc import Callable, Mapping

import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.labels import FROZEN
from subtune_jax.network import Labels, Params

Elements = dict[str, np.ndarray]  # {path: sorted int[k]}
SCOPES = ("each", "all")


def magnitudes(params: Params, labels: Labels, group: str) -> Elements:
    """Returns |w| of the leaves of a group; raises `InputError` if it has none."""
    return of_group(params, labels, group, np.abs)


def of_group(
    params: Params, labels: Labels, group: str, f: Callable = np.asarray
) -> Elements:
    """Returns f(leaf) of a group's leaves as flat arrays, by path.

    `params` may be any tree like the parameters, as the squares of gradients
    (`scores.fisher_elements`). Raises `InputError` for a group without leaves.
    """
    leaves = tree.flatten(params)
    groups = {path: label for path, label in tree.flatten(labels).items()}
    chosen = sorted(set(groups.values()) - {FROZEN})
    if group not in chosen:
        raise unknown("group", group, chosen)
    return {
        path: f(np.asarray(leaves[path], np.float32)).ravel()
        for path, label in groups.items()
        if label == group
    }


def highest(values: Mapping[str, np.ndarray], n: int, scope: str = "each") -> Elements:
    """Returns the n elements of the highest values, in each leaf or in all together.

    Of equal values the first. Raises `InputError` when there are fewer than n.
    """
    return _first(values, n, scope, lambda v: -v)


def lowest(values: Mapping[str, np.ndarray], n: int, scope: str = "each") -> Elements:
    """Returns the n elements of the lowest values; otherwise as `highest`."""
    return _first(values, n, scope, lambda v: v)


def random(
    values: Mapping[str, np.ndarray], n: int, seed: int, scope: str = "each"
) -> Elements:
    """Returns n elements drawn at random; otherwise as `highest`."""
    rng = np.random.default_rng(seed)
    drawn = {path: rng.random(v.size) for path, v in values.items()}
    return _first(drawn, n, scope, lambda v: v)


def beyond(values: Mapping[str, np.ndarray], sigmas: float) -> Elements:
    """Returns the elements above mean + sigmas * std of their leaf's values.

    Kovaleva et al. 2021 take 3. Leaves without one
    are left out; raises `InputError` where no leaf has one.
    """
    require_positive(sigmas=sigmas)
    found = {
        path: np.flatnonzero(v > v.mean() + sigmas * v.std())
        for path, v in values.items()
    }
    made = {path: index for path, index in found.items() if len(index)}
    if not made:
        raise InputError(f"no element is beyond {sigmas} standard deviations")
    return made


def count(elements: Mapping[str, np.ndarray]) -> int:
    """Returns how many elements are chosen."""
    return sum(len(index) for index in elements.values())


def _first(values: Mapping[str, np.ndarray], n: int, scope: str, key) -> Elements:
    require_positive(n=n)
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    if scope == "each":
        for path, v in values.items():
            _require_enough(n, v.size, path)
        return {
            path: np.sort(np.argsort(key(v), kind="stable")[:n])
            for path, v in values.items()
        }
    _require_enough(n, sum(v.size for v in values.values()), "the selection")
    parts = tree.lowest({path: key(v) for path, v in values.items()}, n)
    return {path: index for path, index in parts.items() if len(index)}


def _require_enough(n: int, size: int, name: str) -> None:
    if n > size:
        raise InputError(f"{n} elements are asked of {name}, which has {size}")

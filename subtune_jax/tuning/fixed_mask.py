"""Fixed-mask tuning: chosen elements of a leaf train, the others stay.

Of a leaf with k chosen elements, k values train, with k moments: nothing dense is kept.
While a step runs, the whole leaf and its gradient are there, as in any other tuning.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.network import FROZEN, Labels, Params
from subtune_jax.tuning.method import Tuning
from subtune_jax.tuning.subset import penalty

Indices = Mapping[str, np.ndarray]  # {path: int[k], places in the flattened leaf}


def fixed_mask(indices: Indices) -> Tuning:
    """Returns the tuning w <- w_0 with w[indices] = v, v trained from w_0[indices].

    Trainable leaves without an entry (a head) train as a whole; a leaf whose entry is
    empty rests, and so do indices of frozen leaves. Indices come from
    `selection.elements`. Two calls give two tunings, each with programs of its own.
    Raises `InputError` for indices that are no distinct integers from 0 up, and in
    `init` for a path that is not there or an index past its leaf.
    """
    known = {path: _checked(path, index) for path, index in indices.items()}

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Params:
        del key
        _require_inside(known, params)

        def part(path: str, leaf: jax.Array, label: str):
            rests = path in known and not len(known[path])
            if label == FROZEN or rests:
                return None
            return jnp.copy(leaf if path not in known else jnp.ravel(leaf)[known[path]])

        return tree.map_with_path(part, params, labels)

    def materialize(
        trainable: Params, params: Params, key: jax.Array | None = None
    ) -> Params:
        del key
        values = tree.flatten(trainable)

        def whole(path: str, leaf: jax.Array) -> jax.Array:
            if path not in values:
                return leaf
            if path not in known:
                return values[path]
            flat = jnp.ravel(leaf).at[known[path]].set(values[path])
            return flat.reshape(leaf.shape)

        return tree.map_with_path(whole, params)

    return Tuning(init, groups, materialize, penalty)


def groups(trainable: Params, labels: Labels) -> Labels:
    """Returns the labels of the leaves that have a trainable element."""
    return jax.tree.map(
        lambda values, label: None if values is None else label,
        trainable,
        labels,
        is_leaf=lambda values: values is None,
    )


def _checked(path: str, index: np.ndarray) -> np.ndarray:
    index = np.asarray(index)
    distinct = index.ndim == 1 and len(set(index.tolist())) == len(index)
    if not distinct or index.dtype.kind not in "iu" or index.min(initial=0) < 0:
        raise InputError(
            f"the indices of {path!r} must be distinct integers from 0 up, in one row"
        )
    return np.sort(index)


def _require_inside(known: Indices, params: Params) -> None:
    sizes = {path: leaf.size for path, leaf in tree.flatten(params).items()}
    for path, index in known.items():
        if path not in sizes:
            raise InputError(
                f"there is no leaf {path!r} for the indices of a fixed mask"
            )
        if index.max(initial=0) >= sizes[path]:
            raise InputError(
                f"index {index.max()} is past the {sizes[path]} elements of {path!r}"
            )

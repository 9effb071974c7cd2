"""Fixed-mask tuning: chosen elements of a leaf train, the others stay.

Of a leaf with k chosen elements, k values train, with k moments: nothing dense is kept.
While a step runs, the whole leaf and its gradient are there, as in any other tuning.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.labels import FROZEN
from subtune_jax.network import Labels, Params
from subtune_jax.tuning.gates import GATES, expected_nonzero, gate_of
from subtune_jax.tuning.method import (
    Ended,
    Parts,
    Tuning,
    call_anew,
    leaf_groups,
    no_penalty,
)

Indices = Mapping[str, np.ndarray]  # {path: int[k], places in the flattened leaf}
STARTS = ("change", "ungated", "base")  # of the elements that changed most


def fixed_mask(indices: Indices) -> Tuning:
    """Returns the tuning w <- w_0 with w[indices] = v, v trained from w_0[indices].

    Trainable leaves without an entry (a head) train as a whole; a leaf whose entry is
    empty rests, and so do indices of frozen leaves. Indices come from
    `selection.elements`; they are values, so that masks with the same counts in every
    leaf are one program. Weight decay pulls v to w_0, and a leaf that trains as a whole to
    0. After another tuning, v starts from the live parameters, and elements outside the
    mask go back to w_0. Raises `InputError` for indices that are
    not distinct integers from 0 up, and in `init` for a path that is not there or an
    index past its leaf.
    """
    indices = {path: _checked(path, index) for path, index in indices.items()}

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Parts:
        del key
        return _parts(indices, params, labels)

    def take_over(
        ended: Ended, params: Params, labels: Labels, key: jax.Array | None = None
    ) -> Parts:
        del params, key
        return _parts(indices, ended.params, labels)

    return Tuning(init, leaf_groups, materialize, no_penalty, take_over, from_base)


def largest_changes(
    k: int, free: Sequence[str] = ("head",), start: str = "change"
) -> Tuning:
    """Returns the fixed mask of the k elements that the phase before changed most.

    The k largest |w - w_0| over all trainable leaves outside the `free` groups, ties to
    the lower index; free leaves train on as a whole. Of random gates (diff pruning) one
    realisation counts, drawn once, as in the paper (its section 3.2); how many elements it
    changed stands in the fixed values, at `realisation/changed`, and beside it E[L0] of
    the gates of what has moved, at `realisation/expected`. start: from where the chosen
    elements train on: `change`, as they were compared; `ungated`, from w_0 + w of diff
    pruning whatever their gates (official code); or `base`, from w_0. It can only take
    over: how many elements a leaf has is not known before.

    Raises `InputError` for k that is not a positive whole number or more than there are,
    an unknown start, and where nothing changed or, with `ungated`, nothing was gated.
    """
    require_positive(k=k)
    if k != int(k):
        raise InputError(f"k must be a whole number of elements, got {k!r}")
    if start not in STARTS:
        raise unknown("start", start, STARTS)

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Parts:
        raise InputError(
            "a mask of the largest changes needs a phase before it that changed something"
        )

    def take_over(
        ended: Ended, params: Params, labels: Labels, key: jax.Array | None = None
    ) -> Parts:
        live = _realisation(ended, params, key)
        changes = _changes(live, params, labels, free)
        largest = _largest(int(k), changes)
        begins = {"change": live, "base": params}.get(start)
        if begins is None:
            begins = _ungated(ended, params)
        kept = set(largest)
        begins = tree.map_with_path(lambda p, a, b: a if p in kept else b, begins, live)
        trainable, places = _parts(largest, begins, labels)
        return Parts(trainable, {**places, "realisation": _counts(ended, changes)})

    return Tuning(
        init, leaf_groups, materialize_learnt, no_penalty, take_over, from_base
    )


def mask_indices(trainable: Params, fixed: Any) -> Indices:
    """Returns the mask of a finished run: `mask_indices(result.trainable, result.fixed)`.

    Raises `InputError` for a run without a mask.
    """
    values, others = tree.flatten(trainable), tree.flatten(fixed)
    # Places are as many as their values; other tunings' fixed values at the path of a leaf
    # (the strengths of an anchor) are no integers.
    indices = {
        path: np.asarray(x)
        for path, x in others.items()
        if path in values and x.dtype.kind == "i" and x.shape == values[path].shape
    }
    if not indices:
        raise InputError("these values have no mask: tune with fixed_mask(indices)")
    return indices


def _realisation(ended: Ended, params: Params, key: jax.Array | None) -> Params:
    """Returns the live parameters of a phase that ended, its random gates drawn once."""
    trainable, fixed = ended.parts
    drawn = call_anew(ended.tuning.materialize, trainable, fixed, params, key)
    own = set(tree.owners(trainable, params).values())
    return tree.map_with_path(
        lambda path, live, x: jnp.asarray(x, live.dtype) if path in own else live,
        ended.params,
        drawn,
    )


def _counts(ended: Ended, changes: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns how many elements changed, and how many the gates, if any, expect to."""
    changed = sum(int(np.count_nonzero(values)) for values in changes.values())
    counts = {"changed": jnp.int32(changed)}
    if GATES in ended.parts.fixed:
        gate = gate_of(ended.parts.fixed)
        counts["expected"] = expected_nonzero(ended.parts.trainable, gate, moved=True)
    return counts


def _changes(
    live: Params, params: Params, labels: Labels, free: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns |w - w_0| of all trainable leaves outside the free groups."""
    groups, base, now = map(tree.flatten, (labels, params, live))
    chosen = [p for p, g in groups.items() if g != FROZEN and g not in free]
    return {
        p: np.abs(np.ravel(now[p]) - np.ravel(base[p]).astype(now[p].dtype))
        for p in chosen
    }


def _largest(k: int, changes: Mapping[str, np.ndarray]) -> Indices:
    """Returns the places of the k largest changes; raises `InputError` where there are
    none."""
    total = sum(len(values) for values in changes.values())
    if k > total:
        raise InputError(f"the mask asks for {k} of {total} elements")
    if not any(values.any() for values in changes.values()):
        raise InputError(
            "the phase before changed no element that a mask could keep (all gates closed, "
            "or no step was taken): lower the strength, or train for longer"
        )
    return tree.lowest({p: -values for p, values in changes.items()}, k)


def _ungated(ended: Ended, params: Params) -> Params:
    """Returns w_0 + w of every leaf that diff pruning gated, whatever its gates."""
    values = tree.flatten(ended.parts.trainable)
    if not any(path.endswith("/w") for path in values):
        raise InputError(
            "a mask that starts `ungated` needs a phase of diff pruning before it"
        )
    return tree.map_with_path(lambda p, leaf: leaf + values.get(f"{p}/w", 0), params)


# What places are, by `_checked` and `tree.lowest`. Unless JAX is told, the gradient scatters
# and gathers anew to learn which of equal places won, and a step takes twice as long to
# compile.
PROMISES: dict[str, Any] = {
    "indices_are_sorted": True,
    "unique_indices": True,
    "mode": "promise_in_bounds",
}


def materialize(
    trainable: Params, fixed: Any, params: Params, key: jax.Array | None = None
) -> Params:
    """Returns the base with the trained elements, and whole leaves, put in place."""
    del key
    values, places = tree.flatten(trainable), tree.flatten(fixed)

    def whole(path: str, leaf: jax.Array) -> jax.Array:
        if path not in values or path not in places:
            return values.get(path, leaf)
        flat = jnp.ravel(leaf).at[places[path]].set(values[path], **PROMISES)
        return flat.reshape(leaf.shape)

    return tree.map_with_path(whole, params)


def from_base(trainable: Params, fixed: Any, params: Params) -> Any:
    """Returns v - w_0 of the chosen elements, and leaves that train as a whole as they are:
    what weight decay pulls to 0."""
    base, places = tree.flatten(params), tree.flatten(fixed)

    def change(path: str, values: jax.Array) -> jax.Array:
        if path not in places:
            return values
        return values - jnp.ravel(base[path])[places[path]].astype(values.dtype)

    return tree.map_with_path(change, trainable)


def materialize_learnt(
    trainable: Params, fixed: Any, params: Params, key: jax.Array | None = None
) -> Params:
    """Returns what `materialize` does: a mask that was learnt is another tuning than one
    that was given, and takes over from it."""
    return materialize(trainable, fixed, params, key)


def _parts(indices: Indices, params: Params, labels: Labels) -> Parts:
    """Returns the chosen elements of every trained leaf, and their places: int32."""
    _require_inside(indices, params)
    groups = tree.flatten(labels)
    places = {
        path: jnp.asarray(index, jnp.int32)
        for path, index in indices.items()
        if groups[path] != FROZEN and len(index)
    }

    # An entry without indices is a choice of no element: the leaf rests, where one
    # without an entry trains as a whole. Arrays of size 0 would be leaves to optimize.
    def part(path: str, leaf: jax.Array):
        if groups[path] == FROZEN or (path in indices and path not in places):
            return None
        if path not in places:
            return jnp.array(leaf, copy=True)
        return jnp.ravel(jnp.asarray(leaf))[places[path]]

    return Parts(tree.map_with_path(part, params), tree.unflatten(places))


def _checked(path: str, index: np.ndarray) -> np.ndarray:
    index = np.asarray(index)
    distinct = index.ndim == 1 and len(np.unique(index)) == len(index)
    if not distinct or index.dtype.kind not in "iu" or index.min(initial=0) < 0:
        raise InputError(
            f"the indices of {path!r} must be distinct integers from 0 up, in one row"
        )
    return np.sort(index)


def _require_inside(indices: Indices, params: Params) -> None:
    sizes = {path: leaf.size for path, leaf in tree.flatten(params).items()}
    for path, index in indices.items():
        if path not in sizes:
            raise InputError(
                f"there is no leaf {path!r} for the indices of a fixed mask"
            )
        if index.max(initial=0) >= sizes[path]:
            raise InputError(
                f"index {index.max()} is past the {sizes[path]} elements of {path!r}"
            )

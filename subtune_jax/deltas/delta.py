"""What a task changed, as values: found by comparing bytes, swapped in and out exactly."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, unknown
from subtune_jax.head import HEADS
from subtune_jax.network import Network, Source, Stage, Tokens, require_network

VALUES = ("exact", "bfloat16")
GAP_BITS = 1.5  # of a Rice code beyond log2 of the mean gap; an estimate, for choosing


class Elements(NamedTuple):
    """Elements of a leaf: places in the flattened leaf, rising, and their values."""

    shape: tuple[int, ...]  # of the leaf
    places: np.ndarray  # int64[k]
    values: np.ndarray  # [k], of the leaf's type or of bfloat16


class Delta(NamedTuple):
    """What a task changed on a base.

    whole: `{path: array}`, tensors that are stored as a whole, the head's among them.
    elements: `{path: Elements}`, tensors of which some elements changed. A path begins
    with `params/` or `stats/`. about: JSON values that say what the delta belongs to
    (`base`, `head`) and what it is (`classes`, `selection`, `metrics`, ...).
    """

    whole: Mapping[str, np.ndarray]
    elements: Mapping[str, Elements]
    about: Mapping[str, Any]

    def save(self, file: str | Path) -> None:
        """Writes the delta, as `deltas.save`."""
        from subtune_jax.deltas.file import save  # which is made of this module

        save(self, file)

    def __repr__(self) -> str:
        changed = sum(len(e.values) for e in self.elements.values())
        tensors = sum(array.size for array in self.whole.values())
        return (
            f"Delta({tensors:,} numbers in {len(self.whole)} whole tensors, {changed:,} "
            f"elements of {len(self.elements)} others)"
        )


class Overwritten(NamedTuple):
    """What `apply` took away: leaves and elements of the base by path, and its head."""

    whole: Mapping[str, Any]
    elements: Mapping[str, Elements]
    head: Stage
    source: Any


def extract(
    base: Network,
    tuned: Network,
    *,
    values: str = "exact",
    **about: Any,
) -> Delta:
    """Returns what differs between a network and the base that it was tuned from.

    Bytes are compared, whatever tuned them: parameters and batch statistics, NaN and
    negative zeros too. A tensor is stored as a whole or by its changed elements, which
    takes fewer bytes; the head (a last stage that is linear) always as a whole. values:
    `exact`, or `bfloat16` to round what is stored, which is lossy: apply the delta before
    you test. about: JSON values to store beside, such as `metrics={"accuracy": 91.2}` or
    `selection={"tuned": ["block1"]}`. Raises `InputError` for networks of other stages,
    for what is not JSON, and for the names `head`, `reads` and `versions`.
    """
    require_network(base)
    require_network(tuned)
    if values not in VALUES:
        raise unknown("form of values", values, VALUES)
    _require_about(about)
    head = _head_of(tuned)
    _require_same_body(base, tuned, head)
    old, new = flat(base), flat(tuned)
    whole, elements = {}, {}
    for path, leaf in new.items():
        array = np.ascontiguousarray(jax.device_get(leaf))
        if _of_stage(path, head):
            whole[path] = array
            continue
        places = changed(np.ascontiguousarray(jax.device_get(old[path])), array)
        if not len(places):
            continue
        if _is_sparse(len(places), array):
            elements[path] = Elements(array.shape, places, array.ravel()[places])
        else:
            whole[path] = array
    delta = Delta(whole, elements, _about(base, tuned, head) | about)
    return delta if values == "exact" else _rounded(delta)


def changed(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Returns the places of the elements whose bytes differ, int64[k], rising."""
    bits = np.dtype(f"u{new.dtype.itemsize}")
    return np.flatnonzero(old.ravel().view(bits) != new.ravel().view(bits))


def apply(
    network: Network, delta: Delta, *, fingerprint: str | None = None
) -> tuple[Network, Overwritten]:
    """Returns the network with a task's values swapped in, and what they took away.

    Nothing is added or subtracted, and `network` is left as it is. fingerprint: that of
    the base, where it is known (see `base_fingerprint`): else it is computed, which takes
    longer than the swap. Raises `InputError` for another base, before anything is done.
    """
    require_network(network)
    require_base(network, delta, fingerprint)
    leaves, head = flat(network), delta.about["head"]
    dropped = {p: leaf for p, leaf in leaves.items() if _of_stage(p, head)}
    kept = {p: leaf for p, leaf in leaves.items() if p not in dropped}
    before: dict[str, Elements] = {}
    for path, (shape, places, values) in delta.elements.items():
        kept[path], taken = _swapped(kept[path], places, values)
        before[path] = Elements(shape, places, taken)
    dtypes = {} if head is None else head["dtypes"]
    whole = {
        path: _beside(array, dtypes.get(path), leaves.get(path))
        for path, array in delta.whole.items()
    }
    overwritten = {p: leaf for p, leaf in kept.items() if p in whole} | dropped
    stage = network.stages[-1]
    after = _rebuilt(network, kept | whole, stage)
    if head is not None:
        apply_head = HEADS[head["kind"]]
        after = after._replace(
            stages=(*network.stages[:-1], Stage(head["stage"], apply_head))
        )
    if network.source is not None:
        classes = tuple(delta.about.get("classes", ()))
        after = after._replace(source=network.source._replace(classes=classes))
    return after, Overwritten(overwritten, before, stage, network.source)


def undo(network: Network, overwritten: Overwritten) -> Network:
    """Returns the base again, bit for bit, from a network with a delta applied."""
    require_network(network)
    last = overwritten.head.name
    is_head = overwritten.head.apply in HEADS.values()
    leaves = {
        path: leaf
        for path, leaf in flat(network).items()
        if not (is_head and _of_stage(path, {"stage": last}))
    }
    for path, (_, places, values) in overwritten.elements.items():
        leaves[path], _ = _swapped(leaves[path], places, values)
    stages = (*network.stages[:-1], overwritten.head)
    before = network._replace(stages=stages, source=overwritten.source)
    return _rebuilt(before, leaves | dict(overwritten.whole), overwritten.head)


def flat(network: Network) -> dict[str, Any]:
    """Returns `{path: leaf}` of parameters and statistics, under `params/` and `stats/`."""
    return tree.flatten({"params": network.params, "stats": network.stats})


def base_fingerprint(network: Network) -> str:
    """Returns a SHA-256 of what tasks share: all leaves but the head's, as they are now."""
    require_network(network)
    head = _head_of(network)
    return tree.fingerprint(
        {
            path: leaf
            for path, leaf in flat(network).items()
            if not _of_stage(path, head)
        }
    )


def require_base(
    network: Network, delta: Delta, fingerprint: str | None = None
) -> None:
    """Raises `InputError` unless the network is the base of the delta, in its values."""
    base = delta.about["base"]
    ours = fingerprint or base_fingerprint(network)
    if ours != base["arrays"]:
        source = "" if network.source is None else network.source.fingerprint
        same = bool(source) and source == base["file"]
        hint = (
            ": of the same file, but tuned, or loaded in another type" if same else ""
        )
        raise InputError(
            f"the delta belongs to another base: its fingerprint is {base['arrays'][:12]}, "
            f"this network's is {ours[:12]}{hint}"
        )
    _require_shapes(network, delta)


def _require_shapes(network: Network, delta: Delta) -> None:
    leaves, head = flat(network), delta.about["head"]
    shapes = {path: array.shape for path, array in delta.whole.items()}
    shapes |= {path: elements.shape for path, elements in delta.elements.items()}
    for path, shape in shapes.items():
        if _of_stage(path, head):
            continue
        if path not in leaves or tuple(leaves[path].shape) != tuple(shape):
            ours = list(leaves[path].shape) if path in leaves else "absent"
            raise InputError(
                f"{path!r} is {list(shape)} in the delta and {ours} in the network"
            )


def _require_about(about: Mapping[str, Any]) -> None:
    """Raises `InputError` for what cannot be stored beside a delta."""
    taken = sorted(about.keys() & {"head", "reads", "versions"})
    if taken:
        raise InputError(f"{taken[0]!r} has a meaning of its own in a delta: rename it")
    for name, value in about.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name!r} cannot be stored as JSON: {error}; convert arrays with float() "
                "or tolist()"
            ) from None


def _head_of(network: Network) -> dict[str, Any] | None:
    """Returns the stage, kind and types of the head; `None` where the last stage is none."""
    last = network.stages[-1]
    kinds = {function: kind for kind, function in HEADS.items()}
    if last.apply not in kinds:
        return None
    head = {"stage": last.name, "kind": kinds[last.apply]}
    # Of the leaves before they are rounded: the base's head may have other types.
    leaves = {p: x for p, x in flat(network).items() if _of_stage(p, head)}
    return head | {"dtypes": {path: str(leaf.dtype) for path, leaf in leaves.items()}}


def _of_stage(path: str, head: Mapping[str, Any] | None) -> bool:
    return head is not None and path.split("/")[1] == head["stage"]


def _require_same_body(
    base: Network, tuned: Network, head: Mapping[str, Any] | None
) -> None:
    if _head_of(base) is None and head is not None:
        raise InputError("the tuned network has a head and the base has none")
    old, new = (
        {
            path: (tuple(leaf.shape), str(leaf.dtype))
            for path, leaf in flat(network).items()
            if not _of_stage(path, head)
        }
        for network in (base, tuned)
    )
    differing = sorted(p for p in old.keys() | new.keys() if old.get(p) != new.get(p))
    if differing:
        path = differing[0]
        raise InputError(
            f"the networks differ in {len(differing)} tensors outside the head: "
            f"{path!r} is {old.get(path, 'absent')} in the base and "
            f"{new.get(path, 'absent')} in the tuned one"
        )


def _is_sparse(count: int, array: np.ndarray) -> bool:
    """Returns whether `count` changed elements take fewer bytes than the whole tensor."""
    bits = count * (8 * array.dtype.itemsize + GAP_BITS + np.log2(array.size / count))
    return bool(bits < 8 * array.nbytes)


def _about(
    base: Network, tuned: Network, head: Mapping[str, Any] | None
) -> dict[str, Any]:
    source = base.source
    return {
        "base": {
            "arrays": base_fingerprint(base),
            "file": "" if source is None else source.fingerprint,
            "name": "" if source is None else source.name,
            "options": {} if source is None else dict(source.options),
        },
        "head": None if head is None else dict(head),
        "classes": [] if tuned.source is None else list(tuned.source.classes),
        "reads": _reads(source),
        "versions": {"jax": jax.__version__, "subtune_jax": version("subtune-jax")},
    }


def _reads(source: Source | None) -> dict[str, Any] | None:
    """Returns what the base reads, and of texts a SHA-256 of its tokenizer's files."""
    if source is None or source.reads is None:
        return None
    reads = {"kind": type(source.reads).__name__.lower(), **source.reads._asdict()}
    if not isinstance(source.reads, Tokens):
        return reads
    files = [Path(source.folder) / name for name in ("tokenizer.json", "vocab.txt")]
    held = b"".join(file.read_bytes() for file in files if file.is_file())
    return reads | {"tokenizer": hashlib.sha256(held).hexdigest() if held else ""}


def _rounded(delta: Delta) -> Delta:
    def narrow(array: np.ndarray) -> np.ndarray:
        real = jnp.issubdtype(array.dtype, jnp.floating)
        return array.astype(jnp.bfloat16) if real else array

    whole = {path: narrow(array) for path, array in delta.whole.items()}
    elements = {
        path: some._replace(values=narrow(some.values))
        for path, some in delta.elements.items()
    }
    return delta._replace(whole=whole, elements=elements)


def _swapped(
    leaf: Any, places: np.ndarray, values: np.ndarray
) -> tuple[Any, np.ndarray]:
    """Returns a leaf with these elements in place, and those that were there."""
    values = np.asarray(values).astype(leaf.dtype)
    if isinstance(leaf, np.ndarray):
        taken, after = leaf.ravel()[places], leaf.copy()
        after.reshape(-1)[places] = values
        return after, taken
    index = places.astype(np.int32 if leaf.size < 2**31 else np.int64)
    after, taken = _device_swap(leaf, index, values)
    return after, np.asarray(jax.device_get(taken))


@partial(jax.jit, keep_unused=True)
def _device_swap(leaf: jax.Array, places: jax.Array, values: jax.Array) -> tuple:
    # As integers: a compiler may change the bits of a NaN that it moves as a float.
    bits = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    whole, new = (jax.lax.bitcast_convert_type(x, bits) for x in (leaf, values))
    rows = whole.reshape(-1)
    after = rows.at[places].set(new, unique_indices=True, indices_are_sorted=True)
    taken = jax.lax.bitcast_convert_type(rows[places], leaf.dtype)
    return jax.lax.bitcast_convert_type(after, leaf.dtype).reshape(leaf.shape), taken


def _beside(array: np.ndarray, dtype: str | None, leaf: Any) -> Any:
    """Returns an array in its type of before rounding, that of the leaf whose place it
    takes where none is named, and where that leaf lives."""
    array = array.astype(jnp.dtype(dtype) if dtype else leaf.dtype)
    if isinstance(leaf, jax.Array):
        return jax.device_put(array, leaf.sharding)
    return array


def _rebuilt(network: Network, leaves: Mapping[str, Any], head: Stage) -> Network:
    whole = tree.unflatten(leaves)
    params, stats = whole.get("params", {}), whole.get("stats", {})
    names = [*(stage.name for stage in network.stages[:-1]), head.name]
    return network._replace(
        params={name: params.get(name, {}) for name in names},
        stats={name: stats.get(name, {}) for name in names},
    )

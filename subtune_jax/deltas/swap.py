"""A task's values swapped into its base, and out again exactly."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from subtune_jax import tree
from subtune_jax.deltas.delta import (
    Delta,
    Elements,
    base_fingerprint,
    flat,
    head_of,
    meaning,
    of_stage,
    reads,
)
from subtune_jax.deltas.elements import swapped
from subtune_jax.errors import InputError
from subtune_jax.head import HEADS
from subtune_jax.network import Network, Stage, require_network
from subtune_jax.tuning.lora import fits, low_rank


class Overwritten(NamedTuple):
    """What `apply` took away: leaves and elements of the base by path, and its head."""

    whole: Mapping[str, Any]
    elements: Mapping[str, Elements]
    head: Stage
    source: Any


def apply(
    network: Network,
    delta: Delta,
    *,
    fingerprint: str | None = None,
    donate: bool = False,
) -> tuple[Network, Overwritten]:
    """Returns the network with a task's values swapped in, and what they took away.

    Nothing is added or subtracted but the products of low-rank factors. `network` is left
    as it is, and `undo` gives it back bit for bit. fingerprint: that of the base, if you
    have it (see `base_fingerprint`): else it is computed, which takes longer than the
    swap. donate: `network` is given away and cannot be used again: leaves
    of which elements change are written in place, or their memory is freed. Raises
    `InputError` for another base, before anything is done.
    """
    require_network(network)
    require_base(network, delta, fingerprint)
    leaves, head = flat(network), delta.about["head"]
    dropped = {p: leaf for p, leaf in leaves.items() if of_stage(p, head)}
    kept = {p: leaf for p, leaf in leaves.items() if p not in dropped}
    kept, before = _exchanged(kept, delta.elements, donate)
    products = {
        path: _beside(low_rank(kept[path], some), None, kept[path])
        for path, some in delta.factors.items()
    }
    dtypes = {} if head is None else head["dtypes"]
    beside = next(iter(leaves.values()))  # where a leaf goes that the base has none of
    whole = {
        path: _beside(array, dtypes.get(path), leaves.get(path, beside))
        for path, array in delta.whole.items()
    }
    whole |= products
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


def undo(
    network: Network, overwritten: Overwritten, *, donate: bool = False
) -> Network:
    """Returns the base again, bit for bit, from a network with a delta applied.

    donate: as in `apply`. Raises `InputError` for a network of other shapes than the one
    that `apply` returned; that of another task with its shapes cannot be told from it.
    """
    require_network(network)
    last = overwritten.head.name
    is_head = overwritten.head.apply in HEADS.values()
    leaves = {
        path: leaf
        for path, leaf in flat(network).items()
        if not (is_head and of_stage(path, {"stage": last}))
    }
    for path, leaf in overwritten.whole.items():
        inside = path in leaves and leaves[path].shape == leaf.shape
        if not inside and not (is_head and of_stage(path, {"stage": last})):
            raise InputError(f"the network has no {path!r} of shape {list(leaf.shape)}")
    leaves, _ = _exchanged(leaves, overwritten.elements, donate)
    stages = (*network.stages[:-1], overwritten.head)
    before = network._replace(stages=stages, source=overwritten.source)
    return _rebuilt(before, leaves | dict(overwritten.whole), overwritten.head)


def _exchanged(
    leaves: Mapping[str, Any], elements: Mapping[str, Elements], donate: bool
) -> tuple[dict[str, Any], dict[str, Elements]]:
    """Returns leaves with elements swapped in, and the elements that were there."""
    for path, some in elements.items():
        if path not in leaves or tuple(leaves[path].shape) != tuple(some.shape):
            raise InputError(f"the network has no {path!r} of shape {list(some.shape)}")
    after, taken = dict(leaves), {}
    shared = Counter(map(id, leaves.values()))  # tied leaves are one array
    for path, (_, places, values) in elements.items():
        own = donate and shared[id(leaves[path])] == 1
        after[path], taken[path] = swapped(leaves[path], places, values, own)
    # Only now: fetching a leaf's values at once would wait for the device at every leaf.
    before = {
        path: some._replace(values=np.asarray(taken[path])[: len(some.places)])
        for path, some in elements.items()
    }
    return after, before


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
        if delta.about["head"] and head_of(network) is None:
            hint = (
                ": the delta was made after replace_head, so give it the base after "
                "replace_head too"
            )
        raise InputError(
            f"the delta belongs to another base: its fingerprint is {base['arrays'][:12]}, "
            f"this network's is {ours[:12]}{hint}"
        )
    _require_same_meaning(network, delta)
    _require_shapes(network, delta)


def _require_same_meaning(network: Network, delta: Delta) -> None:
    """Raises `InputError` where equal weights would compute something else here."""
    source, theirs = network.source, delta.about["reads"]
    if source is None or theirs is None:
        return
    stored = meaning(delta.about["base"]["options"], theirs)
    here = meaning(source.options, reads(source))
    # A tokenizer may be unknown to one of them; an option left out is the file's own.
    for name in sorted((stored.keys() & here.keys()) | {"pooling", "head"}):
        if stored.get(name) != here.get(name):
            raise InputError(
                f"the delta belongs to a base with {name} {stored.get(name)!r}, and this "
                f"network has {here.get(name)!r}: load the base as it was"
            )


def _require_shapes(network: Network, delta: Delta) -> None:
    leaves, head = flat(network), delta.about["head"]
    shapes = {path: array.shape for path, array in delta.whole.items()}
    shapes |= {path: elements.shape for path, elements in delta.elements.items()}
    for path, shape in shapes.items():
        if of_stage(path, head):
            continue
        if path not in leaves or tuple(leaves[path].shape) != tuple(shape):
            ours = list(leaves[path].shape) if path in leaves else "absent"
            raise InputError(
                f"{path!r} is {list(shape)} in the delta and {ours} in the network"
            )
    for path, factors in delta.factors.items():
        if path not in leaves or not fits(factors, leaves[path]):
            raise InputError(f"the factors of {path!r} fit no kernel of the network")


def _beside(array: Any, dtype: str | None, leaf: Any) -> Any:
    """Returns an array in its type of before rounding, that of the leaf whose place it
    takes where none is named, and where that leaf lives."""
    array = array.astype(jnp.dtype(dtype) if dtype else leaf.dtype)
    if not isinstance(leaf, jax.Array):
        return np.asarray(array)
    sharding = leaf.sharding
    if array.shape != leaf.shape and isinstance(sharding, NamedSharding):
        # A head of another size may not divide over the devices as the old one did.
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.device_put(array, sharding)


def _rebuilt(network: Network, leaves: Mapping[str, Any], head: Stage) -> Network:
    whole = tree.unflatten(leaves)
    params, stats = whole.get("params", {}), whole.get("stats", {})
    names = [*(stage.name for stage in network.stages[:-1]), head.name]
    return network._replace(
        params={name: params.get(name, {}) for name in names},
        stats={name: stats.get(name, {}) for name in names},
    )

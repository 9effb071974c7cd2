"""What differs between a tuned network and its base, found by comparing bytes."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.deltas.delta import (
    Delta,
    Elements,
    base_fingerprint,
    flat,
    head_of,
    of_stage,
    reads,
)
from subtune_jax.errors import InputError, listed, unknown
from subtune_jax.network import Network, require_network
from subtune_jax.tuning.lora import Factors, fits, low_rank

VALUES = ("exact", "bfloat16")
GAP_BITS = 1.5  # of a Rice code beyond log2 of the mean gap; an estimate, for choosing


def extract(
    base: Network,
    tuned: Network,
    *,
    factors: Mapping[str, Factors] | None = None,
    indices: Mapping[str, np.ndarray] | None = None,
    values: str = "exact",
    fingerprint: str | None = None,
    **about: Any,
) -> Delta:
    """Returns what differs between a network and the base that it was tuned from.

    Bytes are compared, whatever tuned them: parameters and batch statistics, NaN and
    negative zeros too. A tensor is stored as a whole or by its changed elements, whichever
    takes fewer bytes; the head (a last stage that is linear) always as a whole.

    factors: those of a run with `lora`, from `lora_factors`; their kernels are stored as
    them. indices: those of a run with a mask, from `mask_indices`; these elements are stored
    whether or not they differ. values: `exact`, or `bfloat16` to round what is stored,
    which is lossy: apply the delta before you test. fingerprint: that of the base, where
    it is known (`base_fingerprint`). about: JSON values to store beside, such as
    `metrics={"accuracy": 91.2}` or `selection={"tuned": ["block1"]}`. Raises `InputError`
    for networks of other stages, for factors that do not give the tuned kernels, for
    indices of what is not there, for what is not JSON, and for the names `head`, `reads`
    and `versions`.
    """
    require_network(base)
    require_network(tuned)
    if values not in VALUES:
        raise unknown("form of values", values, VALUES)
    _require_about(about)
    _require_names(about.get("classes"), tuned)
    head = head_of(tuned)
    _require_same_body(base, tuned, head)
    old, new = flat(base), flat(tuned)
    products = {f"params/{path}": factor for path, factor in (factors or {}).items()}
    # A head is stored as a whole: that of the base is no part of the fingerprint.
    products = {p: some for p, some in products.items() if not of_stage(p, head)}
    _require_products(old, new, products)
    chosen = {f"params/{path}": index for path, index in (indices or {}).items()}
    _require_inside(new, chosen)
    whole, elements = {}, {}
    for path, leaf in new.items():
        if path in products:
            continue
        array = np.asarray(jax.device_get(leaf), order="C")
        if of_stage(path, head):
            whole[path] = array
            continue
        before = np.asarray(jax.device_get(old[path]))
        change = difference(before, array, chosen.get(path, ()))
        if isinstance(change, Elements):
            elements[path] = change
        elif change is not None:
            whole[path] = change
    host = {
        path: Factors(np.asarray(a), np.asarray(b), scale)
        for path, (a, b, scale) in products.items()
    }
    delta = Delta(whole, elements, host, _about(base, tuned, head, fingerprint) | about)
    return delta if values == "exact" else _rounded(delta)


def difference(
    old: np.ndarray, new: np.ndarray, chosen: Sequence[int] | np.ndarray = ()
) -> Elements | np.ndarray | None:
    """Returns what makes `new` of `old`: the changed elements, or all of it where that
    takes fewer bytes; `None` where nothing differs. Chosen elements are stored one by one,
    whatever changed."""
    places = changed(old, new)
    if len(chosen):
        places = np.union1d(places, np.asarray(chosen, np.int64))
        return Elements(new.shape, places, new.ravel()[places])
    if not len(places):
        return None
    if _is_sparse(len(places), new):
        return Elements(new.shape, places, new.ravel()[places])
    return new


def changed(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Returns the places of the elements whose bytes differ, int64[k], rising."""
    bits = np.dtype(f"u{new.dtype.itemsize}")
    return np.flatnonzero(old.ravel().view(bits) != new.ravel().view(bits))


def _is_sparse(count: int, array: np.ndarray) -> bool:
    """Returns whether `count` changed elements take fewer bytes than the whole tensor."""
    bits = count * (8 * array.dtype.itemsize + GAP_BITS + np.log2(array.size / count))
    return bool(bits < 8 * array.nbytes)


def _rounded(delta: Delta) -> Delta:
    def narrow(array: np.ndarray) -> np.ndarray:
        # Two bytes stay two bytes: rounding them would lose bits and save nothing.
        wide = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize > 2
        return array.astype(jnp.bfloat16) if wide else array

    whole = {path: narrow(array) for path, array in delta.whole.items()}
    elements = {
        path: some._replace(values=narrow(some.values))
        for path, some in delta.elements.items()
    }
    factors = {
        path: some._replace(a=narrow(some.a), b=narrow(some.b))
        for path, some in delta.factors.items()
    }
    return delta._replace(whole=whole, elements=elements, factors=factors)


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


def _require_same_body(
    base: Network, tuned: Network, head: Mapping[str, Any] | None
) -> None:
    if (head_of(base) is None) != (head is None):
        raise InputError(
            "one of the networks has a linear head as its last stage and the other has "
            "none: give the base as it was when the run began, after replace_head"
        )
    old, new = (
        {
            path: (tuple(leaf.shape), str(leaf.dtype))
            for path, leaf in flat(network).items()
            if not of_stage(path, head)
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


def _about(
    base: Network,
    tuned: Network,
    head: Mapping[str, Any] | None,
    fingerprint: str | None,
) -> dict[str, Any]:
    source = base.source
    return {
        "base": {
            "arrays": fingerprint or base_fingerprint(base),
            "file": "" if source is None else source.fingerprint,
            "name": "" if source is None else source.name,
            "options": {} if source is None else dict(source.options),
        },
        "head": None if head is None else dict(head),
        "classes": [] if tuned.source is None else list(tuned.source.classes),
        "reads": reads(source),
        "versions": {"jax": jax.__version__, "subtune_jax": version("subtune-jax")},
    }


def _require_names(classes: Any, tuned: Network) -> None:
    """Raises `InputError` for class names that are not those of the network's outputs."""
    own = () if tuned.source is None else tuned.source.classes
    if classes is not None and own and list(classes) != list(own):
        raise InputError(
            f"classes are {listed(map(str, classes))}, and the network's outputs "
            f"{listed(own)}: leave classes= out, the network has its own"
        )


def _require_inside(new: Mapping[str, Any], chosen: Mapping[str, np.ndarray]) -> None:
    """Raises `InputError` for indices of no tensor, and past the end of theirs."""
    for path, index in chosen.items():
        if path not in new:
            raise unknown("tensor with indices", path, new)
        if np.asarray(index).dtype.kind not in "iu" or np.ndim(index) != 1:
            raise InputError(
                f"the indices of {path!r} must be whole numbers in one row"
            )
        if np.max(index, initial=0) >= new[path].size or np.min(index, initial=0) < 0:
            raise InputError(
                f"the indices of {path!r} must be from 0 to {new[path].size - 1}: give those "
                "of the same network's run"
            )


def _require_products(
    old: Mapping[str, Any], new: Mapping[str, Any], products: Mapping[str, Factors]
) -> None:
    """Raises `InputError` for factors of no kernel, and where base and product differ from
    the tuned kernel by more than the rounding of its type."""
    for path, factors in products.items():
        if path not in old:
            raise unknown("kernel with factors", path, old)
        if not fits(factors, old[path]):
            raise InputError(
                f"the factors of {path!r} are {list(np.shape(factors.a))} and "
                f"{list(np.shape(factors.b))}: their product is no {list(old[path].shape)}"
            )
        product = np.asarray(low_rank(old[path], factors), np.float64)
        off = np.abs(product - np.asarray(new[path], np.float64)).max()
        if not off <= 8 * float(jnp.finfo(old[path].dtype).eps) * np.abs(product).max():
            raise InputError(
                f"the factors of {path!r} do not give the tuned kernel (off by {off:.2g}): "
                "give those of the same run, and the scale that lora had"
            )

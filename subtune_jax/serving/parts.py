"""What a delta changes, stage by stage."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.deltas.delta import Delta, of_stage

COLUMNS = 8  # what a head's outputs are filled up to a multiple of


def changes(delta: Delta) -> dict[str, str]:
    """Returns `{stage: SHA-256 of what is changed there}`, without the head's stage: tasks
    with equal ones compute the same there."""
    digests: dict[str, Any] = {}
    for kind, part in enumerate((delta.whole, delta.elements, delta.factors)):
        for path, values in sorted(part.items()):
            if of_stage(path, delta.about["head"]):
                continue
            digest = digests.setdefault(path.split("/")[1], hashlib.sha256())
            arrays = [np.asarray(x) for x in jax.tree.leaves(values)]
            digest.update(f"{kind} {path} {tree.fingerprint(arrays)}".encode())
    return {stage: digest.hexdigest() for stage, digest in digests.items()}


def restricted(delta: Delta, keep: Callable[[str], bool]) -> Delta:
    """Returns what a delta changes at the paths to keep, without its head: that of the base
    stays."""

    def kept(part: Mapping[str, Any]) -> dict[str, Any]:
        head = delta.about["head"]
        return {p: x for p, x in part.items() if keep(p) and not of_stage(p, head)}

    about = {**delta.about, "head": None}
    return Delta(kept(delta.whole), kept(delta.elements), kept(delta.factors), about)


def head_alone(delta: Delta) -> Delta:
    """Returns what a delta changes of its head; of a network without one, nothing."""
    head = delta.about["head"]
    whole = {p: x for p, x in delta.whole.items() if of_stage(p, head)}
    return Delta(whole, {}, {}, delta.about)


def widened_head(params: Any, stats: Any) -> tuple[Any, int]:
    """Returns a head's (params, stats) with its outputs filled up by columns of zeros to a
    multiple of `COLUMNS`, and how many are real: heads of like sizes share a program."""
    outputs = params["kernel"].shape[-1]
    missing = -outputs % COLUMNS

    def widened(leaf: jax.Array) -> jax.Array:
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, missing)])

    last = {name: widened(params[name]) for name in ("kernel", "bias")}
    return ({**params, **last}, stats), outputs


def on_device(values: Any) -> Any:
    """Returns a tree of arrays on devices: those that are there stay where they are."""
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), values
    )

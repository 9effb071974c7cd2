"""What a delta changes, stage by stage."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.deltas.delta import Delta, of_stage
from subtune_jax.deltas.swap import apply
from subtune_jax.errors import InputError
from subtune_jax.network import Network, Stage

COLUMNS = 8  # what a head's outputs are filled up to a multiple of


def changes(delta: Delta) -> dict[str, str]:
    """Returns `{stage: SHA-256 of what is changed there}`, without the head's stage: tasks
    with equal ones compute the same there."""
    digests: dict[str, Any] = {}
    for kind, part in enumerate((delta.whole, delta.elements, delta.factors)):
        for path, values in sorted(part.items()):
            if of_stage(path, delta.about["head"]):
                continue
            digest = digests.setdefault(stage_of(path), hashlib.sha256())
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


def stage_of(path: str) -> str:
    """Returns the stage of `params/STAGE/...`."""
    return path.split("/")[1]


def body_of(network: Network, delta: Delta) -> Delta:
    """Returns what a delta changes below the last stage."""
    last = network.stages[-1].name
    return restricted(delta, lambda path: stage_of(path) != last)


def head_of_task(
    network: Network, delta: Delta, fingerprint: str
) -> tuple[Stage, Any, int | None]:
    """Returns a task's last stage, its (params, stats), and how many of its outputs are real.

    A head's outputs are filled up, see `widened_head`; other last stages are as they are
    (`None`). Raises `InputError` for a head that does not fit the base's features.
    """
    head, last = delta.about["head"], network.stages[-1].name
    if head is None:
        part = restricted(delta, lambda path: stage_of(path) == last)
        tuned, _ = apply(network, part, fingerprint=fingerprint)
        return tuned.stages[-1], (tuned.params[last], tuned.stats[last]), None
    if head["stage"] != last:
        raise InputError(
            f"the head of the task is the stage {head['stage']!r}, and that of the base "
            f"{last!r}: the delta belongs to another network"
        )
    whole = {p: x for p, x in delta.whole.items() if of_stage(p, head)}
    tuned, _ = apply(
        network, Delta(whole, {}, {}, delta.about), fingerprint=fingerprint
    )
    params, stats = tuned.params[last], tuned.stats[last]
    ours, theirs = (_features(p) for p in (network.params[last], params))
    if None not in (ours, theirs) and ours != theirs:
        raise InputError(
            f"the head of the task takes {theirs} features, and the base gives {ours}"
        )
    weights, outputs = widened_head(params, stats)
    return tuned.stages[-1], weights, outputs


def _features(head: Any) -> int | None:
    """Returns how many features a head takes, of those that replace_head knows."""
    kernel = head.get("hidden", head).get("kernel")
    return None if kernel is None else kernel.shape[0]


def widened_head(params: Any, stats: Any) -> tuple[Any, int]:
    """Returns a head's (params, stats) with its outputs filled up by columns of zeros to a
    multiple of `COLUMNS`, and how many are real: heads of like sizes share a program."""
    outputs = params["kernel"].shape[-1]
    missing = -outputs % COLUMNS

    def widened(leaf: jax.Array) -> jax.Array:
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, missing)])

    last = {name: widened(params[name]) for name in ("kernel", "bias")}
    return ({**params, **last}, stats), outputs

"""What a task changed on a base, as values, and what belongs to it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subtune_jax import tree
from subtune_jax.head import HEADS
from subtune_jax.network import Network, Source, Tokens, require_network
from subtune_jax.tuning.lora import Factors


class Elements(NamedTuple):
    """Elements of a leaf: places in the flattened leaf, rising, and their values."""

    shape: tuple[int, ...]  # of the leaf
    places: np.ndarray  # int64[k]
    values: np.ndarray  # [k], of the leaf's type or of bfloat16


class Delta(NamedTuple):
    """What a task changed on a base.

    whole: `{path: array}`, tensors that are stored as a whole, the head's among them.
    elements: `{path: Elements}`, tensors of which some elements changed. factors: `{path:
    Factors}`, kernels that a low-rank product is added to. A path begins with `params/` or
    `stats/`. about: JSON values that say what the delta belongs to
    (`base`, `head`) and what it is (`classes`, `selection`, `metrics`, ...).
    """

    whole: Mapping[str, np.ndarray]
    elements: Mapping[str, Elements]
    factors: Mapping[str, Factors]
    about: Mapping[str, Any]

    def save(self, file: str | Path) -> None:
        """Writes the delta, as `deltas.save`."""
        from subtune_jax.deltas.file import save  # which is made of this module

        save(self, file)

    def __repr__(self) -> str:
        changed = sum(len(e.values) for e in self.elements.values())
        tensors = sum(array.size for array in self.whole.values())
        low_rank = f", {len(self.factors)} low-rank products" if self.factors else ""
        return (
            f"Delta({tensors:,} numbers in {len(self.whole)} whole tensors, {changed:,} "
            f"elements of {len(self.elements)} others{low_rank})"
        )


def reads(source: Source | None) -> dict[str, Any] | None:
    """Returns what a base reads, and of texts a SHA-256 of its tokenizer's files."""
    if source is None or source.reads is None:
        return None
    held = {"kind": type(source.reads).__name__.lower(), **source.reads._asdict()}
    if isinstance(source.reads, Tokens):
        names = ("tokenizer.json", "vocab.txt")
        files = [Path(source.folder) / name for name in names]
        whole = b"".join(file.read_bytes() for file in files if file.is_file())
        held |= {"tokenizer": hashlib.sha256(whole).hexdigest() if whole else ""}
    return json.loads(json.dumps(held))


def meaning(options: Mapping[str, Any], reads: Mapping[str, Any] | None) -> dict:
    """Returns what equal weights need to have in common to compute the same: pooling, kind
    of head, and what they read."""
    common = {k: v for k, v in options.items() if k in ("pooling", "head")}
    return common | {k: v for k, v in (reads or {}).items() if v}


def flat(network: Network) -> dict[str, Any]:
    """Returns `{path: leaf}` of parameters and statistics, under `params/` and `stats/`."""
    return tree.flatten({"params": network.params, "stats": network.stats})


def base_fingerprint(network: Network) -> str:
    """Returns a SHA-256 of what tasks share: all leaves but the head's, as they are now."""
    require_network(network)
    head = head_of(network)
    return tree.fingerprint(
        {path: leaf for path, leaf in flat(network).items() if not of_stage(path, head)}
    )


def head_of(network: Network) -> dict[str, Any] | None:
    """Returns the stage, kind and types of the head; `None` where the last stage is none."""
    last = network.stages[-1]
    kinds = {function: kind for kind, function in HEADS.items()}
    if last.apply not in kinds:
        return None
    head = {"stage": last.name, "kind": kinds[last.apply]}
    # Of the leaves before they are rounded: the base's head may have other types.
    leaves = {p: x for p, x in flat(network).items() if of_stage(p, head)}
    return head | {"dtypes": {path: str(leaf.dtype) for path, leaf in leaves.items()}}


def of_stage(path: str, head: Mapping[str, Any] | None) -> bool:
    return head is not None and path.split("/")[1] == head["stage"]

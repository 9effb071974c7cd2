"""Checkpoints of a run, by Orbax: only what trains, and where the run stands.

A checkpoint is a flat dict of NumPy arrays and a dict of facts (JSON): what the run is
(`identity`), where it stands, and a digest of the arrays.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError

Arrays = dict[str, np.ndarray]
KEPT = 2  # the newest may be damaged when a machine dies


class Saved(NamedTuple):
    """What a checkpoint holds."""

    step: int
    arrays: Arrays
    facts: dict[str, Any]


def save(folder: Path, saved: Saved) -> None:
    """Writes a checkpoint; the one before it is kept, older ones go.

    Orbax writes to a temporary name and renames. Raises `InputError` when the folder
    cannot be written.
    """
    from orbax.checkpoint.experimental import v1 as ocp

    # TensorStore has no arrays without elements: their shapes are facts.
    arrays = {name: a for name, a in saved.arrays.items() if a.size}
    empty = {
        name: [list(a.shape), str(a.dtype)]
        for name, a in saved.arrays.items()
        if not a.size
    }
    facts = saved.facts | {"digest": tree.fingerprint(arrays), "empty": empty}
    keep = ocp.training.preservation_policies.LatestN(KEPT)
    try:
        with ocp.training.Checkpointer(
            folder.absolute(), preservation_policy=keep
        ) as out:
            out.save(saved.step, arrays, overwrite=True, custom_metadata=facts)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror or error}"
        ) from None
    except ValueError as error:  # what TensorStore raises for a full disk
        reason = str(error).rpartition(": ")[2]
        raise InputError(f"cannot write to {folder}: {reason}") from None


def agreed(due: bool) -> bool:
    """Returns what the first process says: saving is a collective of all processes, and
    their clocks differ."""
    if jax.process_count() == 1:
        return due
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(due)))


def require_writable(folder: Path) -> None:
    """Raises `InputError` when nothing can be written to the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror or error}"
        ) from None


def restore(folder: Path) -> Saved | None:
    """Returns the newest whole checkpoint of a folder, or None where there is none.

    A damaged one is said in a sentence on standard error and put aside, and the one
    before is used. Raises `InputError` where the folder cannot be read.
    """
    if not agreed(folder.is_dir()):  # another process may make it meanwhile
        return None
    from orbax.checkpoint.experimental import v1 as ocp

    with ocp.training.Checkpointer(folder.absolute()) as out:
        for step in sorted((int(one.step) for one in out.checkpoints), reverse=True):
            saved = _read(out, step)
            if saved is not None:
                return saved
            print(
                f"checkpoint {folder}/{step} is damaged and is left out",
                file=sys.stderr,
            )
            if jax.process_index() == 0:
                damaged = f"damaged-{step}-{time.time_ns()}"
                (folder / str(step)).rename(folder / damaged)
    return None


def _read(out: Any, step: int) -> Saved | None:
    try:
        arrays = {name: np.asarray(leaf) for name, leaf in out.load(step).items()}
        facts = dict(out.metadata(step).custom_metadata)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # the machine's fault, not the checkpoint's
        raise InputError(f"cannot read {out.directory}: {error}") from None
    except MemoryError:
        raise
    except Exception:  # whatever Orbax and TensorStore raise for damaged files
        return None
    if facts.get("digest") != tree.fingerprint(arrays):
        return None
    for name, (shape, dtype) in facts["empty"].items():
        arrays[name] = np.zeros(shape, dtype)
    return Saved(step, arrays, facts)


def packed(prefix: str, value: Any) -> Arrays:
    """Returns a tree's leaves as `{prefix/path: array}`; keys become their data."""

    def array(leaf):
        keyed = hasattr(leaf, "dtype") and tree.is_key(leaf.dtype)
        return np.asarray(jax.random.key_data(leaf) if keyed else leaf)

    return {
        f"{prefix}/{name}": array(leaf) for name, leaf in tree.flatten(value).items()
    }


def unpacked(prefix: str, arrays: Arrays, like: Any) -> Any:
    """Returns the tree with the structure of `like` whose leaves `packed` wrote."""

    def leaf(name, old):
        place = f"{prefix}/{name}" if name else prefix
        if place not in arrays and old.size == 0:
            return old
        array = jax.numpy.asarray(arrays[place])
        if tree.is_key(old.dtype):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(old))
        return array

    return tree.map_with_path(leaf, like)

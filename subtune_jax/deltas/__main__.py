"""`python -m subtune_jax.deltas`: what is in a folder of tasks, and in a task's file."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from subtune_jax.deltas.delta import Delta
from subtune_jax.deltas.file import load, read_header
from subtune_jax.deltas.merge import HEAD, restore
from subtune_jax.deltas.merge import merge as write_merged
from subtune_jax.deltas.open import open_task
from subtune_jax.deltas.store import Store
from subtune_jax.errors import InputError


def main() -> None:
    """Runs one of the commands; bad input is one sentence, exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m subtune_jax.deltas")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for word, (function, names) in COMMANDS.items():
        command = commands.add_parser(
            word, help=(function.__doc__ or "").splitlines()[0]
        )
        for name in names:
            command.add_argument(name, type=Path)
        if function is merge:
            command.add_argument("--base", help="folder or hub id; default: as named")
        command.set_defaults(run=function)
    given = vars(parser.parse_args())
    try:
        print("\n".join(given.pop("run")(**given)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def tasks(folder: Path) -> Iterator[str]:
    """Lists the tasks of a folder with their bytes and metrics; no values are read."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    store = Store(folder)
    for name in store:
        file = store.file(name)
        try:
            about = read_header(file)["about"]
        except InputError as error:  # one damaged task hides no other
            yield f"{name}  {error}"
            continue
        yield f"{name}  {file.stat().st_size:,} bytes  {_metrics(about)}".rstrip()


def inspect(file: Path) -> Iterator[str]:
    """Says what a task is: its base, its metrics, and what of each tensor changed."""
    delta = load(file)
    about, base = delta.about, delta.about["base"]
    yield f"{file}: {file.stat().st_size:,} bytes, {delta}"
    yield f"base: {base['name'] or 'not named'}, fingerprint {base['arrays'][:12]}"
    for name in ("classes", "selection", "reads", "versions"):
        if about.get(name):
            yield f"{name}: {about[name]}"
    if _metrics(about):
        yield f"metrics: {_metrics(about)}"
    for path, array in sorted(delta.whole.items()):
        yield f"{path}: all of {list(array.shape)} {array.dtype}"
    for path, some in sorted(delta.elements.items()):
        share = 100 * len(some.places) / np.prod(some.shape)
        yield f"{path}: {len(some.places):,} of {list(some.shape)} ({share:.2f} %)"
    for path, (a, b, scale) in sorted(delta.factors.items()):
        yield f"{path}: {scale:.4g} * {list(a.shape)} {list(b.shape)}, rank {b.shape[0]}"


def verify(file: Path) -> Iterator[str]:
    """Reads a file whole, and says that its digest holds."""
    yield f"{file}: {load(file)}, whole"


def compare(file: Path, other: Path) -> Iterator[str]:
    """Says how two tasks overlap, tensor by tensor."""
    one, two = load(file), load(other)
    same = one.about["base"]["arrays"] == two.about["base"]["arrays"]
    size, other_size = (f"{f.stat().st_size:,}" for f in (file, other))
    base = "the same base" if same else "different bases"
    yield f"{base}; files of {size} and {other_size} bytes; changed numbers:"
    yield "tensor  first  second  both"
    sizes = [_changed(delta) for delta in (one, two)]
    for path in sorted(sizes[0] | sizes[1]):
        counts = [size.get(path, 0) for size in sizes]
        yield f"{path}  {counts[0]:,}  {counts[1]:,}  {_common(one, two, path):,}"


def merge(file: Path, folder: Path, base: str | None) -> Iterator[str]:
    """Writes a full checkpoint of a task, in the layout of its base's file."""
    merged = write_merged(open_task(file, base), folder)
    yield f"{folder}: {len(merged.changed)} tensors differ from the base's"
    if merged.head.name == HEAD:
        yield (
            f"the head is in {merged.head}, as weight and bias of a linear layer: the "
            "class of the base's file does not compute it"
        )


def undo(merged: Path, folder: Path) -> Iterator[str]:
    """Writes the base's checkpoint again, from a folder that `merge` wrote."""
    yield f"{restore(merged, folder)}: the base again"


def _changed(delta: Delta) -> dict[str, int]:
    whole = {path: array.size for path, array in delta.whole.items()}
    whole |= {p: len(a) * b.shape[1] for p, (a, b, _) in delta.factors.items()}
    return whole | {path: len(some.places) for path, some in delta.elements.items()}


def _common(one: Delta, two: Delta, path: str) -> int:
    """Returns how many places of a tensor both change; a whole tensor has all of them."""
    if path in one.elements and path in two.elements:
        first, second = one.elements[path].places, two.elements[path].places
        return len(np.intersect1d(first, second, assume_unique=True))
    return min(_changed(delta).get(path, 0) for delta in (one, two))


def _metrics(about: Any) -> str:
    scores = about.get("metrics", {})
    if not isinstance(scores, dict):
        return str(scores)
    shown = {n: f"{v:.4g}" if isinstance(v, float) else v for n, v in scores.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


COMMANDS: dict[str, tuple[Callable[..., Iterator[str]], tuple[str, ...]]] = {
    "list": (tasks, ("folder",)),
    "inspect": (inspect, ("file",)),
    "verify": (verify, ("file",)),
    "compare": (compare, ("file", "other")),
    "merge": (merge, ("file", "folder")),
    "undo": (undo, ("merged", "folder")),
}

if __name__ == "__main__":
    main()

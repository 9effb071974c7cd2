"""`python -m subtune_jax.serving`: what tasks of a store say of files, or of lines."""

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from subtune_jax.deltas.file import from_bytes
from subtune_jax.deltas.open import open_base
from subtune_jax.deltas.store import Store
from subtune_jax.errors import InputError
from subtune_jax.network import Network, Pixels
from subtune_jax.serving.server import Answer, serve

BATCH = 64


def main() -> None:
    """Prints a line for each input and task; exit code 1 where one has no answer, and 2 for
    bad arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m subtune_jax.serving",
        description="For each input and task: the class, its probability, the task and the "
        "input, between tabs.",
    )
    parser.add_argument("--store", type=Path, required=True, help="folder of tasks")
    parser.add_argument(
        "--task", action="append", required=True, help="a task; may stand several times"
    )
    parser.add_argument(
        "--base", help="folder or hub id; default: as the task names it"
    )
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="images, or texts, one on each line (a tab between two of a pair); default: "
        "lines of standard input, for images their files",
    )
    given = parser.parse_args()
    try:
        wrong = answered(given.store, given.task, given.base, given.files)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if wrong else 0)


def answered(
    folder: Path, tasks: list[str], base: str | None, files: list[Path]
) -> int:
    """Prints all answers, and returns how many inputs had none."""
    store, wrong = Store(folder), 0
    network = _base(store, tasks, base)
    server, lines = serve(network, store), inputs(network, files)
    while batch := list(islice(lines, BATCH)):
        examples = [_example(network, line) for line in batch]
        every = [(line, task) for line in batch for task in tasks]
        answers = server(
            [example for example in examples for _ in tasks],
            [task for _, task in every],
        )
        for (line, _), answer in zip(every, answers, strict=True):
            wrong += bool(answer.error)
            if answer.error:
                print(f"error: {answer.task}: {line}: {answer.error}", file=sys.stderr)
            else:
                print(f"{shown(answer)}\t{answer.task}\t{line}")
    return wrong


def _base(store: Store, tasks: list[str], base: str | None) -> Network:
    """Returns the base of the first task that can be read; raises the first one's error."""
    errors = []
    for name in tasks:
        try:
            delta = from_bytes(store.get(name), str(store.file(name)))
            return open_base(delta, base)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def inputs(network: Network, files: list[Path]) -> Iterator[str]:
    """Yields names of images, or lines of texts."""
    pixels = network.source is not None and isinstance(network.source.reads, Pixels)
    if pixels and files:
        yield from map(str, files)
        return
    if not files:
        yield from _lines(sys.stdin, "standard input")
        return
    for file in files:
        try:
            with file.open(encoding="utf-8") as text:
                yield from _lines(text, str(file))
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from None


def _lines(text: TextIO, name: str) -> Iterator[str]:
    try:
        yield from (line.rstrip("\n") for line in text if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(
            f"cannot read {name}: it is not UTF-8, {error.reason}"
        ) from None


def shown(answer: Answer) -> str:
    """Returns the label and its probability, or the number of a task with one output."""
    if answer.label:
        return f"{answer.label}\t{answer.scores[answer.label]:.3f}"
    return "\t".join(f"{value:.4g}" for value in answer.scores.values())


def _example(network: Network, line: str) -> str | tuple[str, ...]:
    pixels = network.source is not None and isinstance(network.source.reads, Pixels)
    parts = tuple(line.split("\t"))
    return line if pixels or len(parts) == 1 else parts


if __name__ == "__main__":
    main()

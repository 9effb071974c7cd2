"""Answers from a store of many tasks on one base, those in use in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax.data.inputs import require_inputs
from subtune_jax.deltas.file import from_bytes
from subtune_jax.deltas.store import Store
from subtune_jax.errors import InputError, require_whole
from subtune_jax.memory import make_room
from subtune_jax.network import Network, Tokens, require_network
from subtune_jax.serving.bank import Prepared
from subtune_jax.serving.mixed import Mixed
from subtune_jax.serving.read import read, reader

MEMORY = 1 << 30


class Answer(NamedTuple):
    """What a task says of one input.

    label: the class with the highest score, by its number where classes have no names;
    empty for one output, and for outputs per token.
    scores: `{class: probability}`, or `{"value": number}` of a task with one output.
    outputs: what the head gave. error: why there is no answer, one sentence; else empty.
    """

    task: str
    label: str
    scores: Mapping[str, float]
    outputs: Any
    error: str = ""


class Version(NamedTuple):
    """A task in memory: its class names, and the file that it was read from."""

    classes: tuple[str, ...]
    file: tuple[int, int, int]


class Server:
    """Tasks of a store on one base; see `serve`."""

    def __init__(
        self,
        network: Network,
        store: Store,
        memory: int,
        words: Any,
        longest: int | None,
    ):
        self.mixed, self.store, self.memory = Mixed(network), store, memory
        self.words, self.longest = words, longest
        self.shapes: set[tuple] = set()  # of batches that were met
        self.versions: dict[str, Version] = {}  # the one used longest ago first

    def __repr__(self) -> str:
        used = self.mixed.nbytes()
        return f"Server({self.store}, {len(self.versions)} tasks in {used:,} bytes)"

    def __call__(self, inputs: Any, tasks: str | Sequence[str]) -> list[Answer]:
        """Returns the answer to each input.

        inputs: arrays, texts or images, see `read`. tasks: the task of each, or one for
        all. A row that has no answer (its task is unknown, of another base or damaged, its
        file is none) says so in `Answer.error`, and all others are answered. Raises
        `InputError` for no input, another number of tasks, and arrays that the base cannot
        take.
        """
        x, wrong = read(self.mixed.network, inputs, self.words, self.longest)
        if wrong and len(wrong) == len(inputs):
            rows = len(inputs)
        else:
            rows = require_inputs(self.mixed.network, x)
        names = _names(tasks, rows)
        answers = {i: Answer(names[i], "", {}, None, why) for i, why in wrong.items()}
        shapes = tuple(getattr(leaf, "shape", len(leaf)) for leaf in jax.tree.leaves(x))
        if shapes not in self.shapes:  # may compile: old programs go if they crowd it
            self.shapes.add(shapes)
            make_room()
        waiting = [i for i in range(rows) if i not in answers]
        while waiting:
            refused, ready = self._ready({names[i]: None for i in waiting})
            for i in waiting:
                if names[i] in refused:
                    answers[i] = Answer(names[i], "", {}, None, refused[names[i]])
            now = [i for i in waiting if names[i] in ready]
            if now:
                taken = jax.tree.map(lambda leaf, now=now: leaf[np.array(now)], x)
                outputs = self.mixed(taken, [names[i] for i in now])
                for i, y in zip(now, outputs, strict=True):
                    answers[i] = answer(names[i], self.versions[names[i]].classes, y)
            waiting = [i for i in waiting if i not in answers]
        return [answers[i] for i in range(rows)]

    def _ready(self, names: Mapping[str, None]) -> tuple[dict[str, str], set[str]]:
        """Returns what is wrong with tasks, and those in memory: at least one of the rest,
        and as many as fit together."""
        refused: dict[str, str] = {}
        ready: set[str] = set()
        for name in names:
            try:
                if not self._take(name, ready):
                    break
                ready.add(name)
            except InputError as error:
                refused[name] = str(error)
                self._forget(name)
        return refused, ready

    def _take(self, name: str, pinned: set[str]) -> bool:
        """Brings a task into memory as its file is now; returns whether there was room."""
        file = _state(self.store, name)
        if name in self.versions and self.versions[name].file == file:
            self.versions[name] = self.versions.pop(name)  # used last
            return True
        delta = from_bytes(self.store.get(name), str(self.store.file(name)))
        prepared = self.mixed.bank.prepare(name, delta)
        self._forget(name)
        if not self._shrink(pinned, prepared):
            if pinned:
                return False
            need = self.mixed.bank.growth(prepared)
            raise InputError(
                f"the task {name!r} takes {need:,} bytes, and the server has "
                f"{self.memory:,}: give it more by memory="
            )
        self.mixed.bank.put(name, prepared)
        self.versions[name] = Version(tuple(delta.about.get("classes", ())), file)
        return True

    def _shrink(self, pinned: set[str], new: Prepared) -> bool:
        """Lets go of the tasks used longest ago until a new one has room; returns whether."""
        bank = self.mixed.bank
        while bank.nbytes() + bank.growth(new) > self.memory:
            oldest = next((name for name in self.versions if name not in pinned), None)
            if oldest is None:
                return False
            self._forget(oldest)
        return True

    def _forget(self, name: str) -> None:
        if self.versions.pop(name, None) is not None:
            self.mixed.drop(name)


def serve(
    network: Network,
    store: Store | str | Path,
    *,
    memory: int = MEMORY,
    tokenizer: Any = None,
    max_length: int | None = None,
) -> Server:
    """Returns a function that answers for the tasks of a store on one base.

        server = serve(network, "tasks")
        answers = server(["a text", "another"], ["reviews", "spam"])

    store: a `Store` or its folder. A task is read when it is first asked for, and again
    when its file has changed. memory: bytes for tasks beside the base; the least recently
    used ones leave first. tokenizer: of a base without a folder. max_length: longest text in
    tokens; default: 128, or what the base takes. Raises `InputError` for what is not a
    network, a folder that is not there, and a memory that is not a positive number.
    """
    require_network(network)
    require_whole(memory=memory, max_length=1 if max_length is None else max_length)
    reads = None if network.source is None else network.source.reads
    most = reads.max_length if isinstance(reads, Tokens) else None
    if None not in (max_length, most) and max_length > most:  # type: ignore[operator]
        raise InputError(f"max_length is {max_length}: the base takes {most} tokens")
    if tokenizer is not None and not hasattr(tokenizer, "encode_batch"):
        kind = type(tokenizer).__name__
        raise InputError(f"tokenizer must be one of the package tokenizers, got {kind}")
    if not isinstance(store, Store | str | Path):
        raise InputError(
            f"store must be a Store or a folder, got {type(store).__name__}"
        )
    store = store if isinstance(store, Store) else Store(store)
    if not store.folder.is_dir():
        raise InputError(f"there is no folder {store.folder}")
    words = reader(network) if tokenizer is None else tokenizer
    return Server(network, store, memory, words, max_length)


def answer(task: str, classes: Sequence[str], outputs: np.ndarray) -> Answer:
    """Returns the outputs of one input with the names of their classes: softmax of several,
    the number of one. Outputs per token have no label."""
    if outputs.ndim != 1:
        return Answer(task, "", {}, outputs)
    if len(outputs) == 1:
        return Answer(task, "", {"value": float(outputs[0])}, outputs)
    named = len(set(classes)) == len(classes) == len(outputs)
    names = list(classes) if named else [str(i) for i in range(len(outputs))]
    logits = outputs.astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    scores = dict(zip(names, map(float, shares), strict=True))
    return Answer(task, names[int(np.argmax(outputs))], scores, outputs)


def _names(tasks: Any, rows: int) -> list[str]:
    """Returns the task of each row."""
    if isinstance(tasks, str):
        return [tasks] * rows
    if not isinstance(tasks, Sequence | np.ndarray):
        raise InputError(
            f"tasks must be a name, or a list of names, got {type(tasks).__name__}"
        )
    if len(tasks) != rows:
        raise InputError(
            f"there are {rows} inputs and {len(tasks)} names of tasks: give one for each, "
            "or one name for all"
        )
    for name in tasks:
        if not isinstance(name, str):
            raise InputError(f"names of tasks must be texts, got {type(name).__name__}")
    return list(tasks)


def _state(store: Store, name: str) -> tuple[int, int, int]:
    """Returns what tells a task's file from the one before it. Raises `InputError`, with the
    nearest name, where there is none."""
    file = store.file(name)
    try:
        state = file.stat()
    except OSError:
        store.get(name)  # which says what is wrong, or has it by now
        try:
            state = file.stat()
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    return state.st_mtime_ns, state.st_size, state.st_ino

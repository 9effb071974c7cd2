"""Answers from a store of many tasks on one base, those in use in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax.data.inputs import require_inputs
from subtune_jax.deltas.file import from_bytes
from subtune_jax.deltas.store import Store
from subtune_jax.errors import InputError, require_type, require_whole
from subtune_jax.network import Network
from subtune_jax.serving.mixed import Mixed
from subtune_jax.serving.read import read, reader

MEMORY = 1 << 30


class Answer(NamedTuple):
    """What a task says of one input.

    label: the name of the class with the highest score; empty where there are no classes.
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
        rows = require_inputs(self.mixed.network, x, self.mixed.code)
        names = _names(tasks, rows)
        errors = {i: Answer(names[i], "", {}, None, why) for i, why in wrong.items()}
        answers: dict[int, Answer] = dict(errors)
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
        self._shrink(())
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
        need = self.mixed.need(delta)
        if need > self.memory:
            raise InputError(
                f"the task {name!r} takes {need:,} bytes, and the server has "
                f"{self.memory:,}: give it more by memory="
            )
        self._forget(name)
        if not self._shrink(pinned, self.mixed.growth(delta)) and pinned:
            return False
        self.mixed.put(name, delta)
        self.versions[name] = Version(tuple(delta.about.get("classes", ())), file)
        return True

    def _shrink(self, pinned: Any, room: int = 0) -> bool:
        """Lets go of the tasks used longest ago until there is room; returns whether."""
        for name in [name for name in self.versions if name not in pinned]:
            if self.mixed.nbytes() + room <= self.memory:
                return True
            self._forget(name)
        return self.mixed.nbytes() + room <= self.memory

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
    when its file has changed. memory: bytes for tasks beside the base; those used longest
    ago are let go of. tokenizer: of a base without a folder. max_length: longest text in
    tokens; default: 128, or what the base takes. Raises `InputError` for what is not a
    network, and a memory that is not a positive number.
    """
    require_type(Network, network=network)
    require_whole(memory=memory)
    if not isinstance(store, Store | str | Path):
        raise InputError(f"store must be a Store or a folder, got {type(store).__name__}")
    store = store if isinstance(store, Store) else Store(store)
    words = reader(network) if tokenizer is None else tokenizer
    return Server(network, store, memory, words, max_length)


def answer(task: str, classes: Sequence[str], outputs: np.ndarray) -> Answer:
    """Returns the outputs of one input with the names of their classes: softmax of several,
    the number of one. Outputs per token have no label."""
    if outputs.ndim != 1:
        return Answer(task, "", {}, outputs)
    if len(outputs) == 1:
        return Answer(task, "", {"value": float(outputs[0])}, outputs)
    named = len(classes) == len(outputs)
    names = list(classes) if named else [str(i) for i in range(len(outputs))]
    shares = np.exp(outputs - outputs.max()) / np.exp(outputs - outputs.max()).sum()
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
    return list(tasks)


def _state(store: Store, name: str) -> tuple[int, int, int]:
    """Returns what tells a task's file from the one before it. Raises `InputError`, with the
    nearest name, where there is none."""
    try:
        found = store.file(name).stat()
    except OSError:
        store.get(name)  # which says what is wrong
        raise
    return found.st_mtime_ns, found.st_size, found.st_ino

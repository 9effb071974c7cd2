"""One batch, each row with its own task: what the tasks share is computed once.

Stages that tasks changed in small parts (biases, norms, low-rank factors) run once on the
whole batch, with each row's own values. A task that changed a stage in large leaves runs
it alone, on its own rows.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data.inputs import require_inputs
from subtune_jax.deltas.delta import Delta
from subtune_jax.errors import InputError
from subtune_jax.flops import contraction_flops
from subtune_jax.network import Network, Stage, forward, require_network
from subtune_jax.serving.bank import Bank, Held, Kind
from subtune_jax.serving.factored import NotFactored
from subtune_jax.serving.groups import by_group
from subtune_jax.serving.parts import stage_of
from subtune_jax.serving.rows import (
    forward_rows,
    heads_program,
    kernels_of,
    rows_program,
)


class Mixed:
    """Tasks in memory, and the function of a batch whose rows belong to different ones.

        mixed = Mixed(network)
        mixed.put("reviews", delta)
        mixed.put("spam", other)
        outputs = mixed(x, ["spam", "reviews", "spam"])  # one array for each row

    all_by_row: large leaves are gathered by row too: one program, and as many copies of a
    changed stage as a batch has rows.
    """

    def __init__(self, network: Network, *, all_by_row: bool = False):
        require_network(network)
        self.bank = Bank(network, all_by_row)
        self.network = self.bank.network

    def put(self, name: str, delta: Delta) -> None:
        """Takes a task into memory, in the place of an older one of that name. Raises
        `InputError` for a delta of another base; then all is as it was."""
        self.bank.put(name, self.bank.prepare(name, delta))

    def drop(self, name: str) -> None:
        """Lets go of a task, whose place another one takes. Raises `InputError` for an
        unknown one."""
        self.bank.drop(name)

    def nbytes(self) -> int:
        """Returns the bytes of all that is held beside the base."""
        return self.bank.nbytes()

    def __call__(self, x: Any, tasks: Sequence[str]) -> list[np.ndarray]:
        """Returns the outputs of each row of a batch, in its task's classes: stored
        statistics, no dropout. tasks: the task of each row. Raises `InputError` for inputs
        that the base cannot take, and for a task that is not here."""
        held, x = self._filled_up(x, tasks)
        outputs = self._outputs(held, tree.beside(x, self.network.params))
        parts = dict(zip(_kinds(held), jax.device_get(outputs), strict=True))
        return [
            parts[one.kind][i][..., : one.prepared.outputs]
            for i, one in enumerate(held[: len(tasks)])
        ]

    def flops(self, x: Any, tasks: Sequence[str]) -> int:
        """Returns the contraction FLOPs of a batch, with the rows that fill it up. Raises
        `InputError` as a call does."""
        held, x = self._filled_up(x, tasks)
        return contraction_flops(partial(self._outputs, held), x)

    def _filled_up(self, x: Any, tasks: Sequence[str]) -> tuple[list[Held], Any]:
        """Returns the tasks and inputs of a batch, filled up by its first rows."""
        rows = require_inputs(self.network, x)
        if isinstance(tasks, str) or len(tasks) != rows:
            names = repr(tasks) if isinstance(tasks, str) else f"{len(tasks)} names"
            raise InputError(f"expected a task for each of {rows} inputs, got {names}")
        for name in tasks:
            self.bank.require(name)
        # A power of two: each number of rows would be a program of its own.
        index = np.arange(1 << (rows - 1).bit_length()) % rows
        x = jax.tree.map(lambda leaf: leaf[index], x)
        return [self.bank.tasks[tasks[i]] for i in index.tolist()], x

    def require_factored(self, x: Any) -> None:
        """Marks stages that use a factored kernel other than in a product: tasks with such
        factors run them alone."""
        bank, (stages, params, stats) = self.bank, self.network[:3]
        kernels = kernels_of(bank.rows.arrays)
        for i, stage in enumerate(stages[:-1]):
            own = frozenset(path for path in kernels if stage_of(path) == stage.name)
            seen = bank.checked.get(stage.name, frozenset())
            if stage.name in bank.unfactored or own <= seen:
                continue
            before = partial(forward, stages, stop=i)
            y, _ = jax.eval_shape(before, params, stats, x)
            slots = jax.ShapeDtypeStruct((len(jax.tree.leaves(y)[0]),), np.int32)
            alone = partial(forward_rows, stages[i : i + 1])
            try:
                jax.eval_shape(alone, params, stats, bank.rows.arrays, slots, y)
                bank.checked[stage.name] = own
            except NotFactored:
                bank.unfactor(stage.name)

    def _outputs(self, held: Sequence[Held], x: Any) -> list[jax.Array]:
        """Returns what the heads of each of `_kinds(held)` give for all rows."""
        self.require_factored(x)
        for stages in self.bank.runs():
            x = self._stages(stages, held, x)
        return [self._heads(kind, held, x) for kind in _kinds(held)]

    def _stages(self, stages: tuple[Stage, ...], held: Sequence[Held], x: Any) -> Any:
        """Returns what stages give. Tasks that run them alone do so on their own rows, and
        all other rows share one call."""
        groups: dict[tuple, list[int]] = {}
        for i, one in enumerate(held):
            alone = self.bank.runs_alone(one, stages[0].name)
            key = tuple(one.keys[stage.name] for stage in stages) if alone else ()
            groups.setdefault(key, []).append(i)
        together = partial(self._by_row, stages, held)
        calls = [
            (rows, partial(self._alone, stages, held[rows[0]]) if key else together)
            for key, rows in groups.items()
        ]
        return by_group(calls, x)

    def _by_row(
        self, stages: tuple[Stage, ...], held: Sequence[Held], rows: np.ndarray, x: Any
    ) -> Any:
        names = {stage.name for stage in stages}
        params, stats = (
            {name: values[name] for name in names}
            for values in (self.network.params, self.network.stats)
        )
        arrays = self.bank.arrays_of(names)
        slots = self._beside([held[i].slot for i in rows.tolist()])
        return rows_program(stages)(params, stats, arrays, slots, x)

    def _alone(
        self, stages: tuple[Stage, ...], one: Held, rows: np.ndarray, x: Any
    ) -> Any:
        pairs = {stage.name: self.bank.own(one, stage.name) for stage in stages}
        params, stats = ({n: pair[i] for n, pair in pairs.items()} for i in (0, 1))
        # Tasks without arrays by row at these stages share this program.
        slots = self._beside([0] * len(rows))
        return rows_program(stages)(params, stats, {}, slots, x)

    def _heads(self, kind: Kind, held: Sequence[Held], x: Any) -> jax.Array:
        if kind.by_row:
            weights = tree.unflatten(self.bank.heads[kind].arrays)
            pair = (weights.get("params", {}), weights.get("stats", {}))
            own = [one.head_slot if one.kind == kind else 0 for one in held]
            return heads_program(kind.apply)(pair, self._beside(own), x)
        groups: dict[int, list[int]] = {}
        for i, one in enumerate(held):
            if one.kind == kind:
                groups.setdefault(id(one), []).append(i)
        program = rows_program((Stage("head", kind.apply),))

        def head(one: Held, rows: np.ndarray, x: Any) -> Any:
            params, stats = ({"head": part} for part in one.prepared.head)
            return program(params, stats, {}, self._beside([0] * len(rows)), x)

        calls = [(rows, partial(head, held[rows[0]])) for rows in groups.values()]
        return by_group(calls, x)

    def _beside(self, slots: Sequence[int]) -> jax.Array:
        return tree.beside(np.array(slots, np.int32), self.network.params)


def _kinds(held: Sequence[Held]) -> list[Kind]:
    return list(dict.fromkeys(one.kind for one in held))

"""Tasks in memory: what each has by row, and what it has as weights of its own."""

from collections.abc import Callable, Container, Mapping
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.deltas.delta import Delta, base_fingerprint, flat
from subtune_jax.deltas.swap import apply, require_base
from subtune_jax.errors import require_type, unknown
from subtune_jax.network import Network, Stage
from subtune_jax.serving.parts import (
    body_of,
    changes,
    head_of_task,
    restricted,
    stage_of,
)
from subtune_jax.serving.rows import A, B, Rows, kernels_of

HEAD_SIZE = 65_536  # numbers of a head; a larger one runs by task, not gathered by row


class Kind(NamedTuple):
    """Heads that share a program: their function, and shapes and types of their leaves."""

    apply: Callable
    leaves: tuple[tuple[str, tuple[int, ...], str], ...]
    by_row: bool


class Prepared(NamedTuple):
    """A delta as a bank takes it. large: the stages that it changed in large leaves. values:
    what it has by row in all others. head: (params, stats) of its last stage, and outputs
    how many of its columns are real (None: all)."""

    delta: Delta
    kind: Kind
    head: Any
    outputs: int | None
    large: frozenset[str]
    values: Mapping[str, Any]


class Held(NamedTuple):
    """A task in memory. keys: `{stage: SHA-256 of what it changed there}`. slot, head_slot:
    its places by row. own: `{stage: (params, stats)}` of its large stages."""

    prepared: Prepared
    keys: Mapping[str, str]
    slot: int
    head_slot: int
    own: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        return self.prepared.kind


class Bank:
    """Tasks on one base by name. Those that changed a stage in small parts have them in
    arrays by row; one that changed large leaves has the whole stage, and runs it alone."""

    def __init__(self, network: Network, all_by_row: bool):
        self.fingerprint = base_fingerprint(network)
        params, stats = tree.on_device((network.params, network.stats))
        self.network = network._replace(params=params, stats=stats)
        self.leaves, self.all_by_row = flat(self.network), all_by_row
        self.apart: set[str] = set()  # stages that a task ever ran alone
        self._empty()

    def _empty(self) -> None:
        self.tasks: dict[str, Held] = {}
        self.rows = Rows(next(iter(self.leaves.values())))
        self.heads: dict[Kind, Rows] = {}
        # Stages that use a factored kernel other than in a product, and of all others the
        # kernels with which that was checked.
        self.unfactored: set[str] = set()
        self.checked: dict[str, frozenset[str]] = {}
        self.own_bytes = 0

    def runs_alone(self, one: Held, stage: str) -> bool:
        """Returns whether a task runs a stage alone, with weights of its own."""
        kernels = kernels_of(one.prepared.values) if stage in self.unfactored else ()
        return stage in one.own or any(stage_of(path) == stage for path in kernels)

    def runs(self) -> list[tuple[Stage, ...]]:
        """Returns the stages of the body in runs of those that no task ever ran alone; each
        of the others is a run of its own."""
        # Whatever a batch or the memory holds: boundaries only come, so that a stage meets
        # few programs.
        runs = groupby(
            self.network.stages[:-1],
            lambda stage: stage.name if stage.name in self.apart else None,
        )
        return [tuple(stages) for _, stages in runs]

    def unfactor(self, stage: str) -> None:
        """Lets tasks with factors of a stage's kernels run it alone."""
        self.unfactored.add(stage)
        self.apart.add(stage)

    def arrays_of(self, stages: Container[str]) -> dict[str, jax.Array]:
        """Returns the arrays by row of stages, without factors that do not stay apart."""
        return {
            path: array
            for path, array in self.rows.arrays.items()
            if stage_of(path) in stages
            and not (path.endswith((A, B)) and stage_of(path) in self.unfactored)
        }

    def own(self, one: Held, stage: str) -> tuple[Any, Any]:
        """Returns the (params, stats) of a stage that a task runs alone."""
        if stage in one.own:
            return one.own[stage]
        # In factors: not kept, or every such task would hold a whole stage.
        return self.weights(one.prepared.delta, stage)

    def prepare(self, name: str, delta: Delta) -> Prepared:
        """Returns a delta as `put` takes it. Raises `InputError` for one of another base."""
        require_type(Delta, **{f"the task {name!r}": delta})
        require_base(self.network, delta, self.fingerprint)
        stage, head, outputs = head_of_task(self.network, delta, self.fingerprint)
        leaves = tuple((p, x.shape, str(x.dtype)) for p, x in named(head).items())
        by_row = outputs is not None and tree.count(head) <= HEAD_SIZE
        kind = Kind(stage.apply, leaves, by_row or self.all_by_row)
        return Prepared(delta, kind, head, outputs, *self._large_and_small(delta))

    def put(self, name: str, prepared: Prepared) -> None:
        """Takes a task in, in the place of an older one of that name."""
        if name in self.tasks:
            self.drop(name)
        delta, kind, head, _, large, values = prepared
        slot, head_slot = self.rows.add(values, self._default), 0
        if kind.by_row:
            rows = self.heads.setdefault(kind, Rows(self.rows.like))
            head_slot = rows.add(named(head), lambda _, value: jnp.zeros_like(value))
        own = {stage: self.weights(delta, stage) for stage in large}
        self.apart |= large
        self.own_bytes += self._own_bytes(prepared)
        self.tasks[name] = Held(prepared, changes(delta), slot, head_slot, own)

    def drop(self, name: str) -> None:
        """Lets go of a task. Raises `InputError` for an unknown one."""
        self.require(name)
        one = self.tasks.pop(name)
        if not self.tasks:  # slots do not become fewer otherwise
            self._empty()
            return
        prepared, kind = one.prepared, one.kind
        self.rows.remove(one.slot, prepared.values)
        if kind.by_row:
            self.heads[kind].remove(one.head_slot, named(prepared.head))
            if not self.heads[kind].arrays:
                del self.heads[kind]
        self.own_bytes -= self._own_bytes(prepared)

    def nbytes(self) -> int:
        """Returns the bytes of all that is held beside the base."""
        arrays = [self.rows, *self.heads.values()]
        return self.own_bytes + sum(rows.nbytes() for rows in arrays)

    def growth(self, prepared: Prepared) -> int:
        """Returns by how many bytes `nbytes` grows when a task is put in."""
        kind, own = prepared.kind, self._own_bytes(prepared)
        rows = self.heads.get(kind, Rows(self.rows.like))
        heads = rows.growth(named(prepared.head)) if kind.by_row else 0
        return own + heads + self.rows.growth(prepared.values)

    def weights(self, delta: Delta, stage: str) -> tuple[Any, Any]:
        """Returns the (params, stats) of a stage of the body as a task has them."""
        tuned = self._after(
            restricted(body_of(self.network, delta), partial(_is, stage))
        )
        return tuned.params[stage], tuned.stats[stage]

    def require(self, name: str) -> None:
        """Raises `InputError`, with the nearest name, for a task that is not here."""
        if name not in self.tasks:
            raise unknown("task", name, self.tasks)

    def _own_bytes(self, prepared: Prepared) -> int:
        """Returns the bytes of a task's delta, head and stages; a leaf of the base counts
        where it is in a stage of its own."""
        delta = sum(
            x.nbytes
            for x in jax.tree.leaves(prepared.delta[:3])
            if hasattr(x, "nbytes")
        )
        stages = [x for p, x in self.leaves.items() if stage_of(p) in prepared.large]
        return delta + tree.nbytes((prepared.head, stages))

    def _large_and_small(self, delta: Delta) -> tuple[frozenset[str], dict[str, Any]]:
        """Returns the stages with a large change, and what is small of all others."""
        body = body_of(self.network, delta)
        if self.all_by_row:
            after = flat(self._after(body))
            return frozenset(), {p: after[p] for part in body[:3] for p in part}
        leaves = self.leaves
        large = {
            stage_of(p) for p in [*body.whole, *body.elements] if leaves[p].ndim > 1
        }
        large |= {stage_of(path) for path in body.factors if leaves[path].ndim != 2}
        small = restricted(body, lambda path: stage_of(path) not in large)
        after = flat(self._after(small._replace(factors={})))
        values = {path: after[path] for path in [*small.whole, *small.elements]}
        for path, (a, b, scale) in small.factors.items():
            dtype = leaves[path].dtype
            scaled = jnp.asarray(a, dtype) * jnp.float32(scale)
            values[path + A] = scaled.astype(dtype)
            values[path + B] = jnp.asarray(b, dtype)
        return frozenset(large), values

    def _after(self, delta: Delta) -> Network:
        return apply(self.network, delta, fingerprint=self.fingerprint)[0]

    def _default(self, path: str, value: Any) -> jax.Array:
        """Returns what a row has that a task did not change: the base's leaf; factors of 0."""
        leaf = self.leaves.get(path)
        return jnp.zeros_like(value) if leaf is None else jnp.asarray(leaf)


def named(head: tuple[Any, Any]) -> dict[str, Any]:
    """Returns the leaves of a head's (params, stats) by path."""
    params, stats = head
    return tree.flatten({"params": params, "stats": stats})


def _is(stage: str, path: str) -> bool:
    return stage_of(path) == stage

"""One batch, each row with its own task: what the tasks share is computed once.

Stages that tasks changed in small parts (biases, norms, low-rank factors) run once on the
whole batch, with each row's own values. Stages that a task changed in large leaves run
once for each of their distinct weights, on the rows that have them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import function_identity, tree
from subtune_jax.data.inputs import require_inputs
from subtune_jax.deltas.delta import Delta, base_fingerprint, flat
from subtune_jax.deltas.swap import apply, require_base
from subtune_jax.errors import InputError, require_type, unknown
from subtune_jax.flops import contraction_flops
from subtune_jax.network import Network, Stage, forward, require_network
from subtune_jax.serving.factored import NotFactored
from subtune_jax.serving.groups import by_group
from subtune_jax.serving.parts import (
    changes,
    head_alone,
    on_device,
    restricted,
    widened_head,
)
from subtune_jax.serving.rows import Rows, forward_rows, heads_program, rows_program

HEAD_SIZE = 65_536  # numbers of a head; a larger one runs by task, not gathered by row


class Kind(NamedTuple):
    """Heads that share a program: their function, and the shapes of their leaves."""

    apply: Callable
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    by_row: bool


class Held(NamedTuple):
    """A task in memory. keys: `{stage: SHA-256 of what it changed there}`. head: (params,
    stats) of its head, and outputs how many of its columns are real (None: all). own:
    weights of stages that run by task, from when they are first needed."""

    delta: Delta
    slot: int
    keys: Mapping[str, str]
    kind: Kind
    head: Any
    outputs: int | None
    own: dict[str, Any]


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
        self.fingerprint = base_fingerprint(network)
        params, stats = on_device((network.params, network.stats))
        self.network = network._replace(params=params, stats=stats)
        self.code = function_identity.fingerprint(network.stages)
        self.all_by_row = all_by_row
        self.tasks: dict[str, Held] = {}
        self.by_task: set[str] = set()  # stages that run once for each distinct weights
        self.factored: set[str] = set()  # stages that are seen to keep factors apart
        self._empty()

    def _empty(self) -> None:
        self.rows = Rows(self._leaf())
        self.heads: dict[Kind, Rows] = {}
        self.free: list[int] = []
        self.used = 0  # slots that were given out so far

    def put(self, name: str, delta: Delta) -> None:
        """Takes a task into memory, in the place of an older one of that name. Raises
        `InputError` for a delta of another base; then all is as it was."""
        require_type(Delta, **{f"the task {name!r}": delta})
        require_base(self.network, delta, self.fingerprint)
        kind, head, outputs = self._head(delta)
        large, values = self._divided(delta)
        if name in self.tasks:
            self.drop(name)
        slot = self.free.pop() if self.free else self.used
        self.used = max(self.used, slot + 1)
        self.by_task |= large
        _write(self.rows, slot, values, self._default)
        if kind.by_row:
            rows = self.heads.setdefault(kind, Rows(self._leaf()))
            _write(rows, slot, _flat(head), lambda _, value: jnp.zeros_like(value))
        one = Held(delta, slot, changes(delta), kind, head, outputs, {})
        self._weights(tuple(s for s in self.network.stages if s.name in large), one)
        self.tasks[name] = one

    def drop(self, name: str) -> None:
        """Lets go of a task, whose slot another one takes. Raises `InputError` for an
        unknown one."""
        self._require(name)
        self.free.append(self.tasks.pop(name).slot)
        if not self.tasks:  # slots do not become fewer otherwise
            self._empty()

    def nbytes(self) -> int:
        """Returns the bytes of all that is held beside the base."""
        rows = [self.rows, *self.heads.values()]
        return tree.nbytes([r.arrays for r in rows]) + sum(
            map(_own_bytes, self.tasks.values())
        )

    def need(self, delta: Delta) -> int:
        """Returns the bytes that a task takes for itself alone, about."""
        large = self._large(restricted(delta, lambda path: True))
        leaves = flat(self.network).items()
        own = [leaf for path, leaf in leaves if _stage(path) in large]
        return 2 * _delta_bytes(delta) + tree.nbytes(own)

    def growth(self, delta: Delta) -> int:
        """Returns by how many bytes `nbytes` will have grown after `put`, about."""
        full = not self.free and self.used == self.rows.slots
        rows = [self.rows, *self.heads.values()]
        return self.need(delta) + full * tree.nbytes([r.arrays for r in rows])

    def __call__(self, x: Any, tasks: Sequence[str]) -> list[np.ndarray]:
        """Returns the outputs of each row of a batch, in its task's classes: stored
        statistics, no dropout. tasks: the task of each row. Raises `InputError` for inputs
        that the base cannot take, and for a task that is not here."""
        rows = require_inputs(self.network, x, self.code)
        if isinstance(tasks, str) or len(tasks) != rows:
            names = repr(tasks) if isinstance(tasks, str) else f"{len(tasks)} names"
            raise InputError(f"expected a task for each of {rows} inputs, got {names}")
        for name in tasks:
            self._require(name)
        # A power of two: each number of rows would be a program of its own.
        index = np.arange(1 << (rows - 1).bit_length()) % rows
        x = jax.tree.map(lambda leaf: leaf[index], x)
        held = [self.tasks[tasks[i]] for i in index.tolist()]
        outputs = self._outputs(held, tree.beside(x, self.network.params))
        parts = dict(zip(_kinds(held), jax.device_get(outputs), strict=True))
        return [
            parts[one.kind][i][..., : one.outputs] for i, one in enumerate(held[:rows])
        ]

    def flops(self, x: Any, tasks: Sequence[str]) -> int:
        """Returns the contraction FLOPs of a batch of a power of two of rows."""
        held = [self.tasks[name] for name in tasks]
        return contraction_flops(partial(self._outputs, held), x)

    def _outputs(self, held: Sequence[Held], x: Any) -> list[jax.Array]:
        """Returns what the heads of each of `_kinds(held)` give for all rows."""
        slots = np.array([one.slot for one in held], np.int32)
        slots = tree.beside(slots, self.network.params)
        self._require_factored(x)
        stages = self.network.stages[:-1]
        for by_task, run in groupby(stages, lambda s: s.name in self.by_task):
            x = (self._by_task if by_task else self._by_row)(tuple(run), held, slots, x)
        return [self._heads(kind, held, slots, x) for kind in _kinds(held)]

    def _by_row(self, stages: tuple[Stage, ...], held: Any, slots: Any, x: Any) -> Any:
        names = {stage.name for stage in stages}
        arrays = {p: a for p, a in self.rows.arrays.items() if _stage(p) in names}
        state = _of(stages, self.network.params), _of(stages, self.network.stats)
        return rows_program(stages, self.code)(*state, arrays, slots, x)

    def _by_task(
        self, stages: tuple[Stage, ...], held: Sequence[Held], slots: Any, x: Any
    ) -> Any:
        groups: dict[tuple, list[int]] = {}
        for i, one in enumerate(held):
            key = tuple(one.keys.get(stage.name, "") for stage in stages)
            groups.setdefault(key, []).append(i)
        weights = {
            key: self._weights(stages, held[rows[0]]) for key, rows in groups.items()
        }
        return by_group(stages, self.code, groups, weights, x)

    def _weights(self, stages: tuple[Stage, ...], one: Held) -> tuple[Any, Any]:
        for stage in stages:
            if stage.name in one.keys and stage.name not in one.own:
                part = restricted(one.delta, partial(_inside, stage.name))
                tuned, _ = apply(self.network, part, fingerprint=self.fingerprint)
                one.own[stage.name] = tuned.params[stage.name], tuned.stats[stage.name]
        base = self.network
        pairs = {
            s.name: one.own.get(s.name, (base.params[s.name], base.stats[s.name]))
            for s in stages
        }
        params, stats = ({n: pair[i] for n, pair in pairs.items()} for i in (0, 1))
        return params, stats

    def _heads(self, kind: Kind, held: Sequence[Held], slots: Any, x: Any) -> jax.Array:
        if kind.by_row:
            weights = tree.unflatten(self.heads[kind].arrays)
            pair = (weights.get("params", {}), weights.get("stats", {}))
            return heads_program(kind.apply, self.code)(pair, slots, x)
        groups: dict[int, list[int]] = {}
        for i, one in enumerate(held):
            if one.kind == kind:
                groups.setdefault(one.slot, []).append(i)
        weights = {one.slot: tuple({"head": w} for w in one.head) for one in held}
        return by_group((Stage("head", kind.apply),), self.code, groups, weights, x)

    def _head(self, delta: Delta) -> tuple[Kind, Any, int | None]:
        """Returns the kind of a task's last stage, its (params, stats) and real outputs."""
        tuned, _ = apply(self.network, head_alone(delta), fingerprint=self.fingerprint)
        stage, outputs = tuned.stages[-1], None
        head = (tuned.params[stage.name], tuned.stats[stage.name])
        if delta.about["head"] is not None:
            head, outputs = widened_head(*head)
        shapes = tuple((path, leaf.shape) for path, leaf in _flat(head).items())
        by_row = tree.count(head) <= HEAD_SIZE and outputs is not None
        return Kind(stage.apply, shapes, by_row or self.all_by_row), head, outputs

    def _divided(self, delta: Delta) -> tuple[set[str], dict[str, Any]]:
        """Returns the stages with a large change, and what is small of all others."""
        leaves, body = flat(self.network), restricted(delta, lambda path: True)
        large = self._large(body)
        if self.all_by_row:
            after = self._after(body)
            return set(), {p: after[p] for part in body[:3] for p in part}
        small = restricted(delta, lambda path: _stage(path) not in large)
        after = self._after(small._replace(factors={}))
        values = {path: after[path] for path in [*small.whole, *small.elements]}
        for path, (a, b, scale) in small.factors.items():
            dtype = leaves[path].dtype
            values[f"{path}/a"] = jnp.asarray(a, dtype) * jnp.asarray(
                scale, jnp.float32
            )
            values[f"{path}/b"] = jnp.asarray(b, dtype)
        return large, values

    def _large(self, body: Delta) -> set[str]:
        """Returns the stages of which large leaves changed; none if all is gathered."""
        leaves = flat(self.network)
        large = {_stage(p) for p in [*body.whole, *body.elements] if leaves[p].ndim > 1}
        large |= {_stage(path) for path in body.factors if leaves[path].ndim != 2}
        return set() if self.all_by_row else large

    def _after(self, delta: Delta) -> dict[str, Any]:
        return flat(apply(self.network, delta, fingerprint=self.fingerprint)[0])

    def _default(self, path: str, value: Any) -> jax.Array:
        """Returns what a row has that a task did not change: the base's leaf; factors of 0."""
        leaves = flat(self.network)
        return jnp.asarray(leaves[path]) if path in leaves else jnp.zeros_like(value)

    def _require_factored(self, x: Any) -> None:
        """Lets stages run by task that do more with a factored kernel than a product."""
        names = {_stage(p) for p in self.rows.arrays if p.endswith("/a")}
        stages, params, stats = self.network[:3]
        for i, stage in enumerate(stages[:-1]):
            if stage.name not in names - self.factored - self.by_task:
                continue

            def run(params: Any, stats: Any, x: Any, i: int = i) -> Any:
                return forward(stages, params, stats, x, stop=i)[0]

            y = jax.eval_shape(run, params, stats, x)
            try:
                slots = jax.ShapeDtypeStruct((len(jax.tree.leaves(y)[0]),), np.int32)
                one = partial(forward_rows, stages[i : i + 1])
                jax.eval_shape(one, params, stats, self.rows.arrays, slots, y)
                self.factored.add(stage.name)
            except NotFactored:
                self.by_task.add(stage.name)

    def _leaf(self) -> Any:
        return jax.tree.leaves(self.network.params)[0]

    def _require(self, name: str) -> None:
        if name not in self.tasks:
            raise unknown("task", name, self.tasks)


def _write(rows: Rows, slot: int, values: Mapping[str, Any], default: Callable) -> None:
    for path, value in values.items():
        rows.declare(path, default(path, value))
    rows.reserve(slot + 1)
    rows.write(slot, values)


def _kinds(held: Sequence[Held]) -> list[Kind]:
    return list(dict.fromkeys(one.kind for one in held))


def _stage(path: str) -> str:
    return path.split("/")[1]


def _inside(stage: str, path: str) -> bool:
    return _stage(path) == stage


def _of(stages: tuple[Stage, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    return {stage.name: values[stage.name] for stage in stages}


def _flat(head: tuple[Any, Any]) -> dict[str, Any]:
    params, stats = head
    return tree.flatten({"params": params, "stats": stats})


def _own_bytes(one: Held) -> int:
    """Returns the bytes of a task's delta, head and weights; a leaf of the base counts where
    a stage of its own holds it."""
    return _delta_bytes(one.delta) + tree.nbytes((one.head, one.own))


def _delta_bytes(delta: Delta) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(delta[:3]) if hasattr(x, "nbytes"))

"""Serving ahead of time: a compiled function of one batch size, in one file for `jax.export`.

A process that has jax alone (and flatbuffers, by which jax.export reads) calls it:

    function = jax.export.deserialize(bytearray(Path("tasks.jaxexport").read_bytes()))
    outputs = function.call(x)  # of a trunk: {task: outputs}
    outputs = function.call(x, numbers)  # of a mixed batch: [rows, most outputs]
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.data.inputs import require_inputs
from subtune_jax.deltas.file import write
from subtune_jax.errors import InputError, require_package, require_path
from subtune_jax.serving.bank import Bank, Held, Kind
from subtune_jax.serving.mixed import Mixed
from subtune_jax.serving.rows import forward_rows, heads_by_row
from subtune_jax.serving.trunk import Trunk, outputs


def export(
    served: Trunk | Mixed,
    x: Any,
    file: str | Path,
    *,
    platforms: Sequence[str] | None = None,
) -> Path:
    """Writes what is served as one function with its weights, and returns its file.

    x: a batch of the inputs that it shall take; it takes no other shapes. platforms: as
    for `jax.export`, such as `["cpu", "cuda"]`; default: this process's. Beside it,
    `FILE.json` names the tasks in their order: the numbers of a mixed batch, whose outputs
    are filled up to the most that a head has by the lowest number, and NaN for a number of
    no task. Raises `InputError` for inputs that it cannot take, for a `Mixed` with a task
    that runs a stage alone, and where the file cannot be written.
    """
    require_package("flatbuffers", "writing a file of jax.export")
    if not isinstance(served, Trunk | Mixed):
        raise InputError(f"expected a Trunk or a Mixed, got {type(served).__name__}")
    require_path(file=file)
    rows = require_inputs(served.network, x)
    x = jax.tree.map(lambda leaf: np.asarray(leaf[np.arange(rows)]), x)
    if isinstance(served, Trunk):
        function, arguments = _of_trunk(served), [x]
        tasks = {name: one.outputs for name, one in served.members.items()}
    else:
        served.require_factored(x)
        function, arguments = _of_mixed(served.bank), [x, np.zeros(rows, np.int32)]
        held = served.bank.tasks.items()
        tasks = {name: one.prepared.outputs for name, one in held}
    exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
    data = exported.serialize()
    file = Path(file)
    write(file, bytes(data))
    named = json.dumps({"tasks": [{"name": n, "outputs": o} for n, o in tasks.items()]})
    write(file.with_name(f"{file.name}.json"), named.encode())
    return file


def _of_trunk(trunk: Trunk) -> Callable:
    return lambda x: outputs(trunk, x)


def _of_mixed(bank: Bank) -> Callable:
    _require_one_program(bank)
    held = list(bank.tasks.values())
    kinds = list(dict.fromkeys(one.kind for one in held))
    slots = jnp.array([one.slot for one in held])
    numbers = jnp.array([kinds.index(one.kind) for one in held])
    real = jnp.array([one.prepared.outputs for one in held])
    widest = max(one.prepared.outputs or 0 for one in held)
    network, arrays = bank.network, bank.rows.arrays

    def run(x: Any, tasks: jax.Array) -> jax.Array:
        stages = network.stages[:-1]
        x = forward_rows(stages, network.params, network.stats, arrays, slots[tasks], x)
        every = jnp.stack(
            [_heads(bank, kind, held, tasks, x, widest) for kind in kinds]
        )
        rows = every[numbers[tasks], jnp.arange(len(tasks))]
        own = jnp.arange(widest)[None] < real[tasks][:, None]
        known = (tasks >= 0) & (tasks < len(held))  # others would read the last task
        shape = (len(tasks), *[1] * (rows.ndim - 2))
        rows = jnp.where(own.reshape(*shape, widest), rows, jnp.finfo(rows.dtype).min)
        return jnp.where(known.reshape(*shape, 1), rows, jnp.nan)

    return run


def _heads(
    bank: Bank, kind: Kind, held: Sequence[Held], tasks: jax.Array, x: Any, widest: int
) -> jax.Array:
    """Returns the outputs of all rows by heads of one kind, with so many columns."""
    slots = jnp.array([one.head_slot if one.kind == kind else 0 for one in held])
    weights = tree.unflatten(bank.heads[kind].arrays)
    pair = (weights.get("params", {}), weights.get("stats", {}))
    y = heads_by_row(kind.apply, pair, slots[tasks], x)[..., :widest]
    missing = [(0, 0)] * (y.ndim - 1) + [(0, widest - y.shape[-1])]
    return jnp.pad(y, missing)


def _require_one_program(bank: Bank) -> None:
    if not bank.tasks:
        raise InputError("there is no task to export")
    held = bank.tasks.values()
    stages = [
        stage.name
        for stage in bank.network.stages[:-1]
        if any(bank.runs_alone(one, stage.name) for one in held)
    ]
    if stages:
        raise InputError(
            f"a task runs {', '.join(stages)} alone, which one program cannot: give "
            "Mixed(network, all_by_row=True)"
        )
    for name, one in bank.tasks.items():
        if one.prepared.outputs is None or not one.kind.by_row:
            raise InputError(
                f"the last stage of {name!r} is no head, or a large one, which a mixed "
                "batch cannot be exported with: export a trunk"
            )

"""Serving ahead of time: a compiled function of one batch size, in one file for `jax.export`.

A process that has jax alone (and flatbuffers, by which jax.export reads) calls it:

    function = jax.export.deserialize(bytearray(Path("tasks.jaxexport").read_bytes()))
    outputs = function.call(x)  # of a trunk: {task: outputs}
    outputs = function.call(x, numbers)  # of a mixed batch: [rows, most outputs]
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.data.inputs import require_inputs
from subtune_jax.errors import InputError, require_package
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
    are filled up to the most that a head has by the lowest number. Raises `InputError` for
    inputs that it cannot take, for a `Mixed` that is not `all_by_row`, and where the file
    cannot be written.
    """
    require_package("flatbuffers", "writing a file of jax.export")
    if not isinstance(served, Trunk | Mixed):
        raise InputError(f"expected a Trunk or a Mixed, got {type(served).__name__}")
    rows = require_inputs(served.network, x, served.code)
    x = jax.tree.map(lambda leaf: np.asarray(leaf[np.arange(rows)]), x)
    if isinstance(served, Trunk):
        function, arguments = _of_trunk(served), [x]
        tasks = {name: one.outputs for name, one in served.members.items()}
    else:
        function, arguments = _of_mixed(served), [x, np.zeros(rows, np.int32)]
        tasks = {name: one.outputs for name, one in served.tasks.items()}
    exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
    data = exported.serialize()
    file = Path(file)
    _write(file, bytes(data))
    named = json.dumps({"tasks": [{"name": n, "outputs": o} for n, o in tasks.items()]})
    _write(file.with_name(f"{file.name}.json"), named.encode())
    return file


def _of_trunk(trunk: Trunk) -> Callable:
    return lambda x: outputs(trunk, x)


def _of_mixed(mixed: Mixed) -> Callable:
    if mixed.by_task:
        raise InputError(
            f"stages {', '.join(sorted(mixed.by_task))} run by task, which one program "
            "cannot: give Mixed(network, all_by_row=True)"
        )
    if not mixed.tasks:
        raise InputError("there is no task to export")
    held = list(mixed.tasks.values())
    kinds = list(dict.fromkeys(one.kind for one in held))
    slots = jnp.array([one.slot for one in held])
    counts = [mixed.heads[kind] for kind in kinds]
    numbers = jnp.array([kinds.index(one.kind) for one in held])
    real = jnp.array([one.outputs for one in held])
    widest = max(one.outputs or 0 for one in held)

    def run(x: Any, tasks: jax.Array) -> jax.Array:
        network, arrays = mixed.network, mixed.rows.arrays
        body = network.stages[:-1]
        x = forward_rows(body, network.params, network.stats, arrays, slots[tasks], x)
        parts = []
        for kind, rows in zip(kinds, counts, strict=True):
            weights = tree.unflatten(rows.arrays)
            pair = (weights.get("params", {}), weights.get("stats", {}))
            y = heads_by_row(kind.apply, pair, slots[tasks] % rows.slots, x)
            y = y[..., :widest]
            missing = [(0, 0)] * (y.ndim - 1) + [(0, widest - y.shape[-1])]
            parts.append(jnp.pad(y, missing))
        every = jnp.stack(parts)[numbers[tasks], jnp.arange(len(tasks))]
        columns = jnp.arange(widest)[None] < real[tasks][:, None]
        columns = columns.reshape(len(tasks), *[1] * (every.ndim - 2), widest)
        return jnp.where(columns, every, jnp.finfo(every.dtype).min)

    return run


def _write(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from None

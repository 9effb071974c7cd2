"""Values of tasks in arrays with an axis for the task, and stages that take each row's own.

A stage runs once on the whole batch. Leaves of one axis (biases, scales, statistics) are
gathered by row, and low-rank factors stay factors: what is large is shared by all rows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from subtune_jax import tree
from subtune_jax.network import Stage
from subtune_jax.programs import traces_of
from subtune_jax.serving.factored import factored

A, B = "//a", "//b"  # after the path of a kernel: its factors; no leaf's path has these


class Rows:
    """Arrays [slots, ...] by name: a row for each task, the default where it has none.

    Slots double when they are used up, so that a task costs the same whatever is there. A
    name that no task has goes. like: an array on the devices where these shall be.
    """

    def __init__(self, like: Any):
        self.like, self.slots, self.used = like, 1, 0
        self.free: list[int] = []  # slots below `used` that were given back
        self.arrays: dict[str, jax.Array] = {}
        self.defaults: dict[str, jax.Array] = {}
        self.users: Counter[str] = Counter()

    def add(self, values: Mapping[str, Any], default: Callable) -> int:
        """Writes a task's values into a slot, and returns it. default(name, value) is what
        all others have under a new name."""
        for name, value in values.items():
            self._declare(name, default(name, value))
        slot = self.free.pop() if self.free else self.used
        self.used = max(self.used, slot + 1)
        if self.slots < self.used:
            self._double()
        for name, array in self.arrays.items():
            value = values.get(name, self.defaults[name])
            row = _widened(jnp.asarray(value, array.dtype), array.shape[1:])
            self.arrays[name] = _with_row(array, slot, row)
        self.users.update(values.keys())
        return slot

    def remove(self, slot: int, names: Iterable[str]) -> None:
        """Gives back a slot, of a task that had values under these names."""
        self.free.append(slot)
        for name in names:
            self.users[name] -= 1
            if not self.users[name]:
                del self.users[name], self.arrays[name], self.defaults[name]

    def growth(self, values: Mapping[str, Any]) -> int:
        """Returns by how many bytes the arrays grow when these values are added."""
        full = not self.free and self.used == self.slots
        after = 0
        for name in self.arrays.keys() | values.keys():
            array = self.arrays[name] if name in self.arrays else values[name]
            old = array.shape[1:] if name in self.arrays else array.shape
            shape = tuple(map(max, old, values[name].shape)) if name in values else old
            after += int(np.prod(shape)) * array.dtype.itemsize
        return after * self.slots * (1 + full) - self.nbytes()

    def nbytes(self) -> int:
        return tree.nbytes(self.arrays)

    def _declare(self, name: str, default: jax.Array) -> None:
        """Adds a name, with its default in every slot. Where it is there, its rows become
        as wide as the default, by zeros (factors of another rank)."""
        old = self.arrays.get(name)
        if old is None:
            array = jnp.broadcast_to(default[None], (self.slots, *default.shape))
        else:
            shape = tuple(map(max, default.shape, old.shape[1:]))
            if shape == old.shape[1:]:
                return
            array = _widened(old, (self.slots, *shape))
            default = jnp.zeros(shape, old.dtype)
        self.arrays[name], self.defaults[name] = everywhere(array, self.like), default

    def _double(self) -> None:
        for name, array in self.arrays.items():
            more = jnp.broadcast_to(self.defaults[name][None], array.shape)
            self.arrays[name] = everywhere(jnp.concatenate([array, more]), self.like)
        self.slots *= 2


@partial(jax.jit, donate_argnums=0)
def _with_row(array: jax.Array, slot: Any, row: jax.Array) -> jax.Array:
    return array.at[slot].set(row)


def everywhere(array: Any, like: Any) -> jax.Array:
    """Returns an array on all the devices of the mesh on which `like` is."""
    sharding = getattr(like, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return jax.device_put(array, NamedSharding(sharding.mesh, PartitionSpec()))
    return jax.device_put(array)


def _widened(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    sizes = zip(shape, value.shape, strict=True)
    return jnp.pad(value, [(0, want - have) for want, have in sizes])


def rows_program(stages: tuple[Stage, ...]) -> Callable:
    """Returns the compiled `forward_rows` of stages."""
    traces = traces_of(*(stage.apply for stage in stages))
    key = ("rows", tuple(stage.name for stage in stages))
    return partial(traces.run, key, partial(forward_rows, stages))


def forward_rows(
    stages: tuple[Stage, ...],
    params: Any,
    stats: Any,
    arrays: Mapping[str, jax.Array],
    slots: jax.Array,
    x: Any,
) -> Any:
    """Returns what the stages give for a batch whose row i has the values of `slots[i]`.

    arrays: by path, `params/STAGE/LEAF` and `stats/STAGE/LEAF`; factors of a kernel by its
    path and `A` or `B`. Raises `NotFactored` where a stage does more with such a
    kernel than contract its rows.
    """
    for name, apply in stages:
        own = {path: a for path, a in arrays.items() if path.split("/")[1] == name}
        run = partial(apply, batch_stats=False, key=None)
        if own:
            taken = {path: array[slots] for path, array in own.items()}
            state = {"params": {name: params[name]}, "stats": {name: stats[name]}}
            x = jax.vmap(partial(_one_row, name, run, state))(taken, x)
        else:
            x, _ = run(params[name], stats[name], x)
    return x


def kernels_of(arrays: Iterable[str]) -> list[str]:
    """Returns the paths of the kernels that have factors among these names."""
    return [name.removesuffix(A) for name in arrays if name.endswith(A)]


def _one_row(name: str, run: Any, state: Any, taken: Mapping[str, Any], x: Any) -> Any:
    kernels = kernels_of(taken)
    factors = {path: (taken[path + A], taken[path + B]) for path in kernels}
    state = tree.map_with_path(lambda path, leaf: taken.get(path, leaf), state)

    def alone(state: Any, x: Any) -> Any:
        return run(state["params"][name], state["stats"][name], x)[0]

    batch = jax.tree.map(lambda leaf: leaf[None], x)
    y = factored(alone, factors, state, batch) if factors else alone(state, batch)
    return jax.tree.map(lambda leaf: leaf[0], y)


def heads_program(apply: Callable) -> Callable:
    """Returns the compiled `(weights [slots, ...], slots, x) -> outputs` of heads of a kind."""
    return partial(traces_of(apply).run, "heads", partial(heads_by_row, apply))


def heads_by_row(apply: Callable, weights: Any, slots: jax.Array, x: Any) -> Any:
    """Returns the outputs of a batch's rows, row i by the head at `slots[i]`.

    weights: (params, stats), leaves [slots, ...]."""

    def one(own: Any, x: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[None], x)
        return apply(*own, batch, batch_stats=False, key=None)[0][0]

    return jax.vmap(one)(jax.tree.map(lambda leaf: leaf[slots], weights), x)

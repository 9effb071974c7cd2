"""Where arrays live: shardings come in as arguments, no method knows of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from subtune_jax.errors import InputError


class Placement(NamedTuple):
    """How arrays are put on devices: `place(batch)`, and `place.whole(tree)` for what
    every device needs whole (the base, statistics, the state)."""

    batch: Callable[[Any], Any]
    whole: Callable[[Any], Any]

    def __call__(self, batch: Any) -> Any:
        """Returns the batch on its devices."""
        return self.batch(batch)


def data_mesh(devices: int) -> Mesh:
    """Returns a mesh of `devices` devices with one axis, `data`.

    Raises `InputError` when there are fewer devices.
    """
    have = jax.device_count()
    if not 1 <= devices <= have:
        raise InputError(f"mesh asks for {devices} devices: expected 1 to {have} here")
    return jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:devices],
    )


def placement(devices: int = 1) -> Placement:
    """Returns how a batch's first axis is split over `devices` devices, and all else is
    on each of them. Raises `InputError` when there are fewer devices, and when a batch
    does not divide by their number."""
    if devices == 1:
        return Placement(jax.device_put, jax.device_put)
    mesh = data_mesh(devices)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(batch):
        size = len(jax.tree.leaves(batch)[0])
        if size % devices:
            raise InputError(
                f"batch size {size} does not divide by the {devices} devices of the mesh"
            )
        return jax.device_put(batch, rows)

    return Placement(place, lambda tree: jax.tree.map(partial(_put, everywhere), tree))


def _put(sharding: NamedSharding, leaf: Any) -> jax.Array:
    """Puts a leaf; a typed key by its data, since a mesh of several processes takes no
    other."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.device_put(leaf, sharding)
    data = jax.device_put(jax.random.key_data(leaf), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

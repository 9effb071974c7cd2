"""Where arrays live: shardings come in as arguments, no method knows of them."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from subtune_jax.errors import InputError


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


def placement(devices: int) -> Callable[[Any], Any]:
    """Returns the function that splits a batch's first axis over `devices` devices.

    The state needs no placing: it follows the batch. Raises `InputError` when there
    are fewer devices, and when a batch does not divide by their number.
    """
    if devices == 1:
        return lambda batch: batch
    rows = NamedSharding(data_mesh(devices), PartitionSpec("data"))

    def place(batch):
        size = len(jax.tree.leaves(batch)[0])
        if size % devices:
            raise InputError(
                f"batch size {size} does not divide by the {devices} devices of the mesh"
            )
        return jax.device_put(batch, rows)

    return place

"""Elements of one leaf, swapped for others: bits move, and nothing is computed."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def swapped(
    leaf: Any, places: np.ndarray, values: np.ndarray, donate: bool = False
) -> tuple[Any, Any]:
    """Returns a leaf with these elements in place, and those that were there.

    The second may be longer than `places`: what is past their number has no meaning.
    donate: the leaf is given away, its memory freed or written in place.
    """
    values = np.asarray(values).astype(leaf.dtype)
    if isinstance(leaf, np.ndarray):
        taken, after = leaf.ravel()[places], _aligned_copy(leaf)
        after.reshape(-1)[places] = values
        return after, taken
    if all(device.platform == "cpu" for device in leaf.devices()):
        # XLA's scatter on a CPU is a loop, a microsecond an element: NumPy's is not.
        after, taken = swapped(np.asarray(leaf), places, values)
        put = jax.device_put(after, leaf.sharding, may_alias=True)
        if donate:
            leaf.delete()
        return put, taken
    index, padded = _padded(leaf, places, values)
    after, taken = (_swap_in_place if donate else _swap)(leaf, index, padded)
    return jax.device_put(after, leaf.sharding), taken


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    """Returns a copy that begins where JAX can take it over: an array that NumPy allocates
    is not aligned to 64 bytes, and would be copied a second time."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def _padded(
    leaf: jax.Array, places: np.ndarray, values: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Returns coordinates and values filled up to a power of two: tasks change different
    numbers of elements, and each length would be a program of its own. A place past the
    leaf is passed over. Coordinates fit 32 bits where places of a large leaf do not."""
    size = 1 << max(len(places) - 1, 1).bit_length()
    index = np.full((leaf.ndim, size), leaf.shape[0], np.int32)
    index[:, : len(places)] = np.unravel_index(places, leaf.shape)
    padded = np.zeros(size, leaf.dtype)
    padded[: len(places)] = values
    return tuple(index), padded


def _exchange(leaf: jax.Array, places: tuple, values: jax.Array) -> tuple:
    real = jnp.issubdtype(leaf.dtype, jnp.floating)
    # As integers: a compiler may change the bits of a NaN that it moves as a float.
    bits = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}") if real else leaf.dtype

    def cast(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return jax.lax.bitcast_convert_type(x, dtype) if real else x

    whole, new = cast(leaf, bits), cast(values, bits)
    after = whole.at[places].set(new, mode="drop", indices_are_sorted=True)
    taken = whole.at[places].get(mode="fill", fill_value=0, indices_are_sorted=True)
    return cast(after, leaf.dtype), cast(taken, leaf.dtype)


_swap = jax.jit(_exchange)
_swap_in_place = partial(jax.jit, donate_argnums=0)(_exchange)

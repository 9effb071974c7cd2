"""The first stage of networks that read pixels."""

from collections.abc import Callable
from functools import cache

import jax.numpy as jnp


@cache
def normalize(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable:
    """Returns the stage (x / 255 - mean) / std; x holds pixels 0 to 255 of any dtype."""

    def apply(params, stats, x, *, batch_stats, key):
        del params, batch_stats, key
        channels = (1, 1, 1, -1)
        shift, scale = (jnp.asarray(v).reshape(channels) for v in (mean, std))
        return (x / 255 - shift) / scale, stats

    return apply

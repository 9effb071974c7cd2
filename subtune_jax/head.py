"""A new head of any size on a pretrained body."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from subtune_jax.errors import InputError, require_positive
from subtune_jax.network import Network, Params, Stage, Stats


LECUN_NORMAL = jax.nn.initializers.lecun_normal()


def linear(
    params: Params,
    stats: Stats,
    x: jax.Array,
    *,
    batch_stats: bool,
    key: jax.Array | None,
) -> tuple[jax.Array, Stats]:
    """The head stage x W + b: `kernel` [features, outputs], `bias` [outputs]."""
    del batch_stats, key
    return x @ params["kernel"] + params["bias"][None], stats


def linear_params(
    key: jax.Array,
    features: int,
    outputs: int,
    init: Callable = LECUN_NORMAL,
) -> Params:
    """Returns the float32 parameters of `linear`: W drawn by `init`, b = 0."""
    kernel = init(key, (features, outputs), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros((outputs,), jnp.float32)}


def new_head(
    network: Network,
    outputs: int,
    key: jax.Array,
    init: Callable = jax.nn.initializers.zeros,
) -> Network:
    """Returns the network with its last stage replaced by a fresh linear head.

    logits = x W + b, with W float32[features, outputs] drawn by `init` (any
    initializer of `jax.nn.initializers`; zeros give maximal output entropy) and b = 0.
    The old head's leaves must be `kernel` [features, any] and, if any, `bias`. Raises
    `InputError` if they are not, or if `outputs` is no positive number.
    """
    require_positive(outputs=outputs)
    name = network.stages[-1].name
    old = network.params[name]
    if not set(old) <= {"kernel", "bias"} or getattr(old.get("kernel"), "ndim", 0) != 2:
        raise InputError(
            f"the last stage {name!r} is no linear head: expected leaves kernel "
            f"[features, outputs] and bias, found {', '.join(old) or 'none'}"
        )
    head = linear_params(key, old["kernel"].shape[0], outputs, init)
    source = network.source and network.source._replace(classes=())
    return network._replace(
        source=source,
        stages=(*network.stages[:-1], Stage(name, linear)),
        params={**network.params, name: head},
    )

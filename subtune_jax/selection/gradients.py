"""Gradients of a batch, reduced on the device: what scores are made of.

Of the mean loss over a batch, or of rows of some examples, at the network's parameters,
with stored statistics and without dropout. `half` holds the leaves that are scored: no
gradient of another one is computed. Gradients are at least float32.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import function_identity, tree
from subtune_jax.dry_run import output_shapes
from subtune_jax.errors import InputError
from subtune_jax.losses import (
    cross_entropy,
    per_example,
    require_classes,
    require_rows,
    weighted_mean,
)
from subtune_jax.memory import program_cache
from subtune_jax.network import Network, Params, forward

PROGRAMS = 64  # compiled scores that are kept


class Moments(NamedTuple):
    """Of the gradients g of the rows of a batch: their number, and half trees of their
    mean and of sum (g - mean g)^2."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count
    mean: Any
    spread: Any


def scored_half(params: Params, paths: Collection[str] | None = None) -> Params:
    """Returns the real floating-point leaves that have elements, of `paths` or all."""

    def scored(path: str, leaf: Any) -> bool:
        real = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size > 0
        return real and (paths is None or path in paths)

    return tree.partition(params, tree.map_with_path(scored, params))[0]


def batch_gradient(
    network: Network, loss: Callable, reduce: Callable, half: Params, batch: Any
) -> Any:
    """Returns the half tree of reduce(gradient of the mean loss of a batch)."""
    code = _code(network, loss, reduce)
    _require_batch(network, loss, batch, code[0])
    run = _batch_gradient(network.stages, loss, reduce, code)
    batch = tree.beside(batch, network.params)
    return run(half, network.params, network.stats, batch)


def row_moments(
    network: Network, loss: Callable, half: Params, batch: Any, size: int, chunk: int
) -> Moments:
    """Returns the moments over rows of `size` examples, `chunk` rows at a time.

    Memory is that of `chunk` gradients and two more half trees, whatever the batch is.
    A row with a padding example is left out; rows that are not full are too.
    """
    code = _code(network, loss)
    _require_batch(network, loss, batch, code[0])
    batch = tree.beside(batch, network.params)
    rows = len(batch.weight) // size
    chunks = -(-rows // chunk)
    run = _row_moments(network.stages, loss, size, chunks, code)
    moments = _no_moments(half)
    # A loop over calls and no scan: a convolution in a scan is 29 times slower on a CPU.
    for index in tree.beside(list(np.arange(chunks, dtype=np.int32)), network.params):
        moments = run(moments, half, network.params, network.stats, batch, index)
    return moments


def require_batch(batch: Any) -> None:
    """Raises `InputError` for what is not a batch, such as the parts of a data set."""
    if not hasattr(batch, "weight"):
        raise InputError(
            f"a score takes batches, got {type(batch).__name__} for one: "
            "data.in_order(dataset, 64) yields those of a Dataset"
        )


def _require_batch(network: Network, loss: Callable, batch: Any, code: str) -> None:
    require_batch(batch)
    require_rows(batch)
    outputs = output_shapes(network, batch.x, code)
    if loss is cross_entropy:
        require_classes(batch.y, outputs)


def _code(network: Network, *functions: Callable) -> tuple[str, str]:
    """Returns what the stages are, and what the functions are: parts of a program's key."""
    one, other = map(function_identity.fingerprint, (network.stages, functions))
    return one, other


@program_cache(PROGRAMS)
def _batch_gradient(stages, loss: Callable, reduce: Callable, code: tuple) -> Callable:
    del code  # part of the key: a number that the loss reads may have changed

    def mean_loss(half, params, stats, batch):
        made = _placed(half, params)
        outputs = forward(stages, made, stats, batch.x)[0]
        return weighted_mean(per_example(loss, outputs, batch.y), batch.weight)

    def run(half, params, stats, batch):
        grads = jax.grad(mean_loss)(tree.wide(half), params, stats, batch)
        return jax.tree.map(reduce, grads)

    return jax.jit(run)


@program_cache(PROGRAMS)
def _row_moments(
    stages, loss: Callable, size: int, chunks: int, code: tuple
) -> Callable:
    del code

    def row_loss(half, params, stats, x, y):
        outputs = forward(stages, _placed(half, params), stats, x)[0]
        return jnp.mean(per_example(loss, outputs, y))

    each = jax.vmap(jax.grad(row_loss), in_axes=(None, None, None, 0, 0))

    def run(moments, half, params, stats, batch, index):
        x, y, weight = (_chunk(part, size, chunks, index) for part in batch)
        grads = each(tree.wide(half), params, stats, x, y)
        rows = len(batch.weight) // size
        inside = jnp.arange(len(weight)) * chunks + index < rows
        return _merged(moments, grads, weight.min(axis=1) * inside)

    return jax.jit(run, donate_argnums=0)


@partial(jax.jit, keep_unused=True)  # so that they lie on the devices of `half`
def _no_moments(half: Params) -> Moments:
    mean, spread = (jax.tree.map(jnp.zeros_like, tree.wide(half)) for _ in range(2))
    return Moments(jnp.zeros(()), mean, spread)


def _placed(half: Params, params: Params) -> Params:
    """Returns the parameters with the half in place, in the types of the network."""
    whole = tree.combine(half, params)
    return jax.tree.map(lambda w, base: w.astype(base.dtype), whole, params)


def _chunk(values: Any, size: int, chunks: int, index: jax.Array) -> Any:
    """Returns every `chunks`-th row from `index` on, [rows, size, ...].

    Of a batch that is split over devices, each keeps its rows: a run of neighbours would
    be those of one device. Past the last row come copies.
    """

    def part(leaf):
        rows = len(leaf) // size
        split = leaf[: rows * size].reshape(rows, size, *leaf.shape[1:])
        missing = -rows % chunks
        if missing:
            split = jnp.concatenate([split, split[:1].repeat(missing, axis=0)])
        return split.reshape(-1, chunks, *split.shape[1:])[:, index]

    return jax.tree.map(part, values)


def _merged(before: Moments, grads: Any, weight: jax.Array) -> Moments:
    """Returns the moments with those of more gradients, each of weight 0 or 1.

    By the update of Chan, Golub and LeVeque (1979), which does not cancel as the
    difference of two sums of squares does.
    """
    new = jnp.sum(weight)
    count = before.count + new
    # Without a row all weights are 0, and so is whatever is divided.
    share, least = new / jnp.maximum(count, 1), jnp.maximum(new, 1)
    means = jax.tree.map(lambda g: _weighted(g, weight) / least, grads)
    shifts = jax.tree.map(jnp.subtract, means, before.mean)
    spread = jax.tree.map(
        lambda s, g, mean, shift: (
            s
            + _weighted(jnp.square(g - mean[None]), weight)
            + jnp.square(shift) * before.count * share
        ),
        before.spread,
        grads,
        means,
        shifts,
    )
    mean = jax.tree.map(lambda m, shift: m + shift * share, before.mean, shifts)
    return Moments(count, mean, spread)


def _weighted(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the sum over rows of weight times value."""
    return jnp.sum(values * weight.reshape(-1, *[1] * (values.ndim - 1)), axis=0)

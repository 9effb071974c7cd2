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

from subtune_jax import tree
from subtune_jax.dry_run import output_shapes
from subtune_jax.errors import InputError
from subtune_jax.losses import (
    is_of_classes,
    per_example,
    require_classes,
    require_rows,
    weighted_mean,
)
from subtune_jax.network import Network, Params, Stage, forward
from subtune_jax.programs import Traces, traces_of


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
    _require_batch(network, loss, batch)
    run = partial(_batch_gradient, network.stages, loss, reduce)
    batch = tree.beside(batch, network.params)
    traces = _traces(network, loss, reduce)
    return traces.run(
        ("mean", _names(network)), run, half, network.params, network.stats, batch
    )


def row_moments(
    network: Network, loss: Callable, half: Params, batch: Any, size: int, chunk: int
) -> Moments:
    """Returns the moments over rows of `size` examples, `chunk` rows at a time.

    Memory is that of `chunk` gradients and two more half trees, whatever the batch is.
    A row with a padding example is left out; rows that are not full are too.
    """
    _require_batch(network, loss, batch)
    batch = tree.beside(batch, network.params)
    rows = len(batch.weight) // size
    chunks = -(-rows // chunk)
    run = partial(_row_moments, network.stages, loss, size, chunks)
    moments, traces = _no_moments(half), _traces(network, loss)
    key = "rows", size, chunks, _names(network)
    # A loop over calls and no scan: a convolution in a scan is 29 times slower on a CPU.
    for index in tree.beside(list(np.arange(chunks, dtype=np.int32)), network.params):
        given = moments, half, network.params, network.stats, batch, index
        moments = traces.run(key, run, *given, donate=(0,))
    return moments


def require_batch(batch: Any) -> None:
    """Raises `InputError` for what is not a batch, such as the parts of a data set."""
    if not hasattr(batch, "weight"):
        raise InputError(
            f"a score takes batches, got {type(batch).__name__} for one: "
            "data.in_order(dataset, 64) yields those of a Dataset"
        )


def _require_batch(network: Network, loss: Callable, batch: Any) -> None:
    require_batch(batch)
    require_rows(batch)
    outputs = output_shapes(network, batch.x)
    if is_of_classes(loss):
        require_classes(batch.y, outputs)


def _names(network: Network) -> tuple[str, ...]:
    """Returns the names of the stages: equal layers share a function, in any order."""
    return tuple(stage.name for stage in network.stages)


def _traces(network: Network, *functions: Callable) -> Traces:
    return traces_of(*(stage.apply for stage in network.stages), *functions)


def _batch_gradient(
    stages: tuple[Stage, ...],
    loss: Callable,
    reduce: Callable,
    half: Params,
    params: Params,
    stats: Any,
    batch: Any,
) -> Any:
    """Returns the half tree of reduce(gradient of the mean loss of a batch)."""

    def mean_loss(half, params, stats, batch):
        made = _placed(half, params)
        outputs = forward(stages, made, stats, batch.x)[0]
        return weighted_mean(per_example(loss, outputs, batch.y), batch.weight)

    grads = jax.grad(mean_loss)(tree.wide(half), params, stats, batch)
    return jax.tree.map(reduce, grads)


def _row_moments(
    stages: tuple[Stage, ...],
    loss: Callable,
    size: int,
    chunks: int,
    moments: Moments,
    half: Params,
    params: Params,
    stats: Any,
    batch: Any,
    index: jax.Array,
) -> Moments:
    """Returns the moments with those of every `chunks`-th row from `index` on."""

    def row_loss(half, params, stats, x, y):
        outputs = forward(stages, _placed(half, params), stats, x)[0]
        return jnp.mean(per_example(loss, outputs, y))

    each = jax.vmap(jax.grad(row_loss), in_axes=(None, None, None, 0, 0))
    x, y, weight = (_chunk(part, size, chunks, index) for part in batch)
    grads = each(tree.wide(half), params, stats, x, y)
    rows = len(batch.weight) // size
    inside = jnp.arange(len(weight)) * chunks + index < rows
    return _merged(moments, grads, weight.min(axis=1) * inside)


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

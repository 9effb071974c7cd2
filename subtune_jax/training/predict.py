"""Outputs and scores of a network over a whole set."""

from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.data import batches
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import lengths
from subtune_jax.data.inputs import require_data, require_inputs, require_pairs
from subtune_jax.errors import InputError, require_function, require_whole
from subtune_jax.metrics import Metric, accuracy
from subtune_jax.network import Network, require_network
from subtune_jax.training.step import compiled_forward


def predict(
    network: Network, data: Dataset | Any, *, batch_size: int = 256
) -> np.ndarray:
    """Returns the outputs for all examples, in order: stored statistics, no dropout.

    data: a `Dataset`, whose targets are not read, or inputs alone. Outputs per token are
    padded to the longest text's bucket with the lowest number. Raises `InputError` for
    inputs that the network cannot take.
    """
    require_whole(batch_size=batch_size)
    require_network(network)
    return _predict(network, data, batch_size)


def _predict(network: Network, data: Dataset | Any, batch_size: int) -> np.ndarray:
    x = data.x if isinstance(data, Dataset) else data
    rows = require_inputs(network, x)
    if isinstance(data, Dataset) and data.y is not None:
        require_pairs(rows, data.y)
    data = Dataset(x, np.zeros(rows, np.int8))
    # Few rows are not padded to a whole batch, but to a power of two: few programs still.
    size = min(batch_size, 1 << (rows - 1).bit_length())
    run, sizes = compiled_forward(network), lengths(data.x)
    params, stats = tree.on_device((network.params, network.stats))  # once
    if sizes is not None:  # like lengths together, and back into their order
        order = np.argsort(sizes, kind="stable")
        data = data.only(order)
    parts = [
        jax.device_get(run(params, stats, tree.beside(batch.x, params)))[
            batch.weight > 0
        ]
        for batch in batches.in_order(data, size)
    ]
    outputs = np.concatenate(_as_wide(parts))
    return outputs if sizes is None else outputs[np.argsort(order)]


def _as_wide(rows: list[np.ndarray]) -> list[np.ndarray]:
    widest = max(row.shape[1:] for row in rows)
    if all(row.shape[1:] == widest for row in rows):
        return rows
    return [
        np.pad(
            row,
            [(0, 0), (0, widest[0] - row.shape[1]), *[(0, 0)] * (row.ndim - 2)],
            constant_values=jnp.finfo(row.dtype).min,
        )
        for row in rows
    ]


def evaluate(
    network: Network, data: Dataset, metric: Metric = accuracy, *, batch_size: int = 256
) -> float:
    """Returns metric(outputs, targets) over all of `data`, each example counted once."""
    require_whole(batch_size=batch_size)
    require_network(network)
    require_data(network, data)
    require_function(2, metric=metric)
    score = metric(_predict(network, data, batch_size), data.y)
    if np.ndim(score) or not isinstance(score, Real | np.generic):
        name = getattr(metric, "__name__", "the metric")
        raise InputError(f"{name} must return a number, got {type(score).__name__}")
    return score

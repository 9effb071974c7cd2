"""Outputs and scores of a network over a whole set."""

import numpy as np

from subtune_jax.data import batches
from subtune_jax.data.batches import Data
from subtune_jax.evaluation.metrics import Metric, accuracy
from subtune_jax.network import Network
from subtune_jax.training.step import compiled_forward


def predict(network: Network, data: Data, *, batch_size: int = 256) -> np.ndarray:
    """Returns the outputs for all examples, in order: stored statistics, no dropout."""
    run = compiled_forward(network.stages)
    rows = [
        np.asarray(run(network.params, network.stats, batch.x))[batch.weight > 0]
        for batch in batches.in_order(data, batch_size)
    ]
    return np.concatenate(rows)


def evaluate(
    network: Network, data: Data, metric: Metric = accuracy, *, batch_size: int = 256
) -> float:
    """Returns metric(outputs, targets) over all of `data`, each example counted once."""
    return metric(predict(network, data, batch_size=batch_size), data.y)

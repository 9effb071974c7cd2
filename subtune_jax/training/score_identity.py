"""What the scores of subsets depend on: digests by which a journal knows its search."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.canonical import hashed
from subtune_jax.data.task import Task
from subtune_jax.host_functions import described
from subtune_jax.labels import stages_with_batch_stats
from subtune_jax.losses import per_example
from subtune_jax.network import forward
from subtune_jax.training.identity import computed, versions
from subtune_jax.training.settings import Settings


def score_identity(
    task: Task, phases_of: Callable, key: jax.Array, how: tuple, settings: Settings
) -> dict[str, str]:
    """Returns what the scores of subsets depend on, digested by name. how: of folds, and how
    runs start. Raises `InputError` for a function that has no name and cannot be read."""
    network = task.network
    held = {"params": network.params, "stats": network.stats}
    run = settings.batch_size, settings.norm, settings.dropout, settings.accumulate
    values = {
        "network": tree.fingerprint(held),
        "data": [task.train.fingerprint(), task.validation.fingerprint()],
        "phases_of": described(phases_of),
        "folds or warm": how,
        "key": tree.fingerprint(key),
        "batch_size, norm, dropout or accumulate": run,
        "augment": described(settings.augment),
        "metric": described(task.metrics["validation"]),
        "what the network and the loss compute": _losses(task, settings.loss),
        "versions": sorted(versions().items()),
    }
    return {name: hashed(value) for name, value in values.items()}


def _losses(task: Task, loss: Callable) -> str:
    """Returns the digest of the loss and its gradient, in training and in evaluation: rules
    of gradients (`custom_vjp`) count."""
    stages, one = task.network.stages, task.train.take(np.arange(1))
    normed = stages_with_batch_stats(task.network.stats, {}, "batch")

    def total(params: Any, stats: Any, x: Any, y: Any, key: jax.Array) -> jax.Array:
        trained = forward(stages, params, stats, x, batch_stats=normed, key=key)[0]
        outputs = forward(stages, params, stats, x)[0]
        losses = [per_example(loss, out, y).sum() for out in (trained, outputs)]
        return losses[0] + losses[1]

    gradient = jax.value_and_grad(total, allow_int=True)
    given = task.network.params, task.network.stats, one.x, one.y, jax.random.key(0)
    return computed(gradient, *given)

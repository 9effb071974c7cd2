"""Activations of a frozen prefix, computed once instead of at every step."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data import batches
from subtune_jax.data.batches import Data
from subtune_jax.flops import depends_on
from subtune_jax.network import Labels, Network, lowest_trainable
from subtune_jax.training.step import compiled_forward


def cached_stages(
    network: Network,
    labels: Labels,
    batch_stats: frozenset[str],
    data: Data,
    budget: int,
) -> int:
    """Returns how many leading stages can be computed once for all of `data`.

    They are frozen, use stored statistics, do nothing random, and their activations
    for all examples fit `budget` bytes. The most such stages; 0 where none of them has
    a parameter, since there is nothing to save.
    """
    if not budget:
        return 0
    example = jax.tree.map(lambda leaf: leaf[:1], data.take(np.arange(1)).x)
    best, worthwhile = 0, False
    for count, x in _deterministic(network, labels, batch_stats, example):
        worthwhile |= bool(
            jax.tree.leaves(network.params[network.stages[count - 1].name])
        )
        if worthwhile and tree.nbytes(x) * len(data.y) <= budget:
            best = count
    return best


def _deterministic(
    network: Network, labels: Labels, batch_stats: frozenset[str], x
) -> Iterator[tuple]:
    """Yields (stages so far, shapes after them) while a prefix is frozen and not random."""
    for index, (name, apply) in enumerate(network.stages):
        if index == lowest_trainable(network.stages, labels) or name in batch_stats:
            return
        params, stats = network.params[name], network.stats[name]

        random, x = _probe(apply, *_hashable((params, stats, x)))
        if random:
            return
        yield index + 1, x


def _room(examples: int, rows: np.ndarray) -> np.ndarray:
    return np.empty((examples, *rows.shape[1:]), rows.dtype)


def _hashable(values) -> tuple:
    leaves, structure = jax.tree.flatten(values)
    return structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)


@cache
def _probe(apply: Callable, structure, leaves: tuple) -> tuple[bool, Any]:
    """Returns whether a stage's activations depend on its key, and their shapes."""
    params, stats, x = jax.tree.unflatten(structure, leaves)

    def run(params, stats, x, key):
        return apply(params, stats, x, batch_stats=False, key=key)[0]

    args = params, stats, x, jax.eval_shape(lambda: jax.random.key(0))
    return depends_on(run, [False, False, False, True], *args), jax.eval_shape(
        run, *args
    )


def features(network: Network, stop: int, data: Data, batch_size: int = 256) -> Data:
    """Returns `data` with x replaced by the activations after `stop` stages, in NumPy.

    Stored statistics, no dropout. As many examples as before, in the same order.
    """
    run, made, begin = compiled_forward(network.stages, 0, stop), None, 0
    for batch in batches.in_order(data, batch_size):
        rows = jax.device_get(run(network.params, network.stats, batch.x))
        if made is None:
            made = jax.tree.map(partial(_room, len(data.y)), rows)
        end = min(begin + batch_size, len(data.y))
        for whole, part in zip(*map(jax.tree.leaves, (made, rows)), strict=True):
            whole[begin:end] = part[: end - begin]
        begin = end
    return Data(made, data.y)

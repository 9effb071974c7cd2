"""Activations of a frozen prefix, computed once instead of at every step."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data import batches
from subtune_jax.data.batches import Data
from subtune_jax.data.ragged import Ragged, first_ragged, lengths, ragged
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
    sizes = lengths(data.x)
    longest = [0] if sizes is None else [int(np.argmax(sizes))]
    count = len(data.y) if sizes is None else -(-int(sizes.sum()) // int(sizes.max()))
    example = data.take(np.array(longest)).x
    best, worthwhile = 0, False
    for stop, x in _deterministic(network, labels, batch_stats, example):
        worthwhile |= bool(
            jax.tree.leaves(network.params[network.stages[stop - 1].name])
        )
        if worthwhile and tree.nbytes(x) * count <= budget:
            best = stop
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

    Stored statistics, no dropout. As many examples as before, in the same order; of
    ragged inputs, activations with an entry per token are ragged too.
    """
    if lengths(data.x) is not None:
        return _ragged_features(network, stop, data, batch_size)
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


def _ragged_features(network: Network, stop: int, data: Data, batch_size: int) -> Data:
    first = first_ragged(data.x)
    order = np.argsort(first.lengths, kind="stable")  # like lengths together
    run, made = compiled_forward(network.stages, 0, stop), []
    per_token = _per_token(run, network, data)
    for batch in batches.in_order(data.only(order), batch_size):
        x = jax.device_get(run(network.params, network.stats, batch.x))
        leaves, structure = jax.tree.flatten(x)
        taken = order[len(made) : len(made) + batch_size]
        made += [
            [
                leaf[i, :length] if tokens else leaf[i]
                for leaf, tokens in zip(leaves, per_token, strict=True)
            ]
            for i, length in enumerate(first.lengths[taken])
        ]
    back = np.argsort(order)
    joined = [
        ragged([made[i][k] for i in back], first.buckets)
        if tokens
        else np.stack([made[i][k] for i in back])
        for k, tokens in enumerate(per_token)
    ]
    return Data(jax.tree.unflatten(structure, joined), data.y)


def _per_token(run: Callable, network: Network, data: Data) -> list[bool]:
    """Returns which leaves of the activations grow with the number of tokens."""

    def shapes(tokens: int) -> list[tuple]:
        def lengthened(leaf: Any, row: np.ndarray) -> np.ndarray:
            ragged = isinstance(leaf, Ragged)
            return np.repeat(row[:, :1], tokens, axis=1) if ragged else row

        x = jax.tree.map(lengthened, data.x, data.take(np.array([0])).x)
        made = jax.eval_shape(run, network.params, network.stats, x)
        return [leaf.shape for leaf in jax.tree.leaves(made)]

    return [one != two for one, two in zip(shapes(1), shapes(2), strict=True)]

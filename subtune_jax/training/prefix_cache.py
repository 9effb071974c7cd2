"""Activations of a frozen prefix, computed once instead of at every step."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data import batches
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import Ragged, first_ragged, lengths, ragged
from subtune_jax.dry_run import shapes_after
from subtune_jax.errors import InputError
from subtune_jax.flops import depends_on
from subtune_jax.network import Network
from subtune_jax.programs import traces_of
from subtune_jax.training.phases import Program
from subtune_jax.training.step import compiled_forward


def cached_stages(
    network: Network, program: Program, data: Dataset, budget: int
) -> int:
    """Returns how many leading stages can be computed once for all of `data`.

    They are below the lowest stage that trains, use stored statistics and do nothing
    random under the program's dropout; their activations for all examples fit `budget`
    bytes and, of texts, can be cut to their lengths. The most such stages; 0 where none
    of them has a parameter, since there is nothing to save.
    """
    if not budget:
        return 0
    sizes, wide = lengths(data.x), _at_widths(data)
    count = len(data.y) if sizes is None else -(-int(sizes.sum()) // int(sizes.max()))
    chains = [_deterministic(network, program, x) for x in wide.values()]
    best, worthwhile = 0, False
    for (stop, x), (_, narrow) in zip(*chains, strict=True):
        worthwhile |= bool(
            jax.tree.leaves(network.params[network.stages[stop - 1].name])
        )
        fits = tree.nbytes(x) * count <= budget and has_rows(network, stop, data)
        if worthwhile and fits and per_token([x, narrow], list(wide)) is not None:
            best = stop
    return best


def has_rows(network: Network, stop: int, data: Dataset) -> bool:
    """Returns whether all activations after `stop` stages have a row for each example."""
    # One batch cannot tell an axis of examples from another of its size; two can.
    for rows in (2, 3):
        x = data.take(np.zeros(rows, int)).x
        leaves = jax.tree.leaves(shapes_after_stages(network, stop, x))
        if any(leaf.shape[:1] != (rows,) for leaf in leaves):
            return False
    return True


def _at_widths(data: Dataset) -> dict[int, Any]:
    """Returns an example at the width of the longest text's bucket, and at half of it;
    both are the same where nothing is ragged."""
    # One shape cannot tell a token axis from another of its size; two widths can: what
    # follows the width in both is per token, and is cut to each text's own length.
    first = first_ragged(data.x)
    longest = np.array([0 if first is None else np.argmax(first.lengths)])
    whole, width = data.take(longest).x, 1 if first is None else first[longest].shape[1]
    if width == 1:
        return {0: whole, 1: whole}

    def cut(tokens: int) -> Any:
        return jax.tree.map(
            lambda leaf, part: part[:, :tokens] if isinstance(leaf, Ragged) else part,
            data.x,
            whole,
        )

    return {width: whole, width // 2: cut(width // 2)}


def per_token(shapes: Sequence[Any], widths: Sequence[int]) -> list[bool] | None:
    """Returns which leaves are [examples, tokens, ...], of what is made at two widths.

    The others have one shape whatever the width. `None` where a leaf is neither: it
    cannot be cut to the length of a text.
    """
    by_token = []
    for one, other in zip(*map(jax.tree.leaves, shapes), strict=True):
        axes = one.shape[1:2] + other.shape[1:2]
        same = one.shape == other.shape
        if not same and (axes != tuple(widths) or one.shape[2:] != other.shape[2:]):
            return None
        by_token.append(not same)
    return by_token


def _deterministic(network: Network, program: Program, x: Any) -> Iterator[tuple]:
    """Yields (stages so far, shapes after them) while a prefix is frozen and not random."""
    for index, (name, apply) in enumerate(network.stages):
        if index == program.lowest or name in program.batch_stats:
            return
        params, stats = network.params[name], network.stats[name]
        random, x = probe(apply, params, stats, x)
        if random and name in program.dropout:
            return
        yield index + 1, x


def _room(examples: int, rows: np.ndarray) -> np.ndarray:
    return np.empty((examples, *rows.shape[1:]), rows.dtype)


def probe(apply: Callable, params: Any, stats: Any, x: Any) -> tuple[bool, Any]:
    """Returns whether a stage's activations depend on its key, and their shapes."""

    def run(params, stats, x, key):
        return apply(params, stats, x, batch_stats=False, key=key)[0]

    args = params, stats, x, jax.eval_shape(lambda: jax.random.key(0))

    def probed() -> tuple[bool, Any]:
        random = depends_on(run, [False, False, False, True], *args)
        return random, jax.eval_shape(run, *args)

    return traces_of(apply).once("probe", apply, probed, *tree.shapes(args))


def features(
    network: Network, stop: int, data: Dataset, batch_size: int = 256
) -> Dataset:
    """Returns `data` with x replaced by the activations after `stop` stages, in NumPy.

    Stored statistics, no dropout. As many examples as before, in the same order; of
    ragged inputs, activations with an entry per token are ragged too. Raises `InputError`
    for activations that are not [examples, ...].
    """
    if not has_rows(network, stop, data):
        raise InputError(
            f"activations after stage {network.stages[stop - 1].name!r} have an array "
            "without a row for each example, and cannot be kept by example"
        )
    if lengths(data.x) is not None:
        return _ragged_features(network, stop, data, batch_size)
    run, activations, begin = compiled_forward(network, 0, stop), None, 0
    for batch in batches.in_order(data, batch_size):
        x = tree.beside(batch.x, network.params)
        rows = jax.device_get(run(network.params, network.stats, x))
        if activations is None:
            activations = jax.tree.map(partial(_room, len(data.y)), rows)
        end = min(begin + batch_size, len(data.y))
        for whole, part in zip(*map(jax.tree.leaves, (activations, rows)), strict=True):
            whole[begin:end] = part[: end - begin]
        begin = end
    return data._replace(x=activations)


def shapes_after_stages(network: Network, stop: int, x: Any) -> Any:
    """Returns the shapes of the activations after `stop` stages."""
    for stage in network.stages[:stop]:
        x = shapes_after(
            stage, network.params[stage.name], network.stats[stage.name], x
        )
    return x


def _ragged_features(
    network: Network, stop: int, data: Dataset, batch_size: int
) -> Dataset:
    first = first_ragged(data.x)
    assert first is not None  # the caller has ragged inputs
    order = np.argsort(first.lengths, kind="stable")  # like lengths together
    run = compiled_forward(network, 0, stop)
    texts: list[
        list[np.ndarray]
    ] = []  # by text, in this order, the leaves of its features
    wide = _at_widths(data)
    shapes = [shapes_after_stages(network, stop, x) for x in wide.values()]
    cut = per_token(shapes, list(wide))
    if cut is None:
        raise InputError(
            f"activations after {stop} stages cannot be cut to their texts"
        )
    for batch in batches.in_order(data.only(order), batch_size):
        x = tree.beside(batch.x, network.params)
        x = jax.device_get(run(network.params, network.stats, x))
        leaves, structure = jax.tree.flatten(x)
        taken = order[len(texts) : len(texts) + batch_size]
        texts += [
            [
                leaf[i, :length] if tokens else leaf[i]
                for leaf, tokens in zip(leaves, cut, strict=True)
            ]
            for i, length in enumerate(first.lengths[taken])
        ]
    back = np.argsort(order)
    joined = [
        ragged([texts[i][k] for i in back], first.buckets)
        if tokens
        else np.stack([texts[i][k] for i in back])
        for k, tokens in enumerate(cut)
    ]
    return data._replace(x=jax.tree.unflatten(structure, joined))

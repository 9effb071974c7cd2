"""Losses on straight lines and planes through networks of one shape."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.data import batches
from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError, require_function, require_whole
from subtune_jax.labels import stages_with_batch_stats
from subtune_jax.network import (
    Network,
    Params,
    Stats,
    forward,
    require_network,
)
from subtune_jax.programs import traces_of


class Plane(NamedTuple):
    """The plane through three networks: the first is its origin, the second lies on the
    x axis, the third above it; units are L2 norms of parameters.

    A point is origin + a (one - origin) + b (other - origin), statistics likewise.
    """

    origin: Network
    one: Network
    other: Network
    corners: tuple[tuple[float, float], ...]

    def at(self, x: float, y: float) -> Network:
        """Returns the network at a point."""
        (_, (length, _), (along, height)) = self.corners
        b = y / height
        return _between(
            self.origin, (self.one, self.other), ((x - b * along) / length, b)
        )


def plane(origin: Network, one: Network, other: Network) -> Plane:
    """Returns the plane through three networks of the same shapes.

    Raises `InputError` for other shapes, and for three that lie on one line.
    """
    _require_alike(origin, one, other)
    first, second = (_difference(x, origin) for x in (one, other))
    length = float(np.linalg.norm(first))
    along = float(first @ second) / length if length else 0.0
    height = float(np.sqrt(max(second @ second - along**2, 0.0)))
    if length == 0 or height <= 1e-6 * length:
        raise InputError("the three networks lie on one line: there is no plane")
    return Plane(origin, one, other, ((0.0, 0.0), (length, 0.0), (along, height)))


def surface(
    plane: Plane,
    measure: Callable[[Network], float],
    xs: Sequence[float],
    ys: Sequence[float],
) -> np.ndarray:
    """Returns measure(network) at all points, float[len(ys), len(xs)]."""
    require_function(1, measure=measure)
    return np.array([[float(measure(plane.at(x, y))) for x in xs] for y in ys])


def line(
    one: Network, other: Network, shares: Sequence[float]
) -> Iterator[tuple[float, Network]]:
    """Yields the networks one + share (other - one), each with its share."""
    _require_alike(one, other)
    for share in shares:
        yield share, _between(one, (other,), (share,))


def refit_statistics(
    network: Network, data: Dataset, *, batch_size: int = 256
) -> Network:
    """Returns the network with the statistics of its norms taken anew: their means over the
    whole batches of data, each under batch statistics.

    Between two networks the stored statistics of neither hold. Raises `InputError` where
    data have no whole batch.
    """
    require_network(network)
    require_whole(batch_size=batch_size)
    normed = stages_with_batch_stats(network.stats, {}, "batch")
    if not normed:
        return network
    traces = traces_of(*(stage.apply for stage in network.stages))
    key = "statistics", *(stage.name for stage in network.stages)

    def run(params: Params, stats: Stats, x: Any) -> Stats:
        move = partial(forward, network.stages, batch_stats=normed)
        return traces.run(key, lambda *given: move(*given)[1], params, stats, x)

    zeros = jax.tree.map(jnp.zeros_like, network.stats)
    total, count, seen = zeros, 0, None
    for batch in batches.in_order(data, batch_size):
        if np.all(batch.weight):
            pulled = run(network.params, zeros, batch.x)
            total, count = jax.tree.map(jnp.add, total, pulled), count + 1
            seen = seen or (batch.x, pulled)
    if seen is None:
        raise InputError(f"statistics need a whole batch of {batch_size} examples")
    # A norm stores m * old + (1 - m) * batch. What it does to 0 and to another value of
    # the statistics' own size tells m.
    x, pulled = seen
    old = jax.tree.map(lambda p: jnp.maximum(jnp.abs(p), 1.0), pulled)
    moved = run(network.params, old, x)
    stats = jax.tree.map(
        lambda o, a, p, t: t / count / (1 - (a - p) / o), old, moved, pulled, total
    )
    return network._replace(stats=stats)


def _between(
    origin: Network, others: Sequence[Network], shares: Sequence[float]
) -> Network:
    trees = [(one.params, one.stats) for one in (origin, *others)]
    params, stats = _combined(trees, tuple(map(float, shares)))
    return origin._replace(params=params, stats=stats)


@jax.jit
def _combined(trees, shares):
    def leaf(start, *ends):
        steps = (share * (end - start) for share, end in zip(shares, ends, strict=True))
        return (start + sum(steps)).astype(start.dtype)

    return jax.tree.map(leaf, *trees)


def _difference(network: Network, origin: Network) -> np.ndarray:
    pairs = zip(*map(jax.tree.leaves, (network.params, origin.params)), strict=True)
    return np.concatenate(
        [np.ravel(np.asarray(a, float) - np.asarray(b)) for a, b in pairs]
    )


def _require_alike(*networks: Network) -> None:
    for network in networks:
        require_network(network)
    kinds = [_kind(network) for network in networks]
    if any(other != kinds[0] for other in kinds):
        raise InputError(
            "networks on a line or plane need the same stages, leaves and shapes: give "
            "them one head by evaluation.with_head"
        )


def _kind(network: Network) -> tuple:
    held = tree.flatten((network.params, network.stats))
    return network.stages, {path: jnp.shape(leaf) for path, leaf in held.items()}

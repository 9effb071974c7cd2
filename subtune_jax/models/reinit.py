"""Fresh values for some leaves: what is their pretraining worth?"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.errors import InputError, nearest
from subtune_jax.network import Network, require_network


def reinitialized(network: Network, paths: Iterable[str], key: jax.Array) -> Network:
    """Returns the network with some leaves as before any training.

    paths: as `selection.match` returns those of a unit.

    As PyTorch's layers begin: a kernel is uniform in +- 1 / sqrt(inputs), a scale is 1, a
    bias 0 (a layer's bias is drawn there; ours is not). The statistics of stages whose
    norms are among the leaves are those of no data, mean 0 and variance 1. Raises
    `InputError` for a path that the network does not have.
    """
    require_network(network)
    chosen, leaves = set(paths), tree.flatten(network.params)
    for path in sorted(chosen - leaves.keys()):
        near = ", ".join(nearest(path, leaves))
        raise InputError(f"the network has no leaf {path!r}: nearest are {near}")
    keys = dict(zip(leaves, jax.random.split(key, len(leaves)), strict=True))
    norms = {name.rpartition("/")[0] for name in chosen}

    def fresh(path: str, leaf: jax.Array) -> jax.Array:
        if path not in chosen:
            return leaf
        if path.endswith("scale"):
            return jnp.ones_like(leaf)
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        bound = (leaf.size // leaf.shape[-1]) ** -0.5
        return jax.random.uniform(keys[path], leaf.shape, leaf.dtype, -bound, bound)

    def unmoved(path: str, leaf: jax.Array) -> jax.Array:
        if path.rpartition("/")[0] not in norms:
            return leaf
        return jnp.ones_like(leaf) if path.endswith("var") else jnp.zeros_like(leaf)

    return network._replace(
        params=tree.map_with_path(fresh, network.params),
        stats=tree.map_with_path(unmoved, network.stats),
    )

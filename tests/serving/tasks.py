"""Tasks of every kind on a small network, made by hand."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.data.batches import Dataset
from subtune_jax.deltas.delta import Delta
from subtune_jax.deltas.extract import extract
from subtune_jax.deltas.swap import apply
from subtune_jax.head import replace_head
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.vit import ViTConfig, vit
from subtune_jax.network import Network
from subtune_jax.training.predict import predict
from subtune_jax.tuning.lora import Factors, low_rank
from tests import toy

# Of every family: two stages of its body with one between, and a kernel.
STAGES = {
    "mlp": ("one", "two", "two/kernel"),
    "batch": ("block1_0", "block3_0", "block2_0/conv1/kernel"),
    "group": ("block1_0", "block3_0", "block2_0/conv1/kernel"),
    "bert": ("embeddings", "layer_1", "layer_0/intermediate/kernel"),
    "vit": ("layer_0", "layer_1", "layer_0/attention/query/kernel"),
}


def network_of(family: str, wide: bool = False) -> tuple[Network, Dataset]:
    """Returns a network and its inputs; wide: in float64, where that is enabled."""
    if family == "mlp":
        network, data = toy.mlp(), toy.points(12)
    elif family in ("batch", "group"):
        network, data = toy.small_resnet(family), toy.images(12)
    else:
        network, data = toy.transformer(family)
    if family == "bert" and wide:
        config = BertConfig(40, 16, 2, 4, 24, 12, num_classes=3, dtype="float64")
        network = bert(config, jax.random.key(0))
    if family == "vit" and wide:
        config = ViTConfig(8, 4, 1, 16, 2, 4, 24, num_classes=3, dtype="float64")
        network = vit(config, jax.random.key(0))
    if not wide:
        return network, data
    params, stats = jax.tree.map(_as_float64, (network.params, network.stats))
    return network._replace(params=params, stats=stats), data


def _as_float64(leaf):
    real = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(jnp.float64) if real else leaf


def changed(network: Network, paths, factor: float = 1.3) -> Network:
    """Returns the network with these leaves, or all below these paths, times a factor, and
    vectors a little more; statistics too."""

    def change(path, leaf):
        below = any(path == p or path.startswith(f"{p}/") for p in paths)
        return leaf * factor + 0.1 * (leaf.ndim == 1) if below else leaf

    return network._replace(
        params=tree.map_with_path(change, network.params),
        stats=tree.map_with_path(change, network.stats),
    )


def with_head(network: Network, classes: int, seed: int, **options) -> Network:
    init = jax.nn.initializers.normal(0.5)
    new = replace_head(network, classes, jax.random.key(seed), init=init, **options)
    dtype = jax.tree.leaves(network.params)[0].dtype
    last = new.stages[-1].name
    head = jax.tree.map(lambda x: x.astype(dtype), new.params[last])
    return new._replace(params={**new.params, last: head})


def lora_delta(
    network: Network, path: str, classes: int = 3, seed: int = 1, rank: int = 2
) -> Delta:
    """Returns a low-rank change of one kernel, and a head."""
    kernel = tree.flatten(network.params)[path]
    rng = np.random.default_rng(seed)
    rows, outputs = kernel.size // kernel.shape[-1], kernel.shape[-1]
    a = jnp.asarray(rng.normal(size=(rows, rank)), kernel.dtype)
    b = jnp.asarray(rng.normal(size=(rank, outputs)), kernel.dtype)
    factors = {path: Factors(a, b, 0.25)}

    def change(name, leaf):
        return low_rank(leaf, factors[name]) if name in factors else leaf

    tuned = network._replace(params=tree.map_with_path(change, network.params))
    return extract(network, with_head(tuned, classes, seed), factors=factors)


def elements_delta(network: Network, path: str, classes: int = 3) -> Delta:
    """Returns a change of every seventh element of a leaf, and a head."""

    def change(name, leaf):
        if name != path:
            return leaf
        flat = leaf.reshape(-1)
        return flat.at[::7].add(0.5).reshape(leaf.shape)

    tuned = network._replace(params=tree.map_with_path(change, network.params))
    return extract(network, with_head(tuned, classes, 7))


def vectors(network: Network) -> list[str]:
    """Returns the paths of all leaves of one axis outside the head: biases and scales."""
    last = network.stages[-1].name
    return [
        path
        for path, leaf in tree.flatten(network.params).items()
        if leaf.ndim == 1 and not path.startswith(f"{last}/")
    ]


def deltas(family: str, network: Network) -> dict[str, Delta]:
    """Returns tasks of every kind, with heads of 3 and 5 outputs."""
    low, high, kernel = STAGES[family]
    tuned = {
        "source": network,
        "low": with_head(changed(network, [low]), 5, 1),
        "high": with_head(changed(network, [high]), 5, 2),
        "pair": with_head(changed(network, [low, high], 0.8), 3, 3),
        "same_body": with_head(changed(network, [high]), 5, 4),
        "vectors": with_head(changed(network, vectors(network)), 3, 5),
        "normalized": with_head(network, 3, 6, normalize="batch_affine"),
    }
    every = {name: extract(network, one) for name, one in tuned.items()}
    every["lora"] = lora_delta(network, kernel)
    every["elements"] = elements_delta(network, kernel)
    return every


@cache
def expected(family: str, wide: bool = False):
    """Returns a network, its tasks, inputs, and what the network of each task gives."""
    network, data = network_of(family, wide)
    every = deltas(family, network)
    return network, every, data.x, separate(network, every, data.x)


def separate(network: Network, every: dict[str, Delta], x) -> dict[str, np.ndarray]:
    return {n: predict(apply(network, delta)[0], x) for n, delta in every.items()}

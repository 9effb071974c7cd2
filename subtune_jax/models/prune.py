"""Residual blocks with fewer inner channels: those of the largest kernels stay."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from subtune_jax.errors import InputError, unknown
from subtune_jax.network import Network, require_network

SCOPES = ("local", "global")
MOST = 0.9  # of a layer's channels, pruned globally (SubTuning's first code)


def prune(
    network: Network, blocks: Sequence[str], share: float, scope: str = "local"
) -> Network:
    """Returns the network with a share of the inner channels of some blocks taken out.

    A channel inside a block (between two of its convolutions) is ranked by the L1 norm of
    its kernel. scope: `local` takes the share of every layer, `global` that of all layers
    together, of none more than 0.9. What a block returns keeps its width, so that blocks
    above stay as they are (SubTuning's first code narrows that of the last stage as well).
    Raises `InputError` for what is no residual block with batch norms, a share that is not
    from 0 up to 1, and an unknown scope.
    """
    require_network(network)
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    if not 0 <= share < 1:
        raise InputError(f"share must be from 0 up to 1, got {share!r}")
    layers = [(block, i) for block in blocks for i in _inner(network, block)]
    norms = {(block, i): _norms(network, block, i) for block, i in layers}
    line = np.quantile(np.concatenate([*norms.values()]), share) if layers else 0.0
    for (block, i), norm in norms.items():
        count = int(share * len(norm))
        if scope == "global":
            count = min(int(np.sum(norm < line)), int(MOST * len(norm)))
        kept = np.sort(np.argsort(norm, kind="stable")[count:])
        network = _narrowed(network, block, i, kept)
    return network


def _inner(network: Network, block: str) -> range:
    """Returns the numbers of a block's convolutions but the last."""
    convolutions = [n for n in network.params.get(block, {}) if n.startswith("conv")]
    if len(convolutions) < 2:
        names = [n for n, part in network.params.items() if "conv2" in part]
        raise unknown("residual block", block, names)
    if not network.stats[block]:
        raise InputError(
            f"block {block!r} has group norms, whose groups need all of its channels"
        )
    return range(1, len(convolutions))


def _norms(network: Network, block: str, i: int) -> np.ndarray:
    kernel = np.abs(network.params[block][f"conv{i}"]["kernel"])
    return kernel.sum(axis=(0, 1, 2))


def _narrowed(network: Network, block: str, i: int, kept: np.ndarray) -> Network:
    params, stats = dict(network.params[block]), dict(network.stats[block])
    first, second = params[f"conv{i}"]["kernel"], params[f"conv{i + 1}"]["kernel"]
    # Pre-activated blocks have the norm of a convolution's outputs before the next one, and
    # a network of them a norm in its pooling; else it has the convolution's own number.
    norm = f"norm{i + 1 if network.params.get('pool') else i}"

    def narrowed(leaves: dict[str, Any]) -> dict[str, Any]:
        return {name: leaf[kept] for name, leaf in leaves.items()}

    params |= {
        f"conv{i}": {"kernel": first[..., kept]},
        f"conv{i + 1}": {"kernel": second[:, :, kept]},
        norm: narrowed(params[norm]),
    }
    stats |= {norm: narrowed(stats[norm])}
    return network._replace(
        params={**network.params, block: params}, stats={**network.stats, block: stats}
    )

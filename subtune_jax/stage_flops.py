"""What each stage of a step costs at least, from shapes alone."""

from functools import partial
from typing import Any

import jax

from subtune_jax.flops import trained_flops
from subtune_jax.labels import FROZEN, lowest_trainable
from subtune_jax.network import Labels, Network, require_network


def stage_flops(
    network: Network, x: Any, labels: Labels | None = None, *, padding: bool = False
) -> dict[str, int]:
    """Returns the least contraction FLOPs of a step, by stage, from shapes alone.

    Forward, activation gradients down to the lowest trainable leaf, and weight
    gradients of trainable leaves. Without labels: of the forward pass. padding: whether
    the positions of a convolution's padding count, as in the tables of papers.
    """
    require_network(network)
    if labels is None:
        labels = jax.tree.map(lambda _: FROZEN, network.params)
    lowest, flops = lowest_trainable(network.stages, labels), {}
    for index, (name, apply) in enumerate(network.stages):
        run = partial(apply, batch_stats=False, key=None)
        trains = jax.tree.map(lambda label: label != FROZEN, labels[name])
        params, stats = network.params[name], network.stats[name]
        flops[name] = trained_flops(
            run, [trains, False, index > lowest], params, stats, x, padding=padding
        )
        x, _ = jax.eval_shape(run, params, stats, x)
    return flops

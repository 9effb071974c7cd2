"""Strategies for a new head on a pretrained body: how they start, and what trains when."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from subtune_jax import recipes
from subtune_jax.head import INITIALIZERS, replace_head
from subtune_jax.network import Network
from subtune_jax.training.optimizers import Rule, adam, sgd
from subtune_jax.training.phases import Phase
from subtune_jax.tree import count

HEAD = "head"


class Strategy(NamedTuple):
    """How a new head starts, and what trains when.

    init: of its weights (`head.INITIALIZERS`). normalize: of its features, none, batch or
    batch_affine. stall: updates of the head alone at the start. probe: the share of the
    steps that train the head alone first. gradual: units join from the last to the first.
    body: the factor of the learning rate below the head.
    """

    init: str = "torch"
    normalize: str = "none"
    stall: int = 0
    probe: float = 0.0
    gradual: bool = False
    body: float = 1.0


STRATEGIES = {
    "fast": Strategy("zero", "batch", stall=1),
    "entame": Strategy("normal", "batch", stall=1),
    "torch": Strategy("torch"),
    "he": Strategy("he"),
    "zero": Strategy("zero"),
    "head_only": Strategy(probe=1.0),
    "lp_ft": Strategy(probe=0.5),
    "warm_up": Strategy(probe=0.1),
    "gradual": Strategy(gradual=True),
    "small_rate": Strategy(body=0.1),
}


def new_network(network: Network, strategy: Strategy, key: jax.Array) -> Network:
    """Returns the network with the fresh head of a strategy, of as many classes."""
    kernel = network.params[network.stages[-1].name]["kernel"]
    normalize = None if strategy.normalize == "none" else strategy.normalize
    init = INITIALIZERS[strategy.init]
    return replace_head(network, kernel.shape[1], key, init=init, normalize=normalize)


def phases_of(
    network: Network, strategy: Strategy, optimizer: str, steps: int, rate: float
) -> Sequence[Phase]:
    """Returns the phases of a strategy: all have the same number of updates."""
    make = adam if optimizer == "adam" else sgd
    head, body = make(rate), make(rate * strategy.body)
    if strategy.gradual:
        return _gradual(network, head, steps)
    if strategy.probe == 1:
        return recipes.tune_units(network, [HEAD], head, steps)
    if strategy.probe:
        share = strategy.probe
        return recipes.linear_probe_then_finetune(
            network, head, head, steps, head=HEAD, probe_share=share
        )
    return recipes.fast(network, body, steps, stall=strategy.stall, head_rule=head)


def _gradual(network: Network, rule: Rule, steps: int) -> list[Phase]:
    """Returns gradual unfreezing by surgical blocks, else by stages; at last everything."""
    table = network.units.get("surgical")
    if table is None:
        names = [s.name for s in network.stages if count(network.params[s.name])]
    units = [f"surgical:{u}" for u in table] if table else [f"{n}/.*" for n in names]
    return recipes.gradual_unfreezing(network, [*units[:0:-1], ".*"], rule, steps)

"""The schemes of surgical fine-tuning: from the name of a method to its phases."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from subtune_jax import recipes
from subtune_jax.errors import unknown
from subtune_jax.labels import FROZEN
from subtune_jax.network import Labels, Network
from subtune_jax.selection.select import select, unit_patterns
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.tuning.anchor import l1_sp, l2_sp

ENTRIES = {"all": ".*", "last": "head"}  # methods that are no unit's name


class Variant(NamedTuple):
    """What is tried: a learning rate, and the method's own setting (else 0)."""

    learning_rate: float
    setting: float = 0.0


class Budget(NamedTuple):
    """What a method may spend: optimizer steps, and the L2 inside Adam."""

    steps: int
    l2: float


Scheme = Callable[[Network, Variant, Budget], list[Phase]]


def phases(
    network: Network, method: str, variant: Variant, budget: Budget
) -> list[Phase]:
    """Returns the phases of a method; raises `InputError` for an unknown one.

    `all`, `last`, a unit (the table `surgical` first, the paper's blocks), a path
    pattern, or one of `SCHEMES`.
    """
    if method in SCHEMES:
        return SCHEMES[method](network, variant, budget)
    return [Phase(labels(network, method), _rule(variant, budget), budget.steps)]


def labels(network: Network, method: str) -> Labels:
    """Returns everything that a method trains at some time."""
    if method == "none":
        return jax.tree.map(lambda _: FROZEN, network.params)
    if method == "race":  # any of them may win
        return labels(network, "all")
    if method in SCHEMES:
        last = SCHEMES[method](network, Variant(1.0, 1.0), Budget(_MANY, 0.0))[-1]
        return last.labels
    entry = ENTRIES.get(method, method)
    if unit_patterns(network, f"surgical:{entry}"):
        entry = f"surgical:{entry}"
    named = method in ENTRIES or unit_patterns(network, entry)
    if not named and re.fullmatch(r"\w+", method):
        units = [unit for table in network.units.values() for unit in table]
        raise unknown(
            "method",
            method,
            dict.fromkeys(("none", *ENTRIES, *units, *SCHEMES, "race")),
        )
    return select(network, {recipes.GROUP: [entry]})


def blocks(network: Network) -> list[str]:
    """Returns the paper's blocks from input to output, the head last."""
    return [f"surgical:{unit}" for unit in network.units["surgical"]]


def _rule(variant: Variant, budget: Budget):
    return adam(variant.learning_rate, l2=budget.l2)


def _by_rule(recipe: Callable, **options: Any) -> Scheme:
    """Returns the scheme of a recipe that takes (network, rule, steps)."""

    def scheme(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
        return recipe(network, _rule(variant, budget), budget.steps, **options)

    return scheme


def _auto_snr(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
    scheme = _by_rule(recipes.auto_snr, threshold=variant.setting)
    return scheme(network, variant, budget)


def _unfreezing(step: int, network: Network, variant: Variant, budget: Budget):
    order = blocks(network)[::step]
    return recipes.gradual_unfreezing(
        network, order, _rule(variant, budget), budget.steps
    )


def _anchored(
    penalty: Callable, network: Network, variant: Variant, budget: Budget
) -> list[Phase]:
    """Everything is tuned and pulled to its start; the head too, which is pretrained."""
    every = select(network, {recipes.GROUP: [".*"]})
    tuning = penalty(variant.setting, free=())
    return [Phase(every, _rule(variant, budget), budget.steps, tuning)]


def _probe_then_tune(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
    """Half of the steps for the head at ten times the rate, then half for everything."""
    fast = adam(10 * variant.learning_rate, l2=budget.l2)
    return recipes.linear_probe_then_finetune(
        network, fast, _rule(variant, budget), budget.steps
    )


_MANY = 1000  # steps enough for every scheme to have all of its phases

SCHEMES: Mapping[str, Scheme] = {
    "auto_rgn": _by_rule(recipes.auto_rgn),
    "auto_rgn_blocks": _by_rule(recipes.auto_rgn, table="surgical"),
    "auto_snr": _auto_snr,
    "auto_snr_official": _by_rule(recipes.auto_snr_official),
    "unfreeze_first": partial(_unfreezing, 1),
    "unfreeze_last": partial(_unfreezing, -1),
    "l1_sp": partial(_anchored, l1_sp),
    "l2_sp": partial(_anchored, l2_sp),
    "lp_ft": _probe_then_tune,
}


def is_block(method: str) -> bool:
    """Returns whether a method tunes one block, or the last layer."""
    return method.startswith("block") or method == "last"

"""The methods of surgical fine-tuning: which phases each one trains.

papers/surgical.md 2.3 to 2.6. A method is a name; `variants` are the settings that are
tried for it, and the one with the best validation accuracy is kept.
"""

import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import jax

from subtune_jax import tree
from subtune_jax.errors import unknown
from subtune_jax.labels import FROZEN, trainable_half
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Labels, Network
from subtune_jax.selection.rate_multipliers import auto_rgn, auto_snr
from subtune_jax.selection.select import match, select, unit_patterns
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.tuning.anchor import l1_sp, l2_sp

ENTRIES = {"all": ".*", "last": "head"}  # methods that are no unit's name


class Variant(NamedTuple):
    """What is tried: a rate, and the method's own setting where it has one (else 0)."""

    rate: float
    setting: float = 0.0


class Grid(NamedTuple):
    """The values tried; `resolved` flags of an experiment."""

    rates: Sequence[float]
    last_rates: Sequence[float]
    auto_rates: Sequence[float]
    strengths: Sequence[float]
    thresholds: Sequence[float]
    tries: int | None = None


class Budget(NamedTuple):
    """What a method may spend: optimizer steps, and the L2 inside Adam."""

    steps: int
    l2: float


Make = Callable[[Network, Variant, Budget], list[Phase]]


def variants(method: str, grid: Grid) -> list[Variant]:
    """Returns what is tried for a method: the first `grid.tries` pairs of a rate and a
    setting, or all of them. `none` has nothing to try."""
    if method == "none":
        return []
    rates = {
        "last": grid.last_rates,
        "head": grid.last_rates,
        "auto_rgn": grid.auto_rates,
        "auto_rgn_blocks": grid.auto_rates,
    }.get(method, grid.rates)
    settings = {
        "l1_sp": grid.strengths,
        "l2_sp": grid.strengths,
        "auto_snr": grid.thresholds,
    }.get(method, (0.0,))
    return [Variant(*pair) for pair in product(rates, settings)][: grid.tries]


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
    if method in SCHEMES:
        last = SCHEMES[method](network, Variant(1.0, 1.0), Budget(_MANY, 0.0))[-1]
        return last.labels
    entry = ENTRIES.get(method, method)
    if unit_patterns(network, f"surgical:{entry}"):
        entry = f"surgical:{entry}"
    named = method in ENTRIES or unit_patterns(network, entry)
    if not named and re.fullmatch(r"\w+", method):
        units = [unit for table in network.units.values() for unit in table]
        known = dict.fromkeys(("none", *ENTRIES, *units, *SCHEMES))
        raise unknown("method", method, known)
    return select(network, {"tuned": [entry]})


def blocks(network: Network) -> list[str]:
    """Returns the paper's blocks from input to output, the head last."""
    return [f"surgical:{unit}" for unit in network.units["surgical"]]


def _rule(variant: Variant, budget: Budget):
    return adam(variant.rate, l2=budget.l2)


def _auto_rgn(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
    """All tensors but norms, rates weighted by RGN at every epoch, moments reset then."""
    chosen = _without_norms(network)
    made = Phase(chosen, _rule(variant, budget), budget.steps)
    return [made._replace(multipliers=auto_rgn(cross_entropy), reset_moments=True)]


def _auto_snr(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
    """All tensors but norms; those of an SNR below the threshold rest for an epoch."""
    made = Phase(_without_norms(network), _rule(variant, budget), budget.steps)
    rule = auto_snr(cross_entropy, threshold=variant.setting, mode="microbatch")
    return [made._replace(multipliers=rule)]


def _auto_rgn_blocks(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
    """As `auto_rgn`, with one weight for all tensors of a block."""
    (made,) = _auto_rgn(network, variant, budget)
    return [made._replace(multipliers=auto_rgn(cross_entropy, table="surgical"))]


def _auto_snr_official(
    network: Network, variant: Variant, budget: Budget
) -> list[Phase]:
    """The rule of the paper's code: its own form of SNR, not normalized, at 0.95."""
    made = Phase(_without_norms(network), _rule(variant, budget), budget.steps)
    form = {"mode": "official", "normalization": "none", "threshold": 0.95}
    rule = auto_snr(cross_entropy, **form)
    return [made._replace(multipliers=rule, reset_moments=True)]


def _without_norms(network: Network) -> Labels:
    norms = set(match(network, "kinds:norms"))
    return tree.map_with_path(
        lambda p, _: FROZEN if p in norms else "tuned", network.params
    )


def _unfreezing(order: Callable[[list[str]], list[str]]) -> Make:
    """Adds a block after each equal slice of the steps, and never freezes one again."""

    def make(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
        units = order(blocks(network))
        slices = _equal_parts(budget.steps, len(units))
        return [
            Phase(
                select(network, {"tuned": units[: i + 1]}),
                _rule(variant, budget),
                steps,
            )
            for i, steps in enumerate(slices)
        ]

    return make


def _equal_parts(steps: int, parts: int) -> list[int]:
    ends = [steps * i // parts for i in range(parts + 1)]
    return [max(end - begin, 1) for begin, end in zip(ends, ends[1:], strict=False)]


def _anchored(penalty: Callable) -> Make:
    """Everything is tuned and pulled to its start; the head too, which is pretrained."""

    def make(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
        every = select(network, {"tuned": [".*"]})
        tuning = penalty(variant.setting, free=())
        return [Phase(every, _rule(variant, budget), budget.steps, tuning)]

    return make


def _probe_then_tune(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
    """Half of the steps for the head at ten times the rate, then half for everything."""
    probe, tune = _equal_parts(budget.steps, 2)
    head, every = (select(network, {"tuned": [entry]}) for entry in ("head", ".*"))
    fast = adam(10 * variant.rate, l2=budget.l2)
    return [Phase(head, fast, probe), Phase(every, _rule(variant, budget), tune)]


_MANY = 1000  # steps enough for every scheme to make all of its phases

SCHEMES: dict[str, Make] = {
    "auto_rgn": _auto_rgn,
    "auto_rgn_blocks": _auto_rgn_blocks,
    "auto_snr": _auto_snr,
    "auto_snr_official": _auto_snr_official,
    "unfreeze_first": _unfreezing(lambda units: units),
    "unfreeze_last": _unfreezing(lambda units: units[::-1]),
    "l1_sp": _anchored(l1_sp),
    "l2_sp": _anchored(l2_sp),
    "lp_ft": _probe_then_tune,
}


def trainable_at_most(network: Network, method: str) -> int:
    """Returns how many numbers a method tunes, all phases together."""
    return tree.count(trainable_half(network.params, labels(network, method)))

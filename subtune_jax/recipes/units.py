"""Recipes that tune units: one of them, more and more, or all at rates by their gradients.

A unit is a name of `Network.units`, `table:unit` or a pattern.
"""

from collections.abc import Callable, Sequence

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive
from subtune_jax.labels import FROZEN
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Labels, Network, require_network
from subtune_jax.selection import rate_multipliers
from subtune_jax.selection.select import match, select
from subtune_jax.training.optimizers import Rule
from subtune_jax.training.phases import Phase

GROUP = "tuned"  # of all leaves that a recipe trains


def tune_units(
    network: Network, units: Sequence[str], rule: Rule, steps: int
) -> list[Phase]:
    """Returns one phase that trains the units and nothing else (SubTuning, surgical
    fine-tuning)."""
    units = [units] if isinstance(units, str) else list(units)
    return [Phase(select(network, {GROUP: units}), rule, steps)]


def linear_probe_then_finetune(
    network: Network,
    probe_rule: Rule,
    rule: Rule,
    steps: int,
    *,
    head: str = "head",
    probe_share: float = 0.5,
) -> list[Phase]:
    """Returns two phases: the head alone, then everything (Kumar et al. 2022).

    probe_share: of the steps, those of the first phase. Raises `InputError` where a phase
    would have no step.
    """
    probe = int(steps * probe_share)
    require_positive(probe_steps=probe, finetune_steps=steps - probe)
    return [
        Phase(select(network, {GROUP: [head]}), probe_rule, probe),
        Phase(select(network, {GROUP: [".*"]}), rule, steps - probe),
    ]


def gradual_unfreezing(
    network: Network, units: Sequence[str], rule: Rule, steps: int
) -> list[Phase]:
    """Returns a phase for each unit, which trains it and all units before it in the list.

    Each has an equal share of the steps, one at least. Surgical fine-tuning
    goes from the first block to the last and back; Howard and Ruder 2018 begin at the
    last. Raises `InputError` for no unit.
    """
    if not units:
        raise InputError("gradual unfreezing needs at least one unit")
    ends = [steps * i // len(units) for i in range(len(units) + 1)]
    return [
        Phase(
            select(network, {GROUP: list(units[: i + 1])}),
            rule,
            max(ends[i + 1] - ends[i], 1),
        )
        for i in range(len(units))
    ]


def auto_rgn(
    network: Network,
    rule: Rule,
    steps: int,
    *,
    loss: Callable = cross_entropy,
    table: str | None = None,
) -> list[Phase]:
    """Returns one phase of Auto-RGN (surgical fine-tuning): all tensors but
    norms train, at rates in proportion to their relative gradient norms.

    The multipliers are set and Adam's moments reset at every epoch. table: a unit table
    whose units share one multiplier; default: one for each tensor.
    """
    multipliers = rate_multipliers.auto_rgn(loss, table=table)
    labels = without_norms(network)
    return [Phase(labels, rule, steps, multipliers=multipliers, reset_moments=True)]


def auto_snr(
    network: Network,
    rule: Rule,
    steps: int,
    *,
    threshold: float,
    loss: Callable = cross_entropy,
) -> list[Phase]:
    """Returns one phase of Auto-SNR (surgical fine-tuning): of all tensors but
    norms, those whose normalized signal-to-noise ratio is below the threshold rest for
    an epoch. The ratio is over micro-batches."""
    multipliers = rate_multipliers.auto_snr(
        loss, threshold=threshold, mode="microbatch"
    )
    return [Phase(without_norms(network), rule, steps, multipliers=multipliers)]


def auto_snr_official(
    network: Network, rule: Rule, steps: int, *, loss: Callable = cross_entropy
) -> list[Phase]:
    """Returns one phase of Auto-SNR as the paper's code computes it: its own form of the
    ratio, not normalized, at a threshold of 0.95, with moments reset at every epoch."""
    multipliers = rate_multipliers.auto_snr(
        loss, threshold=0.95, mode="official", normalization="none"
    )
    labels = without_norms(network)
    return [Phase(labels, rule, steps, multipliers=multipliers, reset_moments=True)]


def without_norms(network: Network) -> Labels:
    """Returns labels under which everything trains but the unit `kinds:norms`."""
    norms = set(match(network, "kinds:norms"))
    return tree.map_with_path(
        lambda path, _: FROZEN if path in norms else GROUP, network.params
    )


def require_head(network: Network, head: str, why: str) -> None:
    """Raises `InputError` where no stage has the name of the head."""
    require_network(network)
    if not any(stage.name == head for stage in network.stages):
        raise InputError(
            f"{why}, and no stage is {head!r}: the stages are "
            f"{', '.join(stage.name for stage in network.stages)}"
        )

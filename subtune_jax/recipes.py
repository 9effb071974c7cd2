"""Methods as lists of phases, to be given to `fit` or `tune`.

Every recipe takes the network and the rule that its trainable leaves follow; `steps` are
those of the whole run. A unit is a name of `Network.units`, `table:unit` or a pattern.
"""

from collections.abc import Callable, Sequence

import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive
from subtune_jax.labels import FROZEN
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Labels, Network, require_network
from subtune_jax.selection import rate_multipliers
from subtune_jax.selection.select import match, select
from subtune_jax.training.optimizers import Rule, adam, ascent, normalized_sgd
from subtune_jax.training.phases import Phase
from subtune_jax.tuning.diff_pruning import CUT, LOG_ALPHA, constrained_diff_pruning
from subtune_jax.tuning.diff_pruning import diff_pruning as gated_differences
from subtune_jax.tuning.fixed_mask import largest_changes

GROUP = "tuned"  # of all leaves that a recipe trains


def tune_units(
    network: Network, units: Sequence[str], rule: Rule, steps: int
) -> list[Phase]:
    """Returns one phase that trains the units and nothing else (SubTuning, surgical
    fine-tuning)."""
    return [Phase(select(network, {GROUP: list(units)}), rule, steps)]


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


def diff_pruning(
    network: Network,
    share: float,
    rule: Rule,
    steps: int,
    *,
    strength: float | None = None,
    head_rule: Rule | None = None,
    gates_rule: Rule | None = None,
    multiplier_rule: Rule | None = None,
    mask_rule: Rule | None = None,
    mask_share: float = 0.5,
    structure: str = "leaf",
    l0: str = "product",
    start: str = "change",
    gated: Sequence[str] = (".*",),
    head: str = "head",
) -> list[Phase]:
    """Returns two phases: differences through gates, then the share of all gated elements
    that changed most, exactly k = round(share * d) of them, trained on (diff pruning).

    `rule` is that of the differences, and of the head, which has no gates, unless it has a
    `head_rule`; in the second phase, `mask_share` of the steps, the chosen elements have
    `mask_rule` (default: the same). strength: the fixed factor of E[L0] (paper: 1.25e-7
    for 3e8 parameters; it goes with their number); `None`: none, but the constraint of
    `constrained_diff_pruning`. gates_rule: default Adam at 0.1 with a strength (official
    code), and under the constraint `normalized_sgd` at 0.1, falling to 0. multiplier_rule:
    default ascent at a rate that reaches the share in half of the gated steps, or, where
    these are few, in all of them.
    gated: what may change beside the head. structure, l0 and start: see
    `tuning.diff_pruning` and `tuning.largest_changes`. Epochs of the first phase are not
    kept: they are not sparse. Raises `InputError` for a share that is not in (0, 1] or
    leaves no element, a network without this head, and where a phase would have no step,
    or too few for the multiplier to reach the share.
    """
    require_network(network)
    if not any(stage.name == head for stage in network.stages):
        raise InputError(
            f"diff pruning trains a head beside what is gated, and no stage is {head!r}: "
            f"the stages are {', '.join(stage.name for stage in network.stages)}"
        )
    labels = select(network, {"head": [head], GROUP: list(gated)})
    k = masked_elements(network, labels, share)
    second = int(steps * mask_share)
    require_positive(gated_steps=steps - second, mask_steps=second)
    rules = {GROUP: rule, "head": head_rule or rule}
    mask_rules = rules | {GROUP: mask_rule or rule}
    if strength is None:
        tuning = constrained_diff_pruning(share, structure=structure)
        multiplier_rule = multiplier_rule or _reaching(share, steps - second)
        gates = gates_rule or normalized_sgd(0.1, schedule="linear")
        rules |= {"gates": gates, "multiplier": multiplier_rule}
    else:
        tuning = gated_differences(strength, structure=structure, l0=l0)
        rules |= {"gates": gates_rule or adam(0.1, clip_norm=1.0)}
    return [
        Phase(labels, rules, steps - second, tuning, keeps=False),
        Phase(labels, mask_rules, second, largest_changes(k, start=start)),
    ]


def _reaching(share: float, steps: int) -> Rule:
    """Returns the multiplier's rule: half of the steps take it to the share, or all that
    there are; raises `InputError` where these are too few."""
    # From `LOG_ALPHA` all gates have to come down to logit(share), of 0.99 at the most (1
    # has none), and a step is at most the rate times `CUT`. Near the share the error is
    # multiplied by 1 - rate at every step: a rate above 1 would swing.
    distance = LOG_ALPHA - np.log(share) + np.log1p(-min(share, 0.99))
    least = int(np.ceil(distance / CUT))
    if steps < least:
        raise InputError(
            f"the constraint takes at least {least} steps with gates to reach a share of "
            f"{share}, and there are {steps}: give more steps, or a strength"
        )
    return ascent(min(1.0, 2 * distance / (CUT * steps)))


def masked_elements(network: Network, labels: Labels, share: float) -> int:
    """Returns round(share * d), d counting the elements outside the group `head`.

    Raises `InputError` for a share that is not in (0, 1] or leaves no element.
    """
    require_network(network)
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, got {share!r}")
    groups = tree.flatten(labels)
    d = sum(
        leaf.size
        for path, leaf in tree.flatten(network.params).items()
        if groups[path] not in (FROZEN, "head")
    )
    if round(share * d) < 1:
        raise InputError(f"a share of {share} leaves none of {d} elements")
    return round(share * d)


def without_norms(network: Network) -> Labels:
    """Returns labels under which everything trains but the unit `kinds:norms`."""
    norms = set(match(network, "kinds:norms"))
    return tree.map_with_path(
        lambda path, _: FROZEN if path in norms else GROUP, network.params
    )

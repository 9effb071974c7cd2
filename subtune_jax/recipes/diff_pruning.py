"""The recipe of diff pruning: gates first, then a mask of what changed most."""

from collections.abc import Sequence

import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive
from subtune_jax.labels import FROZEN
from subtune_jax.network import Labels, Network, require_network
from subtune_jax.recipes.units import GROUP, require_head
from subtune_jax.selection.select import select
from subtune_jax.training.optimizers import Rule, adam, ascent, normalized_sgd
from subtune_jax.training.phases import Phase
from subtune_jax.tuning.diff_pruning import LOG_ALPHA, constrained_diff_pruning
from subtune_jax.tuning.diff_pruning import diff_pruning as gated_differences
from subtune_jax.tuning.fixed_mask import largest_changes
from subtune_jax.tuning.multiplier import CUT, REACH


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
    l0: str | None = None,
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
    `constrained_diff_pruning`, whose gates close in half of the gated steps or sooner, or,
    where these are few, in all of them. gates_rule: default Adam at 0.1 with a strength
    (official code), and under the constraint `normalized_sgd` at 0.1, falling to 0.
    multiplier_rule: default ascent at 0.5 (below 2, or it swings). gated: what may change
    beside the head. structure, l0 (of a strength alone) and start: see
    `tuning.diff_pruning` and `tuning.largest_changes`. Epochs of the first phase are not
    kept: they are not sparse.

    Raises `InputError` for a share that is not in (0, 1] or leaves no element, a network
    without this head, a `multiplier_rule` that is not `ascent` with a rate below 2 or that
    comes beside a strength, an `l0` without one, and where a phase would have no step, or
    too few for the multiplier to reach the share.
    """
    require_head(network, head, "diff pruning trains a head beside what is gated")
    labels = select(network, {"head": [head], GROUP: list(gated)})
    k = masked_elements(network, labels, share)
    second = int(steps * mask_share)
    require_positive(gated_steps=steps - second, mask_steps=second)
    rules = {GROUP: rule, "head": head_rule or rule}
    mask_rules = rules | {GROUP: mask_rule or rule}
    if strength is None:
        if l0 is not None:
            raise InputError(
                "l0 applies only with a strength; the constraint counts a change by the "
                "product of its gates: leave l0 out, or give a strength"
            )
        multiplier_rule = multiplier_rule or ascent(0.5)
        _require_ascent(multiplier_rule)
        cut = _cut(share, steps - second, multiplier_rule.learning_rate)
        tuning = constrained_diff_pruning(share, cut=cut, structure=structure)
        gates = gates_rule or normalized_sgd(0.1, schedule="linear")
        rules |= {"gates": gates, "multiplier": multiplier_rule}
    else:
        if multiplier_rule is not None:
            raise InputError(
                "multiplier_rule is of the constraint, which a strength takes the place of: "
                "give one of the two"
            )
        tuning = gated_differences(strength, structure=structure, l0=l0 or "product")
        rules |= {"gates": gates_rule or adam(0.1, clip_norm=1.0)}
    return [
        Phase(labels, rules, steps - second, tuning, keeps=False),
        Phase(labels, mask_rules, second, largest_changes(k, start=start)),
    ]


def _require_ascent(rule: Rule) -> None:
    # At a rate r the error is multiplied by 1 - r in a step: from 2 on it swings for ever.
    if isinstance(rule, Rule) and rule.direction == "ascent" and rule.learning_rate < 2:
        return
    given = (
        f"{rule.direction} at {rule.learning_rate}" if isinstance(rule, Rule) else rule
    )
    raise InputError(
        f"multiplier_rule must be `ascent` with a rate below 2, got {given}"
    )


def _cut(share: float, steps: int, rate: float) -> float:
    """Returns the cut that closes the gates to the share in half of the steps or sooner, or,
    where these are few, in all of them; raises `InputError` where there are too few."""
    # All gates fall from `LOG_ALPHA` to logit(share). 1 has no logit: 0.99 is taken.
    distance = LOG_ALPHA - np.log(share) + np.log1p(-min(share, 0.99))
    left = max(abs(1 - rate), 0.005)  # of the error after a step
    settling = np.ceil(np.log(0.005) / np.log(left))  # steps to half a percent of it
    least = int(np.ceil(distance / (REACH * rate)) + settling)
    if steps < least:
        raise InputError(
            f"the constraint takes at least {least} steps with gates to reach a share of "
            f"{share} at a rate of {rate}, and there are {steps}: give more steps, or a "
            "strength"
        )
    # Not below CUT: the gates open at a rate that does not fall with the number of steps,
    # and would outrun a multiplier that takes half of a long run to close them.
    return min(REACH, max(CUT, 2 * distance / (rate * steps)))


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

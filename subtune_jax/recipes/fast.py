"""The recipe of FAST: the head alone for its first updates, then everything."""

from subtune_jax.errors import InputError, require_whole
from subtune_jax.network import Network
from subtune_jax.recipes.units import GROUP, require_head
from subtune_jax.selection.select import select
from subtune_jax.training.optimizers import Rule
from subtune_jax.training.phases import Phase

HEAD = "head"  # the group of the head, beside `GROUP`


def fast(
    network: Network,
    rule: Rule,
    steps: int,
    *,
    stall: int = 1,
    accumulate: int = 1,
    head_rule: Rule | None = None,
    head: str = "head",
) -> list[Phase]:
    """Returns two phases: `stall` updates of the head alone, then of everything (FAST).

    The network has a head of zeros on features normalized by batch, as
    `replace_head(network, classes, normalize="batch")` gives it: its outputs start at
    maximum entropy, and the backbone is spared the first errors. It has no gradient, moment
    or decay in the stall, and keeps its statistics; the head goes on with its own.
    rule: of the backbone, and of the head unless it has a `head_rule`; they are two groups.
    Their schedules begin after the stall, in which the head's rate is constant.
    stall: updates, 0 for none; with `Settings(accumulate=n)` give n here too, since steps
    are micro-batches. A normalized head has the statistics of the batch, and then all other
    norms have stored ones. The stall stands in the abstracts of FAST and ENTAME; its length
    is our reading (docs/methods.md). Raises `InputError` for a stall that is not shorter
    than the run, and a network without this head.
    """
    require_head(network, head, "FAST stalls all but the head")
    require_whole(steps=steps, accumulate=accumulate)
    stalled = stall * accumulate
    if not 0 <= stalled < steps or stall != int(stall):
        raise InputError(
            f"a stall of {stall} updates takes {stalled} of {steps} steps: expected a whole "
            "number from 0, and fewer than the run has"
        )
    rules = {HEAD: head_rule or rule, GROUP: rule}
    norm = [head] if network.stats.get(head) else None
    alone, every = (
        select(network, {HEAD: [head], **body}) for body in ({}, {GROUP: [".*"]})
    )
    rest = Phase(every, rules, steps - stalled, norm=norm)
    # A schedule is of a phase: in the stall it would fall to 0, or never warm up.
    constant = rules[HEAD]._replace(schedule="constant", warmup=0)
    return [Phase(alone, constant, stalled, norm=norm), rest] if stalled else [rest]

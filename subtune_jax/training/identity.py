"""What a run is: fingerprints by which a checkpoint knows the run it belongs to."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import Ragged
from subtune_jax.function_identity import said
from subtune_jax.training.optimizers import Rule
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import Plan


def identity(plan: Plan, scored: str | None = None) -> dict[str, Any]:
    """Returns fingerprints of the base and, by name, of the parts of the run's recipe.

    The recipe is what the result depends on: labels, rules, functions with their code and
    what they read (see `function_identity`), data, order, the kind of score, the head; not
    the steps of a last phase with constant rates, which more steps continue. The
    base is every other stage, or the one stage of a network adopted whole. What
    `validate` does is not known here.
    """
    network = plan.network
    *body, head = [stage.name for stage in network.stages]
    base = {name: network.params[name] for name in body or [head]}
    phases = plan.phases
    rules = [(p.rules, p.reset_moments, p.norm, p.dropout, p.keeps) for p in phases]
    recipe = {
        "labels": [sorted(tree.flatten(phase.labels).items()) for phase in phases],
        "rules or norms of a phase": rules,
        "steps (of a phase before the last, or under a schedule)": _fixed_steps(phases),
        "multipliers": [said(phase.multipliers) for phase in phases],
        "tuning": [said(phase.tuning) for phase in phases],
        "loss, norm, dropout or accumulate": said(plan.settings[:4]),
        "code of the network's stages": said(network.stages),
        "batch_size": (plan.settings.batch_size, plan.drop),
        "augment": said(plan.settings.augment),
        "validate or mode": scored,
        "head": tree.fingerprint(network.params[head]),
        "key": (plan.seed, tree.fingerprint({"key": jax.random.key_data(plan.key)})),
        "data": tree.fingerprint(_seen(plan.data)),
    }
    return {
        "base": tree.fingerprint({"params": base, "stats": network.stats}),
        "recipe": {name: _digest(value) for name, value in recipe.items()},
    }


def _fixed_steps(phases: Sequence[Phase]) -> list[int]:
    """Returns the steps that a run depends on from its start.

    Those of the last phase are none of them where its rates are constant: a run with more
    steps begins as this one does, and continues it.
    """
    steps, last = [phase.steps for phase in phases], phases[-1].rules
    rules = [last] if isinstance(last, Rule) else last.values()
    constant = all(rule.schedule == "constant" for rule in rules)
    return steps[:-1] if constant else steps


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _seen(data: Dataset) -> dict[str, Any]:
    """Returns what of the data is fingerprinted: all that is in memory, and 64 rows of
    what is read when taken."""
    rows = np.unique(np.linspace(0, len(data.y) - 1, 64).astype(int))

    def part(leaf: Any) -> Any:
        if isinstance(leaf, Ragged):
            return {"values": leaf.values, "ends": leaf.ends}
        return leaf if isinstance(leaf, np.ndarray | jax.Array) else leaf[rows]

    return {"x": jax.tree.map(part, data.x), "y": np.asarray(data.y)}

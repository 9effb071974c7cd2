"""What a run is: digests by which a checkpoint knows the run it belongs to."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.canonical import digest, hashed
from subtune_jax.data.batches import padded
from subtune_jax.errors import InputError
from subtune_jax.host_functions import described
from subtune_jax.programs import Traces
from subtune_jax.training.optimizers import Rule
from subtune_jax.training.phases import Phase, Program
from subtune_jax.training.plan import Plan
from subtune_jax.training.state import State
from subtune_jax.training.step import traced_step


def identity(plan: Plan, scored: tuple | None = None) -> dict[str, dict[str, Any]]:
    """Returns what a run's result depends on from its start, digested by name.

    base: all stages but the head, or the one stage of a network adopted whole. recipe:
    other values, and functions that are not traced. begins: each tuning's traced `init`.
    versions: under others, what was traced cannot be compared. scored: the mode and
    `validate`, which counts if it can be read. Raises `InputError` for a function that has
    no name and cannot be read.
    """
    network, phases, settings = plan.network, plan.phases, plan.settings
    *body, head = [stage.name for stage in network.stages]
    base = {name: network.params[name] for name in body or [head]}
    recipe = {
        "labels": [sorted(tree.flatten(phase.labels).items()) for phase in phases],
        "rules": [(p.rules, p.reset_moments, p.keeps) for p in phases],
        "steps (of a phase before the last, or under a schedule)": _fixed_steps(phases),
        "multipliers": described([phase.multipliers for phase in phases]),
        "tuning": described([phase.tuning.take_over for phase in phases]),
        "batch_size": (settings.batch_size, plan.drop),
        "augment": described(settings.augment),
        "validate or mode": _scored(scored),
        "head": tree.fingerprint(network.params[head]),
        "key": (plan.seed, tree.fingerprint(plan.key)),
        "data": plan.data.fingerprint(),
    }
    arrays = {"params": base, "stats": network.stats}
    return {
        "base": {"base": tree.fingerprint(arrays)},
        "recipe": {name: hashed(value) for name, value in recipe.items()},
        "begins": {"tuning": hashed([_begins(plan, phase) for phase in phases])},
        "versions": versions(),
    }


def step_digest(plan: Plan, program: Program, state: State) -> str:
    """Returns the digest of a phase's traced step: uncut, and at a batch of the longest rows.
    Shapes of the state suffice."""
    longest = 0 if plan.sizes is None else int(np.argmax(plan.sizes))
    one, augment = plan.data.take(np.array([longest])), plan.settings.augment
    if augment is not None:
        one = one._replace(x=augment(one.x, np.random.default_rng(0)))
    batch = padded(one, plan.settings.batch_size)
    given = program, state, plan.network.params, batch
    return digest(traced_step(plan.traces, *given).jaxpr, described, layout=[])


def _begins(plan: Plan, phase: Phase) -> str:
    def init(params: Any, key: jax.Array) -> Any:
        return phase.tuning.init(params, phase.labels, key)

    try:
        given = plan.network.params, jax.random.key(0)
        return computed(init, *given)
    except InputError:  # it can only take over
        return ""


def computed(f: Callable, *args: Any) -> str:
    """Returns the digest of what f(*args) computes, the same in every process."""
    jaxpr = Traces().once("f", f, lambda: jax.make_jaxpr(f)(*args))
    return digest(jaxpr, described, layout=[])


def _scored(scored: tuple | None) -> Any:
    try:
        return scored and (scored[0], described(scored[1]))
    except InputError:  # it chooses an epoch, and changes none
        return scored and scored[0]


def versions() -> dict[str, str]:
    """Returns what decides which program is traced of a function."""
    names = ("jax", "jaxlib", "flax", "optax", "subtune_jax")
    numbers = {name: import_module(name).__version__ for name in names}
    config: Any = jax.config
    precision = str(config.jax_default_matmul_precision)
    settings = {"x64": str(config.jax_enable_x64), "matmul precision": precision}
    return {"Python": "{}.{}".format(*sys.version_info), **numbers, **settings}


def _fixed_steps(phases: Sequence[Phase]) -> list[int]:
    # With constant rates, a run of more steps in the last phase begins as this one does,
    # and continues it.
    steps, last = [phase.steps for phase in phases], phases[-1].rules
    rules = [last] if isinstance(last, Rule) else last.values()
    return steps[:-1] if all(r.schedule == "constant" for r in rules) else steps

"""What a run is: digests by which a checkpoint knows the run it belongs to."""

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.canonical import digest
from subtune_jax.data.batches import Batch, Dataset
from subtune_jax.data.buckets import Ragged
from subtune_jax.errors import InputError
from subtune_jax.host_functions import described
from subtune_jax.programs import Traces
from subtune_jax.training.optimizers import Rule
from subtune_jax.training.phases import Phase, Program
from subtune_jax.training.plan import Plan
from subtune_jax.training.state import State
from subtune_jax.training.step import traced_step

PACKAGES = ("jax", "jaxlib", "flax", "optax", "subtune-jax")


def identity(plan: Plan, scored: tuple | None = None) -> dict[str, dict[str, Any]]:
    """Returns what a run's result depends on from its start, digested by name.

    base: all stages but the head, or the one stage of a network adopted whole. recipe:
    other values, and functions that are not traced. begins: each tuning's traced `init`.
    versions: under others, what was traced cannot be compared. scored: the mode and
    `validate`, which counts if it can be read. The steps of a last phase with constant
    rates are left out: more steps continue it. Raises `InputError` for a function that has
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
        "key": (plan.seed, tree.fingerprint({"key": jax.random.key_data(plan.key)})),
        "data": tree.fingerprint(seen(plan.data)),
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
    x = one.x if augment is None else augment(one.x, np.random.default_rng(0))

    def rows(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        return jax.ShapeDtypeStruct((plan.settings.batch_size, *leaf.shape[1:]), dtype)

    batch = jax.tree.map(rows, Batch(x, one.y, np.ones(1, np.float32)))
    traced = traced_step(plan.traces, program, state, plan.network.params, batch)
    return digest(traced.jaxpr, described, layout=False)


def _begins(plan: Plan, phase: Phase) -> str:
    def init(params: Any, key: jax.Array) -> Any:
        return phase.tuning.init(params, phase.labels, key)

    given = plan.network.params, jax.random.key(0)
    try:
        jaxpr = Traces().once("init", lambda: jax.make_jaxpr(init)(*given))
    except InputError:  # it can only take over
        return ""
    return digest(jaxpr, described, layout=False)


def _scored(scored: tuple | None) -> Any:
    try:
        return scored and (scored[0], described(scored[1]))
    except InputError:  # it chooses an epoch, and changes none
        return scored and scored[0]


def versions() -> dict[str, str]:
    """Returns what decides which program is traced of a function."""
    python = ".".join(platform.python_version_tuple()[:2])
    config: Any = jax.config
    precision = config.jax_default_matmul_precision
    numbers = {"x64": config.jax_enable_x64, "matmul precision": precision}
    named = {"Python": python, **{package: _version(package) for package in PACKAGES}}
    return {name: str(value) for name, value in (named | numbers).items()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # this library, run from a checkout
        return "of no number"


def _fixed_steps(phases: Sequence[Phase]) -> list[int]:
    """Returns the steps that a run depends on from its start: with constant rates, a run of
    more steps in the last phase begins as this one does, and continues it."""
    steps, last = [phase.steps for phase in phases], phases[-1].rules
    rules = [last] if isinstance(last, Rule) else last.values()
    return steps[:-1] if all(r.schedule == "constant" for r in rules) else steps


def hashed(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def seen(data: Dataset) -> dict[str, Any]:
    """Returns what of the data is fingerprinted: all that is in memory, and 64 rows of
    what is read when taken."""
    rows = np.unique(np.linspace(0, len(data.y) - 1, 64).astype(int))

    def part(leaf: Any) -> Any:
        if isinstance(leaf, Ragged):
            return {"values": leaf.values, "ends": leaf.ends}
        return leaf if isinstance(leaf, np.ndarray | jax.Array) else leaf[rows]

    return {"x": jax.tree.map(part, data.x), "y": np.asarray(data.y)}

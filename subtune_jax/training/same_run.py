"""Whether a checkpoint is of this run: its identity, and what its phases compute."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.training.identity import step_digest
from subtune_jax.training.phases import Leaf, Program, make_program, phase_optimizer
from subtune_jax.training.plan import Plan
from subtune_jax.training.state import State
from subtune_jax.tuning.method import Parts

SAME_VALUES = "same values"
VALUES = (
    "trainable",
    "fixed",
    "resting",
)  # of a state: their shapes make a phase's step


def begun_phase(plan: Plan, snapshot: Any) -> dict[str, Any]:
    """Returns the facts of a phase that has begun: what its step computes, and what it is
    traced from. A mask that was learnt has counts that nobody knew."""
    running, state = snapshot.running, snapshot.state
    held = tree.flatten({name: getattr(state, name) for name in VALUES})
    facts: dict[str, Any] = {
        "leaves": [list(leaf) for leaf in running.program.leaves],
        "shapes": {path: [list(x.shape), str(x.dtype)] for path, x in held.items()},
    }
    program, like = phase_state(plan, running.index, facts)
    return {**facts, "digest": step_digest(plan, program, like)}


def phase_state(
    plan: Plan, index: int, facts: Mapping[str, Any]
) -> tuple[Program, State]:
    """Returns the program of a phase, and its state in shapes."""
    shapes = {
        path: jax.ShapeDtypeStruct(tuple(shape), dtype)
        for path, (shape, dtype) in facts["shapes"].items()
    }
    held = {"fixed": {}, **tree.unflatten(shapes)}
    leaves = tuple(Leaf(*leaf) for leaf in facts["leaves"])
    seen = {leaf.path: leaf.dtype for leaf in leaves}
    trainable, phase = held["trainable"], plan.phases[index]
    narrow = tree.map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape, seen[path]), trainable
    )
    program = make_program(plan.network, phase, narrow, plan.settings, index, leaves)
    tx = phase_optimizer(program, phase, trainable)
    return program, State(
        trainable=trainable,
        fixed=held["fixed"],
        resting={
            n: Parts(p["trainable"], p.get("fixed", {}))
            for n, p in held.get("resting", {}).items()
        },
        opt_state=jax.eval_shape(tx.init, trainable),
        stats=plan.network.stats,
        step=jnp.int32(0),
        key=plan.key,
    )


def same_run(
    plan: Plan,
    facts: Mapping[str, Any],
    who: Mapping[str, Any],
    resume: str | None,
    folder: Path,
) -> list[dict[str, Any]]:
    """Returns the facts of the phases that a checkpoint's run has begun.

    Raises `InputError` unless it is of this run: of another form, another base, other
    settings or functions, or, without `resume`, of other versions.
    """
    new = "give another folder, or remove this one to begin anew"
    if "identity" not in facts:
        raise InputError(
            f"the checkpoint in {folder} was written by an earlier version of this library, "
            f"which did not know what a run computes: {new}"
        )
    old, begun = facts["identity"], facts["begun"]
    if old["base"] != who["base"]:
        raise InputError(
            f"the checkpoint in {folder} belongs to another base: its fingerprint is "
            f"{old['base']['base'][:12]}, this network's is {who['base']['base'][:12]}; {new}"
        )
    other = _other(old["versions"], who["versions"])
    if other and resume != SAME_VALUES:
        name = other[0]
        raise InputError(
            f"the checkpoint in {folder} is of {name} {old['versions'].get(name)}, and this "
            f"is {name} {who['versions'][name]}: what was traced cannot be compared. "
            f"resume={SAME_VALUES!r} continues it if all else is the same, or {new}"
        )
    differing = _other(old["recipe"], who["recipe"])
    if not other:
        differing += _other(old["begins"], who["begins"])
    differing = differing or _other_steps(plan, begun, compared=not other)
    if differing:
        raise InputError(
            f"the checkpoint in {folder} belongs to a run with other settings; these "
            f"differ: {'; '.join(dict.fromkeys(differing))}. {new[0].upper()}{new[1:]}"
        )
    return begun


def _other(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in new if old.get(name) != new[name]]


def _other_steps(plan: Plan, begun: list[dict[str, Any]], compared: bool) -> list[str]:
    """Returns the phases whose steps compute something else. If the digests cannot be
    compared, they are written anew."""
    other = []
    for index, facts in enumerate(begun):
        try:
            now = step_digest(plan, *phase_state(plan, index, facts))
        except Exception:  # whatever another tuning says of the checkpoint's values
            now = ""
        if now != facts["digest"] and (compared or not now):
            other.append(
                f"what a step of phase {index} computes (loss, network, tuning, norm, "
                "dropout or accumulate)"
            )
        facts["digest"] = now
    return other

"""What a run continues from, and the journal that keeps it on the disk."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from subtune_jax import tree
from subtune_jax.network import Network
from subtune_jax.training import checkpoints
from subtune_jax.training.checkpoints import Arrays, Saved, packed, unpacked
from subtune_jax.training.identity import identity
from subtune_jax.training.phases import trainable_shapes
from subtune_jax.training.plan import Plan
from subtune_jax.training.state import State, start


class Epoch(NamedTuple):
    """Where a run stands after a pass over the data (or at its end); owns its arrays."""

    number: int  # from 1
    step: int
    loss: float  # mean over the epoch's steps
    grad_norm: float  # L2, of the trainable leaves, mean over the epoch's steps
    network: Network  # parameters and statistics at this point
    trainable: Any


class Snapshot(NamedTuple):
    """Everything that the rest of a run depends on, after `step` steps."""

    step: int
    state: State
    losses: Sequence  # of the steps since the last epoch ended
    norms: Sequence


class Journal(NamedTuple):
    """Where a run begins (`None`: at its start), and what saves it as it goes."""

    snapshot: Snapshot | None
    kept: Epoch | None
    scores: Sequence[float]
    save: Callable[[Snapshot, Epoch | None, Sequence[float]], None]


def journal(plan: Plan, folder: Path | None, seconds: float) -> Journal:
    """Returns the journal of a run in a folder: read now, written every `seconds`."""
    if folder is None:
        return Journal(None, None, (), lambda snapshot, kept, scores: None)
    who = identity(plan)
    last = time.monotonic()

    def save(snapshot: Snapshot, kept: Epoch | None, scores: Sequence[float]) -> None:
        nonlocal last
        ended = snapshot.step == plan.ends[-1] and not len(snapshot.losses)
        if ended or time.monotonic() - last >= seconds:
            checkpoints.save(folder, _packed(plan, snapshot, kept, scores, who))
            last = time.monotonic()

    found = checkpoints.restore(folder, who)
    if found is None:
        return Journal(None, None, (), save)
    if found.step == plan.ends[-1]:  # it has ended: there is nothing to save again
        return Journal(*_unpacked(plan, found), lambda snapshot, kept, scores: None)
    return Journal(*_unpacked(plan, found), save)


def _packed(plan: Plan, snapshot: Snapshot, kept: Epoch | None, scores, who) -> Saved:
    arrays = packed("state", snapshot.state)
    logs = {"losses": _floats(snapshot.losses), "norms": _floats(snapshot.norms)}
    facts = {**who, **logs, "scores": list(scores), "kept": None}
    if kept is not None:
        base = tree.flatten(plan.network.params)
        changed = {
            name: leaf
            for name, leaf in tree.flatten(kept.network.params).items()
            if leaf is not base[name]
        }
        arrays |= packed("kept/params", tree.unflatten(changed))
        arrays |= packed("kept/stats", kept.network.stats)
        arrays |= packed("kept/trainable", kept.trainable)
        facts["kept"] = list(kept[:4])
    return Saved(snapshot.step, arrays, facts)


def _unpacked(plan: Plan, saved: Saved) -> tuple[Snapshot, Epoch | None, list[float]]:
    arrays, facts = saved.arrays, saved.facts
    index = plan.phase_at(max(saved.step, 1))
    like = start(plan.network, plan.programs[index], plan.phases[index], plan.key)
    like = like._replace(held=_known("state/held", arrays, plan.network.params))
    state = unpacked("state", arrays, like)
    snapshot = Snapshot(saved.step, state, facts["losses"], facts["norms"])
    if facts["kept"] is None:
        return snapshot, None, facts["scores"]
    params = _known("kept/params", arrays, plan.network.params)
    network = plan.network._replace(
        params=tree.combine(params, plan.network.params),
        stats=unpacked("kept/stats", arrays, plan.network.stats),
    )
    number, step, loss, norm = facts["kept"]
    phase = plan.phases[plan.phase_at(step)]
    shapes = trainable_shapes(plan.network, phase)
    trainable = unpacked("kept/trainable", arrays, shapes)
    return (
        snapshot,
        Epoch(number, step, loss, norm, network, trainable),
        facts["scores"],
    )


def _floats(values: Sequence) -> list[float]:
    return [float(value) for value in values]


def _known(prefix: str, arrays: Arrays, like: Any) -> Any:
    """Returns a half of a tree: the leaves that the checkpoint has."""
    return tree.map_with_path(
        lambda name, _: (
            jax.numpy.asarray(arrays[f"{prefix}/{name}"])
            if f"{prefix}/{name}" in arrays
            else None
        ),
        like,
    )

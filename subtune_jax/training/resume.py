"""What a run continues from, and the journal that keeps it on the disk."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from subtune_jax import tree
from subtune_jax.errors import InputError, unknown
from subtune_jax.network import Network
from subtune_jax.training import checkpoints
from subtune_jax.training.checkpoints import Arrays, Saved, packed, unpacked
from subtune_jax.training.identity import identity
from subtune_jax.training.plan import Plan
from subtune_jax.training.same_run import (
    SAME_VALUES,
    begun_phase,
    phase_state,
    same_run,
)
from subtune_jax.training.state import Running, State, start
from subtune_jax.training.step import Logs
from subtune_jax.training.watch import EpochLog, History, Record
from subtune_jax.tuning.method import Parts


class Epoch(NamedTuple):
    """Where a run stands after a pass over the data (or at its end); owns its arrays."""

    number: int  # from 1
    step: int
    loss: float  # mean over the epoch's steps
    grad_norm: float  # L2, of the trainable leaves, mean over the epoch's steps
    network: Network  # parameters and statistics at this point
    trainable: Any
    fixed: Any


class Snapshot(NamedTuple):
    """Everything that the rest of a run depends on, after `step` steps."""

    step: int
    running: Running
    state: State
    logs: Sequence[Logs]  # of the steps since the last epoch ended


def first_snapshot(plan: Plan) -> Snapshot:
    """Returns where a run begins."""
    running, state = start(plan.network, plan.phases[0], plan.settings, plan.key)
    return Snapshot(0, running, state, ())


class Ending(NamedTuple):
    """What a run had kept and told before its last epoch, and that epoch's score.

    Where the end cuts the epoch short, a checkpoint holds these: with more steps the epoch
    counts once, when it is whole.
    """

    kept: Epoch | None
    history: History
    score: float | None = None


class AheadError(InputError):
    """A checkpoint has more steps than are asked for."""


Save = Callable[[Snapshot, Epoch | None, History, Ending | None], None]


class Journal(NamedTuple):
    """Where a run begins (`None`: at its start), and what saves it as it goes. last: the
    score of a last epoch that the end of a finished run cut short."""

    snapshot: Snapshot | None
    kept: Epoch | None
    history: History
    save: Save
    last: float | None = None


def _no_save(
    snapshot: Snapshot, kept: Epoch | None, history: History, ending: Ending | None
) -> None:
    """A run without a folder, or one that has ended, has nothing to save."""


def journal(
    plan: Plan,
    folder: Path | None,
    seconds: float,
    scored: tuple | None = None,
    resume: str | None = None,
) -> Journal:
    """Returns the journal of a run in a folder: read now, written every `seconds`.

    scored: the mode and `validate` of a run with a validation score. resume: see `fit`.
    The start is saved too: what cannot be saved is an `InputError` now, not after the last
    epoch.
    """
    if resume not in (None, SAME_VALUES):
        raise unknown("resume", resume, [SAME_VALUES])
    if folder is None:
        return Journal(None, None, History([], [], []), _no_save)
    who, last = identity(plan, scored), time.monotonic()
    saved = checkpoints.restore(folder)
    begun = [] if saved is None else same_run(plan, saved.facts, who, resume, folder)

    def save(
        snapshot: Snapshot,
        kept: Epoch | None,
        history: History,
        ending: Ending | None,
    ) -> None:
        nonlocal last
        if snapshot.running.index == len(begun):  # a phase has made its first step
            begun.append(begun_phase(plan, snapshot))
        ended: dict[str, Any] = {"ended": ending is not None, "last": None}
        if ending is not None and len(snapshot.logs):
            kept, history, ended["last"] = ending
        facts = {**ended, "identity": who, "begun": begun}
        # Saving is collective: one process's clock decides for all of them.
        if ending or checkpoints.agreed(time.monotonic() - last >= seconds):
            checkpoints.save(folder, _packed(plan, snapshot, kept, history, facts))
            last = time.monotonic()

    if saved is None:
        checkpoints.require_writable(folder)
        begin, history = first_snapshot(plan), History([], [], [])
        begun.append(begun_phase(plan, begin))
        facts = {"ended": False, "last": None, "identity": who, "begun": begun}
        checkpoints.save(folder, _packed(plan, begin, None, history, facts))
        return Journal(begin, None, history, save)
    if saved.step > plan.ends[-1]:
        raise AheadError(
            f"the checkpoint in {folder} has {saved.step} steps of this run, and "
            f"{plan.ends[-1]} are asked for: ask for as many or more, or give another folder"
        )
    # With logs of an epoch that the end cut short, that is made again from them.
    if saved.step == plan.ends[-1] and saved.facts["ended"]:
        print(
            f"{folder} holds this run, finished: its result is returned",
            file=sys.stderr,
        )
        return Journal(*_unpacked(plan, saved), _no_save, saved.facts["last"])
    return Journal(*_unpacked(plan, saved), save)


def _packed(
    plan: Plan,
    snapshot: Snapshot,
    kept: Epoch | None,
    history: History,
    facts: dict[str, Any],
) -> Saved:
    arrays = packed("state", snapshot.state._asdict())
    running = snapshot.running
    facts = {
        **facts,
        "logs": [
            [float(v) for v in log] for log in jax.device_get(list(snapshot.logs))
        ],
        "scores": list(history.scores),
        "epochs": [list(epoch) for epoch in history.epochs],
        "records": [list(record) for record in history.records],
        "phase": [running.index, running.tuned_since],
        "kept": None,
    }
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
        arrays |= packed("kept/fixed", kept.fixed)
        facts["kept"] = list(kept[:4])
    return Saved(snapshot.step, arrays, facts)


def _unpacked(plan: Plan, saved: Saved) -> tuple[Snapshot, Epoch | None, History]:
    arrays, facts = saved.arrays, saved.facts
    index, since = facts["phase"]
    program, like = phase_state(plan, index, facts["begun"][index])
    state = State(
        trainable=_subtree("state/trainable", arrays),
        fixed=_subtree("state/fixed", arrays),
        resting={
            n: Parts(p["trainable"], p.get("fixed", {}))
            for n, p in _subtree("state/resting", arrays).items()
        },
        opt_state=unpacked("state/opt_state", arrays, like.opt_state),
        stats=unpacked("state/stats", arrays, plan.network.stats),
        step=unpacked("state/step", arrays, jax.numpy.int32(0)),
        key=unpacked("state/key", arrays, plan.key),
    )
    logs = [Logs(*map(jax.numpy.asarray, log)) for log in facts["logs"]]
    snapshot = Snapshot(saved.step, Running(index, program, since), state, logs)
    history = History(
        list(facts["scores"]),
        [EpochLog(*epoch) for epoch in facts["epochs"]],
        [Record(*record) for record in facts["records"]],
    )
    if facts["kept"] is None:
        return snapshot, None, history
    changed = tree.flatten(_subtree("kept/params", arrays))
    network = plan.network._replace(
        params=tree.map_with_path(
            lambda path, leaf: changed.get(path, leaf), plan.network.params
        ),
        stats=unpacked("kept/stats", arrays, plan.network.stats),
    )
    number, step, loss, grad_norm = facts["kept"]
    tuned = (_subtree(f"kept/{n}", arrays) for n in Parts._fields)
    kept = Epoch(number, step, loss, grad_norm, network, *tuned)
    return snapshot, kept, history


def _subtree(prefix: str, arrays: Arrays) -> dict:
    """Returns the tree of what the checkpoint has below a path."""
    begin = f"{prefix}/"
    flat = {n.removeprefix(begin): a for n, a in arrays.items() if n.startswith(begin)}
    return jax.tree.map(jax.numpy.asarray, tree.unflatten(flat))

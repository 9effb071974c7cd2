"""What a run continues from, and the journal that keeps it on the disk."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.network import Network
from subtune_jax.training import checkpoints
from subtune_jax.training.checkpoints import Arrays, Saved, packed, unpacked
from subtune_jax.training.identity import identity
from subtune_jax.training.phases import Leaf, make_program, phase_optimizer
from subtune_jax.training.plan import Plan
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


Save = Callable[[Snapshot, Epoch | None, History], None]


class Journal(NamedTuple):
    """Where a run begins (`None`: at its start), and what saves it as it goes."""

    snapshot: Snapshot | None
    kept: Epoch | None
    history: History
    save: Save


def _no_save(snapshot: Snapshot, kept: Epoch | None, history: History) -> None:
    """A run without a folder, or one that has ended, has nothing to save."""


def journal(
    plan: Plan, folder: Path | None, seconds: float, scored: str | None = None
) -> Journal:
    """Returns the journal of a run in a folder: read now, written every `seconds`.

    scored: whether the run has a validation score, `max` or `min`. The start is saved
    too: what cannot be saved is an `InputError` now, not after the last epoch.
    """
    if folder is None:
        return Journal(None, None, History([], [], []), _no_save)
    who = identity(plan, scored)
    last = time.monotonic()

    def save(snapshot: Snapshot, kept: Epoch | None, history: History) -> None:
        nonlocal last
        ended = snapshot.step == plan.ends[-1] and not len(snapshot.logs)
        # Saving is collective: one process's clock decides for all of them.
        if ended or checkpoints.agreed(time.monotonic() - last >= seconds):
            checkpoints.save(folder, _packed(plan, snapshot, kept, history, who))
            last = time.monotonic()

    saved = checkpoints.restore(folder, who)
    if saved is None:
        checkpoints.require_writable(folder)
        begin, history = first_snapshot(plan), History([], [], [])
        checkpoints.save(folder, _packed(plan, begin, None, history, who))
        return Journal(begin, None, history, save)
    if saved.step > plan.ends[-1]:
        raise InputError(
            f"the checkpoint in {folder} has {saved.step} steps of this run, and "
            f"{plan.ends[-1]} are asked for: ask for as many or more, or give another folder"
        )
    # Ended: there is nothing to save again. With logs, its last epoch is still to score.
    if saved.step == plan.ends[-1] and not saved.facts["logs"]:
        print(
            f"{folder} holds this run, finished: its result is returned",
            file=sys.stderr,
        )
        return Journal(*_unpacked(plan, saved), _no_save)
    return Journal(*_unpacked(plan, saved), save)


def _packed(
    plan: Plan,
    snapshot: Snapshot,
    kept: Epoch | None,
    history: History,
    who: dict[str, Any],
) -> Saved:
    arrays = packed("state", snapshot.state._asdict())
    running = snapshot.running
    facts = {
        **who,
        "logs": [
            [float(v) for v in log] for log in jax.device_get(list(snapshot.logs))
        ],
        "scores": list(history.scores),
        "epochs": [list(epoch) for epoch in history.epochs],
        "records": [list(record) for record in history.records],
        "phase": [running.index, running.tuned_since],
        "leaves": [list(leaf) for leaf in running.program.leaves],
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
    """A mask that was learnt has counts that nobody knew: shapes are the checkpoint's."""
    arrays, facts = saved.arrays, saved.facts
    index, since = facts["phase"]
    phase = plan.phases[index]
    trainable, fixed = (_subtree(f"state/{n}", arrays) for n in ("trainable", "fixed"))
    leaves = tuple(Leaf(*leaf) for leaf in facts["leaves"])
    seen = {leaf.path: leaf.dtype for leaf in leaves}
    like = tree.map_with_path(lambda path, x: x.astype(seen[path]), trainable)
    program = make_program(plan.network, phase, like, plan.settings, index, leaves)
    opt_state = phase_optimizer(program, phase, trainable).init(trainable)
    resting = _subtree("state/resting", arrays)
    state = State(
        trainable=trainable,
        fixed=fixed,
        resting={
            n: Parts(p["trainable"], p.get("fixed", {})) for n, p in resting.items()
        },
        opt_state=unpacked("state/opt_state", arrays, opt_state),
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

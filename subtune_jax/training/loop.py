"""The loop driver: it decides what runs when; the step does not know."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data import batches
from subtune_jax.data.batches import Data
from subtune_jax.network import Network
from subtune_jax.training import resume
from subtune_jax.training.features import cached_stages, features
from subtune_jax.training.optimizers import set_multipliers
from subtune_jax.training.phases import Phase, Program, transformation
from subtune_jax.training.plan import Plan, make_plan
from subtune_jax.training.resume import Epoch, Snapshot
from subtune_jax.training.state import State, advance, materialize, start
from subtune_jax.training.step import compiled_step


class Diverged(ArithmeticError):
    """Loss, gradient or weights were not finite at `step` (counted from 1)."""

    def __init__(self, step: int, loss: float):
        super().__init__(f"the run diverged at step {step}, where the loss was {loss}")
        self.step = step


class Fit(NamedTuple):
    """The kept epoch of a finished run; `scores` are those of all its epochs."""

    network: Network
    trainable: Any
    epoch: int
    scores: list[float]

    def __repr__(self) -> str:
        tuned, best = tree.count(self.trainable), max(self.scores, default=None)
        return f"Fit({tuned:,} tuned parameters, epoch {self.epoch}, score {best})"


def fit(
    network: Network,
    phases: Phase | Sequence[Phase],
    data: Data,
    *,
    key: jax.Array,
    validate: Callable[[Network], float] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    **settings,
) -> Fit:
    """Returns the network after the phases, or at the epoch that `validate` scores best.

    The first of equal scores is kept. The base `network` is left as it is. `settings`:
    loss, norm, batch_size, accumulate, augment, place, cache_bytes, as
    `plan.make_plan` describes them. With a `checkpoint` folder the run is saved every
    `checkpoint_seconds` and at its end, and the same call continues it, or returns at
    once when it had ended. Raises `InputError` for settings that cannot be and for the
    checkpoint of another base or run, and `Diverged` when the loss is not finite.
    """
    plan = make_plan(network, phases, data, key=key, **settings)
    journal = resume.journal(plan, checkpoint and Path(checkpoint), checkpoint_seconds)
    kept, scores = journal.kept, list(journal.scores)

    def save(snapshot: Snapshot) -> None:
        journal.save(snapshot, kept, scores)

    best = np.nanmax([*scores, -np.inf])
    for point in epochs(plan, journal.snapshot, save):
        if validate is not None:
            scores.append(float(validate(point.network)))
        if validate is None or scores[-1] > best:
            kept, best = point, scores[-1] if scores else best
    if kept is None:
        raise ArithmeticError(f"no epoch had a validation score: {scores}")
    return Fit(kept.network, kept.trainable, kept.number, scores)


def epochs(
    plan: Plan,
    snapshot: Snapshot | None = None,
    save: Callable[[Snapshot], None] = lambda snapshot: None,
) -> Iterator[Epoch]:
    """Yields an `Epoch` after every pass over the data and at the end of the run.

    `save` is offered a snapshot after every step; a run that begins from one is bit
    for bit the run that went on.
    """
    if snapshot is None:
        state = start(plan.network, plan.programs[0], plan.phases[0], plan.key)
        snapshot = Snapshot(0, state, (), ())
    step, state, losses, norms = snapshot
    losses, norms = list(losses), list(norms)
    index, prepared = plan.phase_at(max(step, 1)), None
    while True:
        if losses and (step % plan.per_epoch == 0 or step == plan.ends[-1]):
            yield finished_epoch(plan, index, state, step, losses, norms)
            losses, norms = [], []
        if step == plan.ends[-1]:
            save(Snapshot(step, state, (), ()))
            return
        if step == plan.ends[index]:
            before, index, prepared = plan.phases[index], index + 1, None
            program = plan.programs[index]
            state = advance(plan.network, state, before, program, plan.phases[index])
        prepared = prepared or _prepared(plan, index, state)
        if step % plan.per_epoch == 0:
            state = refreshed(plan, index, state, step)
        for batch in segment(plan, index, step, prepared[1]):
            run = compiled_step(prepared[0])
            state, log = run(state, plan.network.params, plan.place(batch))
            losses.append(log.loss)
            norms.append(log.grad_norm)
            step += 1
            save(Snapshot(step, state, losses, norms))


def _prepared(plan: Plan, index: int, state: State) -> tuple[Program, Data]:
    """Returns a phase's program and data, past the prefix that need not run again."""
    phase, program = plan.phases[index], plan.programs[index]
    if plan.augment is not None or phase.steps <= plan.per_epoch:
        return program, plan.data
    params = materialize(plan.network.params, state, phase)
    live = plan.network._replace(params=params, stats=state.stats)
    labels, moving = phase.labels, program.batch_stats
    cut = cached_stages(live, labels, moving, plan.data, plan.cache_bytes)
    if not cut:
        return program, plan.data
    return program._replace(start=cut), features(live, cut, plan.data)


def refreshed(plan: Plan, index: int, state: State, step: int) -> State:
    """Returns the state with an epoch's multipliers (and fresh moments) set."""
    phase, program = plan.phases[index], plan.programs[index]
    if phase.multipliers is None:
        return state
    live = materialize(plan.network.params, state, phase)
    network = plan.network._replace(params=live, stats=state.stats)
    opt_state = state.opt_state
    if phase.reset_moments:
        opt_state = transformation(program, phase.rules, state.trainable).init(
            state.trainable
        )
    paths = [name for name, _, _ in program.groups]
    factors = phase.multipliers(network, segment(plan, index, step, plan.data), paths)
    return state._replace(opt_state=set_multipliers(opt_state, factors))


def segment(plan: Plan, index: int, step: int, data: Data) -> Iterator[batches.Batch]:
    """Returns the batches from `step` to the end of its epoch or phase."""
    number, begin = divmod(step, plan.per_epoch)
    stream = batches.epoch(
        data,
        plan.batch_size,
        seed=plan.seed,
        number=number + 1,
        drop=plan.drop,
        start=begin,
        augment=plan.augment,
        sizes=plan.sizes,
    )
    return islice(stream, plan.ends[index] - step)


def finished_epoch(
    plan: Plan, index: int, state: State, step: int, losses: list, norms: list
) -> Epoch:
    """Returns where the run stands; raises `Diverged` for what is not finite."""
    values, sizes = np.array(losses, np.float32), np.array(norms, np.float32)
    finite = np.isfinite(values) & np.isfinite(sizes)
    if not finite.all():
        first = int(np.argmin(finite))
        raise Diverged(step - len(values) + first + 1, float(values[first]))
    trainable, held, stats = tree.copy((state.trainable, state.held, state.stats))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainable)):
        raise Diverged(step, float("inf"))
    own = state._replace(trainable=trainable, held=held)
    params = materialize(plan.network.params, own, plan.phases[index])
    return Epoch(
        number=-(-step // plan.per_epoch),
        step=step,
        loss=float(values.mean()),
        grad_norm=float(sizes.mean()),
        network=plan.network._replace(params=params, stats=stats),
        trainable=trainable,
    )

"""The loop driver: it decides what runs when; the step does not know."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data import batches
from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError, require_function, unknown
from subtune_jax.memory import make_room
from subtune_jax.network import Network, require_network
from subtune_jax.programs import Traces, renew
from subtune_jax.training import resume as saved
from subtune_jax.training.optimizers import reset_moments, set_multipliers
from subtune_jax.training.phases import Phase, Program
from subtune_jax.training.plan import Plan, make_plan
from subtune_jax.training.prefix_cache import cached_stages, features
from subtune_jax.training.progress import bar
from subtune_jax.training.resume import Ending, Epoch, Snapshot, first_snapshot
from subtune_jax.training.settings import Settings
from subtune_jax.training.state import (
    Running,
    State,
    advance,
    all_parts,
    frozen_params,
    live_params,
)
from subtune_jax.training.step import compiled_step
from subtune_jax.training.watch import (
    EpochLog,
    History,
    Record,
    WatchAt,
    record_of,
    rule_of,
)

MODES = ("max", "min")


class FitResult(NamedTuple):
    """The kept epoch of a finished run; `scores` are those of all epochs that may be kept.

    trainable, fixed: the values of all phases' tunings, which train and which do not (the
    places of a mask). epochs: step, loss and gradient norm of every epoch. records: what
    `watch` returned, by step.
    """

    network: Network
    trainable: Any
    epoch: int
    scores: list[float]
    epochs: tuple[EpochLog, ...] = ()
    records: tuple[Record, ...] = ()
    fixed: Any = None

    def __repr__(self) -> str:
        tuned, scores = tree.count(self.trainable), self.scores
        score = (
            f"score {scores[-1]:.4g} in the last of {len(scores)} epochs"
            if scores
            else "no score"
        )
        return (
            f"FitResult({tuned:,} tuned parameters, kept epoch {self.epoch}, {score})"
        )


class DivergedError(ArithmeticError):
    """Loss, gradient or weights were not finite at `step` (counted from 1).

    kept: the best epoch before that, as `fit` would have returned it, or `None`.
    """

    def __init__(self, step: int, loss: float, kept: FitResult | None = None):
        super().__init__(f"the run diverged at step {step}, where the loss was {loss}")
        self.step, self.loss, self.kept = step, loss, kept


def fit(
    network: Network,
    phases: Phase | Sequence[Phase],
    data: Dataset,
    *,
    key: jax.Array,
    validate: Callable[[Network], float] | None = None,
    mode: str = "max",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    watch: Callable[[Network], Any] | None = None,
    watch_at: WatchAt = "epoch",
    progress: bool | None = None,
    resume: str | None = None,
    settings: Settings = Settings(),
) -> FitResult:
    """Returns the network after the phases, or at the epoch that `validate` scores best.

    Best is the highest score, or under mode `min` the lowest; the first of equal scores
    is kept, and a score that is NaN never. Epochs of phases with `keeps=False` are not
    scored. The base `network` is left as it is. settings: see `Settings`.

    With a `checkpoint` folder the run is saved every `checkpoint_seconds` and at its end,
    and the same call continues it, or returns at once when it had ended; with more steps
    in a last phase of constant rates it goes on from there. watch(network)
    -> JSON values is called with the live network before the first step, at the end of
    every phase, and at `watch_at`: `epoch`, `step`, or watch_at(step) -> bool (see
    `watch.early_then_log`); a resumed run has each record once. progress: whether to show
    steps, loss, score and time left; default: on a terminal. resume: `same values`
    continues a checkpoint of other versions of JAX or this library, whose programs cannot
    be compared with today's: all else must be as it was.

    Raises `InputError` for settings that cannot be, for the checkpoint of another base or
    run, and where nothing can learn; `WatchError`, with the records so far, where `watch`
    fails; and `DivergedError`, with the best epoch so far, when the loss is not finite.
    """
    plan = make_plan(
        network, phases, data, key=key, settings=settings, traces=traces_for(network)
    )
    kept = validate, mode, checkpoint, checkpoint_seconds
    return train(plan, How(*kept, watch, watch_at, progress, resume))


class How(NamedTuple):
    """What a run does beside its plan: the arguments of `fit`."""

    validate: Callable[[Network], float] | None = None
    mode: str = "max"
    checkpoint: str | Path | None = None
    checkpoint_seconds: float = 60.0
    watch: Callable[[Network], Any] | None = None
    watch_at: WatchAt = "epoch"
    progress: bool | None = None
    resume: str | None = None


def traces_for(*networks: Network) -> Traces:
    """Returns empty traces for a call that trains networks. What was traced of their stages
    before is forgotten, so that training and validation see the same code."""
    for network in networks:
        require_network(network)
        renew(*(stage.apply for stage in network.stages))
    return Traces()


def train(plan: Plan, how: How = How()) -> FitResult:
    """Returns what `fit` does, of a plan: runs of one call share its traces."""
    validate, watch = how.validate, how.watch
    require_mode(how.mode)
    for name, function in {"validate": validate, "watch": watch}.items():
        if function is not None:
            require_function(1, **{name: function})
    if how.checkpoint is not None and not isinstance(how.checkpoint, str | Path):
        raise InputError(f"checkpoint must be a folder's path, got {how.checkpoint!r}")
    due = rule_of(how.watch_at, plan.per_epoch, plan.ends)
    folder = Path(how.checkpoint) if how.checkpoint else None
    scored = None if validate is None else (how.mode, validate)
    journal = saved.journal(plan, folder, how.checkpoint_seconds, scored, how.resume)
    kept, history = journal.kept, journal.history
    scores, records = history.scores, history.records
    # What was recorded at an end that now lies within the run is not of this run.
    records[:] = [one for one in records if not one.step or due(one.step)]
    ending: Ending | None = None
    if validate is not None and not scores:
        require_score(validate, plan.network)
    if watch is not None and not records:
        records.append(record_of(0, watch, plan.network))

    def after_step(snapshot: Snapshot) -> None:
        """Watches before it saves: a record is in the checkpoint of its step, once."""
        step, running, state, _ = snapshot
        if watch is not None and due(step) and records[-1].step < step:
            live = live_network(plan, running, state)
            records.append(record_of(step, watch, live, records))
        journal.save(snapshot, kept, history, ending)
        shown.update(step, history)

    with bar(plan.ends[-1], how.progress) as shown:
        try:
            for point in epochs(plan, journal.snapshot, after_step):
                whole = History(list(scores), list(history.epochs), records)
                if point.step == plan.ends[-1]:
                    ending = Ending(kept, whole, journal.last)
                history.epochs.append(EpochLog(*point[:4]))
                if not plan.phases[plan.phase_at(point.step)].keeps:
                    continue
                if validate is None:
                    kept = point
                    continue
                # A run that ended within an epoch is asked for again: its score is there.
                score = None if ending is None else ending.score
                if score is None:
                    score = float(validate(point.network))
                scores.append(score)
                if ending is not None:
                    ending = ending._replace(score=score)
                if better(score, scores[:-1], how.mode):
                    kept = point
        except DivergedError as error:
            error.kept = None if kept is None else _finished(kept, history)
            raise
    if kept is None:
        raise ArithmeticError(f"no epoch had a validation score: {scores}")
    return _finished(kept, history)


def _finished(kept: Epoch, history: History) -> FitResult:
    return FitResult(
        kept.network,
        kept.trainable,
        kept.number,
        list(history.scores),
        tuple(history.epochs),
        tuple(history.records),
        kept.fixed,
    )


def better(score: float, before: Sequence[float], mode: str) -> bool:
    """Returns whether a score is the best so far; NaN is not, whatever was before."""
    whole = [s for s in before if not np.isnan(s)]
    if np.isnan(score) or not whole:
        return not np.isnan(score)
    return score > max(whole) if mode == "max" else score < min(whole)


def require_mode(mode: str) -> None:
    """Raises `InputError` for another mode than `max` and `min`."""
    if mode not in MODES:
        raise unknown("mode", mode, MODES)


def require_score(validate: Callable[[Network], float], network: Network) -> None:
    """Raises `InputError` unless `validate` returns a number, before an epoch is lost."""
    score = validate(network)
    number = isinstance(score, Real) or (
        np.ndim(score) == 0 and hasattr(score, "dtype")
    )
    if not number or isinstance(score, bool):
        raise InputError(
            f"validate must return a number, got {type(score).__name__}: {score!r:.80}"
        )


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
        snapshot = first_snapshot(plan)
    step, running, state, logs = snapshot
    state, logs, prepared = plan.place.whole(state), list(logs), None
    while True:
        # An epoch ends with a pass over the data, and with the run.
        if logs and (step % plan.per_epoch == 0 or step == plan.ends[-1]):
            yield finished_epoch(plan, running, state, step, logs)
            if step % plan.per_epoch == 0:
                logs = []
        if step == plan.ends[-1]:
            save(Snapshot(step, running, state, logs))
            return
        begins = step == 0
        if step == plan.ends[running.index]:
            running, state = next_phase(plan, running, state)
            prepared, begins = None, True
        prepared = prepared or _prepared(plan, running, state)
        # Multipliers are of the network as it stands now; a resumed step has its own.
        if begins or step % plan.per_epoch == 0:
            state = refreshed(plan, running, state, step)
        program, data, frozen = prepared
        run = compiled_step(plan.traces, program)
        for batch in segment(plan, running.index, step, data):
            state, log = run(state, frozen, plan.place(batch))
            logs.append(log)  # on the device until the epoch ends: no step waits
            step += 1
            save(Snapshot(step, running, state, logs))


def next_phase(plan: Plan, running: Running, state: State) -> tuple[Running, State]:
    """Returns the phase after this one and its state, on its devices."""
    running, state = advance(plan.network, running, state, plan.phases, plan.settings)
    return running, plan.place.whole(state)


def live_network(plan: Plan, running: Running, state: State) -> Network:
    """Returns the network as it stands; its statistics are the state's own buffers."""
    params = live_params(plan.network.params, running, state, plan.phases)
    return plan.network._replace(params=params, stats=state.stats)


def _prepared(
    plan: Plan, running: Running, state: State
) -> tuple[Program, Dataset, Any]:
    """Returns a phase's program, data and frozen parameters, past the prefix that need
    not run again."""
    make_room()
    phase, program = plan.phases[running.index], running.program
    frozen = frozen_params(plan.network.params, state, plan.phases)
    if plan.settings.augment is not None or phase.steps <= plan.per_epoch:
        return program, plan.data, frozen
    live = live_network(plan, running, state)
    cut = cached_stages(live, program, plan.data, plan.settings.cache_bytes)
    if not cut:
        return program, plan.data, frozen
    return program._replace(start=cut), features(live, cut, plan.data), frozen


def refreshed(plan: Plan, running: Running, state: State, step: int) -> State:
    """Returns the state with the multipliers (and fresh moments) of an epoch or phase."""
    phase, program = plan.phases[running.index], running.program
    if phase.multipliers is None:
        return state
    opt_state = state.opt_state
    if phase.reset_moments:
        opt_state = reset_moments(opt_state)
    owners = tree.owners(state.trainable, plan.network.params)
    epoch = segment(plan, running.index, step, plan.data)
    stream = (plan.place(batch) for batch in epoch)
    network = live_network(plan, running, state)
    factors = phase.multipliers(network, stream, list(dict.fromkeys(owners.values())))
    by_leaf = {
        leaf.path: factors[owners[leaf.path]] if leaf.path in owners else 1.0
        for leaf in program.leaves
    }
    return plan.place.whole(
        state._replace(opt_state=set_multipliers(opt_state, by_leaf))
    )


def segment(
    plan: Plan, index: int, step: int, data: Dataset
) -> Iterator[batches.Batch]:
    """Returns the batches from `step` to the end of its epoch or phase."""
    number, begin = divmod(step, plan.per_epoch)
    stream = batches.epoch(
        data,
        plan.settings.batch_size,
        seed=plan.seed,
        number=number + 1,
        drop=plan.drop,
        start=begin,
        augment=plan.settings.augment,
        sizes=plan.sizes,
    )
    return islice(stream, plan.ends[index] - step)


def finished_epoch(
    plan: Plan, running: Running, state: State, step: int, logs: Sequence
) -> Epoch:
    """Returns where the run stands.

    Raises `DivergedError` for what is not finite, and `InputError` where the gradient was 0 in
    every step of the first epoch: nothing can learn.
    """
    logs = jax.device_get(list(logs))
    losses, norms = (
        np.array([getattr(log, name) for log in logs], np.float32)
        for name in ("loss", "grad_norm")
    )
    finite = np.array([log.finite for log in logs])
    if not finite.all():
        first = int(np.argmin(finite))
        raise DivergedError(step - len(logs) + first + 1, float(losses[first]))
    # Later it may be 0 because all is learnt (a hinge loss, a separable set).
    if len(logs) == step and not norms.any():
        raise InputError(
            f"the gradient of all that trains was exactly 0 in steps 1 to {step}, the "
            "first epoch, so nothing can learn: is a layer above "
            "frozen at zeros (a new head), or does the loss not read the outputs?"
        )
    network = live_network(plan, running, state)
    trainable, fixed = tree.copy(all_parts(running, state))
    return Epoch(
        number=-(-step // plan.per_epoch),
        step=step,
        loss=float(losses.mean()),
        grad_norm=float(norms.mean()),
        network=network._replace(stats=tree.copy(network.stats)),
        trainable=trainable,
        fixed=fixed,
    )

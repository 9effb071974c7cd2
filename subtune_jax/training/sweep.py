"""Many small runs as one program: rates, seeds and folds on a lane axis of the state.

For accelerators, where one small run leaves most of the machine idle. On a CPU a loop
over `fit` is faster (a convolution's step is 3 times slower under `vmap` and 29 times
in a scan there, measured on two cores).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from operator import is_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.data.batches import Batch, Dataset
from subtune_jax.data.buckets import Ragged, lengths
from subtune_jax.data.inputs import require_data
from subtune_jax.errors import InputError, require_positive
from subtune_jax.memory import make_room
from subtune_jax.network import Network, require_network
from subtune_jax.programs import Traces, by_object
from subtune_jax.training.loop import (
    DivergedError,
    FitResult,
    better,
    finished_epoch,
    refreshed,
    require_mode,
    require_score,
    segment,
    traces_for,
)
from subtune_jax.training.phases import Phase, Program
from subtune_jax.training.plan import Plan, make_plan
from subtune_jax.training.prefix_cache import probe
from subtune_jax.training.resume import Epoch
from subtune_jax.training.settings import Settings, require_settings
from subtune_jax.training.state import (
    Running,
    State,
    advance,
    frozen_params,
    start,
)
from subtune_jax.training.step import Logs, train_step
from subtune_jax.training.watch import EpochLog


class OtherProgramError(InputError):
    """A lane is another program than the first."""


class Run(NamedTuple):
    """A run of the sweep: its phases, the root of its randomness, and the network and data
    that it has in place of the sweep's."""

    phases: Phase | Sequence[Phase]
    key: jax.Array
    network: Network | None = None
    data: Dataset | None = None


class Progress(NamedTuple):
    """What a lane has so far: the best epoch, all scores, and how it ended early."""

    kept: Epoch | None = None
    scores: tuple[float, ...] = ()
    epochs: tuple[EpochLog, ...] = ()
    error: Exception | None = None


def sweep(
    network: Network,
    runs: Sequence[Run],
    data: Dataset,
    *,
    validate: Callable[[Network], float] | None = None,
    mode: str = "max",
    chunk: int = 16,
    settings: Settings = Settings(),
) -> list[FitResult | Exception]:
    """Returns what `fit` gives for every run, or the error that it would raise: of a run that
    diverged (`DivergedError`), or in which nothing can learn.

    Each run is a lane: the lanes' steps are one `vmap`, scanned over `chunk` steps at a
    time. The other arguments are those of `fit`; lanes fill one device, and a frozen
    prefix is not cached. Raises `InputError` when runs differ in more than rates,
    multipliers, keys, and the values of networks and data: all else is the program.
    """
    require_network(network)
    traces = traces_for(network, *(run.network for run in runs if run.network))
    plans = lane_plans(traces, network, runs, data, settings)
    return train_lanes(plans, validate, mode=mode, chunk=chunk)


def train_lanes(
    plans: Sequence[Plan],
    validate: Callable[[Network], float] | None = None,
    *,
    mode: str = "max",
    chunk: int = 16,
) -> list[FitResult | Exception]:
    """Returns what `sweep` does, of the plans of its lanes."""
    require_positive(chunk=chunk)
    require_mode(mode)
    if validate is not None:
        require_score(validate, plans[0].network)
    whole, step = plans[0], 0
    shared = _same_base([plan.network for plan in plans])
    running, states = _start(plans)
    progress = [Progress() for _ in plans]
    logs: list[Any] = []
    while True:
        program, end = running.program, whole.ends[running.index]
        frozen = _frozen(plans, states, shared)
        begins = True
        while step < end:
            if begins or step % whole.per_epoch == 0:
                states = _refreshed(plans, running, states, step)
            begins = False
            states, log = _run(plans, program, states, frozen, running, step, chunk)
            logs.append(log)
            step += len(log.loss)
            if step % whole.per_epoch == 0 or step == whole.ends[-1]:
                progress = [
                    _progress(
                        plan,
                        running,
                        _lane(states, i),
                        step,
                        logs,
                        i,
                        now,
                        validate,
                        mode,
                    )
                    for i, (plan, now) in enumerate(zip(plans, progress, strict=True))
                ]
                logs = []
        if step == whole.ends[-1]:
            return [_result(now) for now in progress]
        running, states = _advanced(plans, running, states)


def lane_plans(
    traces: Traces,
    network: Network,
    runs: Sequence[Run],
    data: Dataset,
    settings: Settings,
) -> list[Plan]:
    """Returns the plan of each lane. Rows of texts are as long as the longest of all lanes,
    since lanes share their batches' shapes."""
    require_network(network)
    require_positive(runs=len(runs))
    require_settings(settings)
    if settings.place is not None:
        raise InputError("lanes fill one device: leave place out of the settings")
    networks = [run.network or network for run in runs]
    datasets = [run.data or data for run in runs]
    for lane in zip(networks, datasets, strict=True):
        require_data(*lane)
    sizes = [lengths(data.x) for data in datasets]
    return [
        make_plan(
            one, run.phases, rows, key=run.key, settings=settings, traces=traces
        )._replace(sizes=own)
        for run, one, rows, own in zip(
            runs, _placed(networks), _of_one_width(datasets), sizes, strict=True
        )
    ]


def _placed(networks: Sequence[Network]) -> list[Network]:
    """Returns networks on the device, where they share the arrays that they share here."""
    trees = [(one.params, one.stats) for one in networks]
    shared = {id(leaf): leaf for leaf in jax.tree.leaves(trees)}
    arrays = dict(zip(shared, jax.device_put([*shared.values()]), strict=True))
    placed = jax.tree.map(lambda leaf: arrays[id(leaf)], trees)
    return [
        one._replace(params=params, stats=stats)
        for one, (params, stats) in zip(networks, placed, strict=True)
    ]


def _same_base(networks: Sequence[Network]) -> bool:
    """Returns whether these networks have their arrays in common, not just their values."""
    first, *others = [jax.tree.leaves(one.params) for one in networks]
    return all(all(map(is_, first, leaves)) for leaves in others)


def _of_one_width(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Returns data whose ragged rows are padded as far as the longest of all needs."""
    once = {id(data): data for data in datasets}
    structures = [jax.tree.structure(data.x) for data in once.values()]
    if structures.count(structures[0]) < len(structures):
        raise OtherProgramError(
            "lanes read inputs of other structures: sweep them apart"
        )
    leaves = [jax.tree.leaves(data.x) for data in once.values()]
    rows = zip(*map(_padded, zip(*leaves, strict=True)), strict=True)
    whole = {
        key: data._replace(x=jax.tree.unflatten(structures[0], row))
        for (key, data), row in zip(once.items(), rows, strict=True)
    }
    return [whole[id(data)] for data in datasets]


def _padded(leaves: Sequence[Any]) -> Sequence[Any]:
    """Returns one leaf of all data, as arrays of one width if they are ragged."""
    if not isinstance(leaves[0], Ragged):
        return leaves
    width = max(leaf.width(int(leaf.lengths.max())) for leaf in leaves)
    return [replace(leaf, buckets=(width,))[:] for leaf in leaves]


def _one_program(plans: Sequence[Plan], begun: Sequence[tuple]) -> tuple:
    """Returns the phase that all lanes run, and their states on one axis."""
    make_room()
    _require_widths(plans[0], begun[0][0].program)
    first = _kind(plans[0], *begun[0])
    for number, (plan, now) in enumerate(zip(plans, begun, strict=True)):
        if _kind(plan, *now) != first:
            raise OtherProgramError(
                f"lane {number} is another program than lane 0: lanes may differ in "
                "rates, multipliers, keys and values, not in steps, shapes or functions, "
                "so sweep the others apart"
            )
    return begun[0][0], _stacked([state for _, state in begun])


def _require_widths(plan: Plan, program: Program) -> None:
    """Raises `OtherProgramError` for texts of several lengths under dropout: lanes pad them
    all to one width, and what is drawn depends on that. `fit` would draw something else."""
    if plan.sizes is None or not program.dropout:
        return
    x = plan.data.take(np.arange(1)).x
    for stage in plan.network.stages:
        own = plan.network.params[stage.name], plan.network.stats[stage.name]
        random, x = probe(stage.apply, *own, x)
        if random and stage.name in program.dropout:
            raise OtherProgramError(
                f"stage {stage.name!r} has dropout, and texts of several lengths are padded "
                "to one width as lanes, where other elements would be dropped than by fit: "
                "run them one by one, or give dropout='none'"
            )


def _kind(plan: Plan, running: Running, state: State) -> tuple:
    """Returns what lanes must have in common: program, steps, and all shapes."""
    read = (plan.network.params, plan.network.stats, plan.data.take(slice(0, 1)).x)
    leaves, structure = jax.tree.flatten((read, state))
    shapes = [(np.shape(leaf), leaf.dtype) for leaf in leaves]
    program = by_object(running.program)
    return running.index, program, plan.ends, plan.per_epoch, structure, shapes


def _compiled_lanes(traces: Traces, program: Program, shared: bool) -> Callable:
    """Returns the compiled `(states, frozen, batches) -> (states, logs)`: a scan over the
    batches' first axis of the step, vmapped over the states' first axis (and over that
    of the frozen parameters, unless they are shared)."""
    # vmap inside scan: lanes share one stream of chunks, and the step is compiled once for
    # all lanes. Plans carry `sizes`, since lanes must agree on every batch's width.
    axis = None if shared else 0
    step = jax.vmap(partial(train_step, program), in_axes=(0, axis, 0))

    def run(states, frozen, chunk):
        return jax.lax.scan(lambda s, batch: step(s, frozen, batch), states, chunk)

    key = ("lanes", program, shared)
    return partial(traces.run, key, run, donate=(0,))


def _start(plans: Sequence[Plan]) -> tuple[Running, State]:
    return _one_program(
        plans, [start(p.network, p.phases[0], p.settings, p.key) for p in plans]
    )


def _advanced(
    plans: Sequence[Plan], running: Running, states: State
) -> tuple[Running, State]:
    return _one_program(
        plans,
        [
            advance(p.network, running, _lane(states, i), p.phases, p.settings)
            for i, p in enumerate(plans)
        ],
    )


def _frozen(plans: Sequence[Plan], states: State, shared: bool) -> Any:
    """Returns the one base of all lanes, or one for each lane where it is its own or leaves
    rest."""
    if shared and not states.resting:
        return plans[0].network.params
    lanes = [(plan, _lane(states, i)) for i, plan in enumerate(plans)]
    return _stacked(
        [frozen_params(p.network.params, state, p.phases) for p, state in lanes]
    )


def _refreshed(
    plans: Sequence[Plan], running: Running, states: State, step: int
) -> State:
    if all(plan.phases[running.index].multipliers is None for plan in plans):
        return states
    lanes = enumerate(plans)
    return _stacked([refreshed(p, running, _lane(states, i), step) for i, p in lanes])


def _run(
    plans: Sequence[Plan],
    program: Program,
    states: State,
    frozen: Any,
    running: Running,
    step: int,
    chunk: int,
) -> tuple[State, Any]:
    """Returns the states after at most `chunk` steps, and logs float32[steps, lanes]."""
    streams = [islice(segment(p, running.index, step, p.data), chunk) for p in plans]
    steps = [_stacked(batches, np.stack) for batches in zip(*streams, strict=True)]
    batch: Batch = jax.device_put(_stacked(steps, np.stack))
    shared = frozen is plans[0].network.params
    return _compiled_lanes(plans[0].traces, program, shared)(states, frozen, batch)


def _progress(
    plan: Plan,
    running: Running,
    state: State,
    step: int,
    logs: list,
    lane: int,
    before: Progress,
    validate: Callable | None,
    mode: str,
) -> Progress:
    """Returns a lane's progress at the end of an epoch; the first of equals is kept."""
    if before.error is not None:
        return before
    chunks = jax.device_get(logs)
    own = [
        Logs(*(values[i, lane] for values in chunk))
        for chunk in chunks
        for i in range(len(chunk.loss))
    ]
    try:
        point = finished_epoch(plan, running, state, step, own)
    except DivergedError as error:
        error.kept = None if before.kept is None else _fit(before, before.kept)
        return before._replace(error=error)
    except InputError as error:  # nothing can learn: the other lanes go on
        return before._replace(error=error)
    before = before._replace(epochs=(*before.epochs, EpochLog(*point[:4])))
    if not plan.phases[running.index].keeps:
        return before
    if validate is None:
        return before._replace(kept=point)
    score = float(validate(point.network))
    kept = point if better(score, before.scores, mode) else before.kept
    return before._replace(kept=kept, scores=(*before.scores, score))


def _fit(now: Progress, kept: Epoch) -> FitResult:
    scores = list(now.scores)
    return FitResult(
        kept.network,
        kept.trainable,
        kept.number,
        scores,
        now.epochs,
        fixed=kept.fixed,
    )


def _result(now: Progress) -> FitResult | Exception:
    if now.error is not None:
        return now.error
    if now.kept is None:
        return ArithmeticError(f"no epoch had a validation score: {now.scores}")
    return _fit(now, now.kept)


def _stacked(values: Sequence, stack: Callable = jnp.stack) -> Any:
    return jax.tree.map(lambda *leaves: stack(leaves), *values)


def _lane(states: State, index: int) -> State:
    return jax.tree.map(lambda leaf: leaf[index], states)

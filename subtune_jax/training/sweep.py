"""Many small runs as one program: rates and seeds on a lane axis of the state.

For accelerators, where one small run leaves most of the machine idle. On a CPU a loop
over `fit` is faster (a convolution's step is 3 times slower under `vmap` and 29 times
in a scan there, measured for design.md).
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.data.batches import Batch, Data
from subtune_jax.data.ragged import lengths
from subtune_jax.errors import InputError, require_positive
from subtune_jax.network import Network
from subtune_jax.training.loop import (
    Diverged,
    Fit,
    finished_epoch,
    refreshed,
    segment,
)
from subtune_jax.training.phases import Phase, Program
from subtune_jax.training.plan import Plan, make_plan
from subtune_jax.training.resume import Epoch
from subtune_jax.training.state import State, advance, start
from subtune_jax.training.step import train_step


class Lane(NamedTuple):
    """A run of the sweep: its phases and the root of its randomness."""

    phases: Phase | Sequence[Phase]
    key: jax.Array


class Progress(NamedTuple):
    """What a lane has so far: the best epoch, all scores, and how it ended early."""

    kept: Epoch | None = None
    scores: tuple[float, ...] = ()
    diverged: Diverged | None = None


def sweep(
    network: Network,
    lanes: Sequence[Lane],
    data: Data,
    *,
    validate: Callable[[Network], float] | None = None,
    chunk: int = 16,
    **settings,
) -> list[Fit | ArithmeticError]:
    """Returns what `fit` gives for every lane, or the error (`Diverged`) it would raise.

    The lanes' steps are one `vmap`, scanned over `chunk` steps at a time. `settings` are
    those of `plan.make_plan` but `place`; a frozen prefix is not cached. Raises
    `InputError` when lanes differ in more than rates, multipliers and keys: these are
    values, all else is the program.
    """
    require_positive(lanes=len(lanes), chunk=chunk)
    if "place" in settings:
        raise InputError("a sweep fills one device with its lanes: leave place out")
    sizes = lengths(data.x)
    if sizes is not None:
        data = data.take(np.arange(len(data.y)))  # lanes share their batches' shapes
    plans = [
        make_plan(network, lane.phases, data, key=lane.key, **settings)._replace(
            sizes=sizes
        )
        for lane in lanes
    ]
    _require_one_program(plans)
    whole, states, step = plans[0], _start(plans), 0
    found = [Progress() for _ in lanes]
    logs: list[Any] = []
    for index, program in enumerate(whole.programs):
        if index:
            states = _advanced(plans, states, index)
        while step < whole.ends[index]:
            if step % whole.per_epoch == 0:
                states = _refreshed(plans, states, index, step)
            states, log = _run(plans, program, states, index, step, chunk)
            logs.append(log)
            step += len(log.loss)
            if step % whole.per_epoch == 0 or step == whole.ends[-1]:
                found = [
                    _progress(
                        plan, index, _lane(states, i), step, logs, i, made, validate
                    )
                    for i, (plan, made) in enumerate(zip(plans, found, strict=True))
                ]
                logs = []
    return [_result(made) for made in found]


def _require_one_program(plans: Sequence[Plan]) -> None:
    for number, plan in enumerate(plans):
        if (plan.programs, plan.ends) != (plans[0].programs, plans[0].ends):
            raise InputError(
                f"lane {number} is another program than lane 0: lanes may differ in "
                "rates, multipliers and keys alone, so sweep the others apart"
            )


@cache
def _compiled_lanes(program: Program) -> Callable:
    """Returns the jitted `(states, params, batches) -> (states, logs)`: a scan over the
    batches' first axis of the step, vmapped over the states' first axis."""
    step = jax.vmap(partial(train_step, program), in_axes=(0, None, 0))

    def run(states, params, chunk):
        return jax.lax.scan(lambda s, batch: step(s, params, batch), states, chunk)

    return jax.jit(run, donate_argnums=0)


def _start(plans: Sequence[Plan]) -> State:
    return _stacked(
        [start(p.network, p.programs[0], p.phases[0], p.key) for p in plans]
    )


def _advanced(plans: Sequence[Plan], states: State, index: int) -> State:
    return _stacked(
        [
            advance(
                plan.network,
                _lane(states, i),
                plan.phases[index - 1],
                plan.programs[index],
                plan.phases[index],
            )
            for i, plan in enumerate(plans)
        ]
    )


def _refreshed(plans: Sequence[Plan], states: State, index: int, step: int) -> State:
    if all(plan.phases[index].multipliers is None for plan in plans):
        return states
    lanes = enumerate(plans)
    return _stacked([refreshed(p, index, _lane(states, i), step) for i, p in lanes])


def _run(
    plans: Sequence[Plan],
    program: Program,
    states: State,
    index: int,
    step: int,
    chunk: int,
) -> tuple[State, Any]:
    """Returns the states after at most `chunk` steps, and logs float32[steps, lanes]."""
    streams = [islice(segment(p, index, step, p.data), chunk) for p in plans]
    steps = [_stacked(batches, np.stack) for batches in zip(*streams, strict=True)]
    batch: Batch = _stacked(steps, np.stack)
    return _compiled_lanes(program)(states, plans[0].network.params, batch)


def _progress(
    plan: Plan,
    index: int,
    state: State,
    step: int,
    logs: list,
    lane: int,
    made: Progress,
    validate: Callable | None,
) -> Progress:
    """Returns a lane's progress at the end of an epoch; the first of equals is kept."""
    if made.diverged is not None:
        return made
    losses, norms = (
        np.concatenate([getattr(log, name)[:, lane] for log in logs])
        for name in ("loss", "grad_norm")
    )
    try:
        point = finished_epoch(plan, index, state, step, losses, norms)
    except Diverged as error:
        return made._replace(diverged=error)
    if validate is None:
        return made._replace(kept=point)
    score = float(validate(point.network))
    better = score > np.nanmax([*made.scores, -np.inf])
    kept = point if better else made.kept
    return made._replace(kept=kept, scores=(*made.scores, score))


def _result(made: Progress) -> Fit | ArithmeticError:
    if made.diverged is not None:
        return made.diverged
    if made.kept is None:
        return ArithmeticError(f"no epoch had a validation score: {made.scores}")
    point = made.kept
    return Fit(point.network, point.trainable, point.number, list(made.scores))


def _stacked(values: Sequence, stack: Callable = jnp.stack) -> Any:
    return jax.tree.map(lambda *leaves: stack(leaves), *values)


def _lane(states: State, index: int) -> State:
    return jax.tree.map(lambda leaf: leaf[index], states)

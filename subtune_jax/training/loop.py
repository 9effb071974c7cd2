"""The loop driver: it decides what runs when; the step does not know."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate as running_total
from itertools import count
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data import batches
from subtune_jax.data.batches import Data
from subtune_jax.evaluation.metrics import Metric, accuracy, cross_entropy
from subtune_jax.network import Network
from subtune_jax.training.phases import Phase, programs
from subtune_jax.training.state import State, advance, materialize, start
from subtune_jax.training.step import Logs, compiled_forward, compiled_step


class Diverged(ArithmeticError):
    """The loss was not finite at `step` (counted from 1)."""

    def __init__(self, step: int, loss: float):
        super().__init__(f"the loss became {loss} at step {step}")
        self.step = step


class Epoch(NamedTuple):
    """Where a run stands after a pass over the data (or at its end); owns its arrays."""

    number: int  # from 1
    step: int
    loss: float  # mean over the epoch's steps
    grad_norm: float  # L2, of the trainable leaves, mean over the epoch's steps
    network: Network  # parameters and statistics at this point
    trainable: Any


class Fit(NamedTuple):
    """The kept epoch of a finished run; `scores` are those of all its epochs."""

    network: Network
    trainable: Any
    epoch: int
    scores: list[float]


def fit(
    network: Network,
    phases: Phase | Sequence[Phase],
    data: Data,
    *,
    key: jax.Array,
    validate: Callable[[Network], float] | None = None,
    **settings,
) -> Fit:
    """Returns the network after the phases, or at the epoch that `validate` scores best.

    The first of equal scores is kept. `settings` are those of `epochs`. The base
    `network` is left as it is. Raises `InputError` for settings that cannot be, and
    `Diverged` when the loss is not finite.
    """
    kept, scores = None, []
    for point in epochs(network, phases, data, key=key, **settings):
        if validate is not None:
            scores.append(validate(point.network))
        if validate is None or scores[-1] > max(scores[:-1], default=-np.inf):
            kept = point
    if kept is None:
        raise ArithmeticError(f"no epoch had a validation score: {scores}")
    return Fit(kept.network, kept.trainable, kept.number, scores)


def epochs(
    network: Network,
    phases: Phase | Sequence[Phase],
    data: Data,
    *,
    key: jax.Array,
    loss: Callable = cross_entropy,
    norm: str = "stored",
    batch_size: int = 64,
    accumulate: int = 1,
    place: Callable[[Any], Any] = lambda tree: tree,
) -> Iterator[Epoch]:
    """Yields an `Epoch` after every pass over the data and at the end of the run.

    loss(outputs, targets) -> float[batch]. norm: `stored`, `tuned` or `batch` (see
    `network.stages_with_batch_stats`). accumulate: micro-batches per update; a step is
    one micro-batch. place: puts a batch on its devices (see `training.mesh`).
    """
    phases = [phases] if isinstance(phases, Phase) else list(phases)
    made = programs(network, phases, loss=loss, norm=norm, accumulate=accumulate)
    drop = accumulate > 1 or any(program.batch_stats for program in made)
    batches.steps_per_epoch(len(data.y), batch_size, drop=drop)
    ends = list(running_total(phase.steps for phase in phases))
    key, order = jax.random.split(key)
    seed = np.asarray(jax.random.key_data(order)).tolist()
    state, index, step = start(network, made[0], phases[0], key), 0, 0
    for number in count(1):
        logs: list[Logs] = []
        for batch in batches.epoch(
            data, batch_size, seed=seed, number=number, drop=drop
        ):
            if step == ends[index]:
                index += 1
                state = advance(
                    network, state, phases[index - 1], made[index], phases[index]
                )
            state, log = compiled_step(made[index])(state, network.params, place(batch))
            logs.append(log)
            step += 1
            if step == ends[-1]:
                break
        yield _epoch(network, phases[index], state, number, step, logs)
        if step == ends[-1]:
            return


def _epoch(
    network: Network,
    phase: Phase,
    state: State,
    number: int,
    step: int,
    logs: list[Logs],
) -> Epoch:
    losses = np.array([log.loss for log in logs])
    if not np.isfinite(losses).all():
        first = int(np.argmin(np.isfinite(losses)))
        raise Diverged(step - len(losses) + first + 1, float(losses[first]))
    trainable, held, stats = tree.copy((state.trainable, state.held, state.stats))
    own = state._replace(trainable=trainable, held=held)
    return Epoch(
        number=number,
        step=step,
        loss=float(losses.mean()),
        grad_norm=float(np.mean([log.grad_norm for log in logs])),
        network=network._replace(
            params=materialize(network.params, own, phase), stats=stats
        ),
        trainable=trainable,
    )


def predict(network: Network, data: Data, *, batch_size: int = 256) -> np.ndarray:
    """Returns the outputs for all examples, in order: stored statistics, no dropout."""
    run = compiled_forward(network.stages)
    rows = [
        np.asarray(run(network.params, network.stats, batch.x))[batch.weight > 0]
        for batch in batches.in_order(data, batch_size)
    ]
    return np.concatenate(rows)


def evaluate(
    network: Network, data: Data, metric: Metric = accuracy, *, batch_size: int = 256
) -> float:
    """Returns metric(outputs, targets) over all of `data`, each example counted once."""
    return metric(predict(network, data, batch_size=batch_size), data.y)

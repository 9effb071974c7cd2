"""Test-time training: a network that adapts to each input before it predicts."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data.batches import Batch
from subtune_jax.errors import InputError
from subtune_jax.network import Network, Stage, forward
from subtune_jax.training.loop import Diverged
from subtune_jax.training.phases import Phase, programs
from subtune_jax.training.state import materialize, start
from subtune_jax.training.step import compiled_step


def adapt(
    network: Network,
    phase: Phase,
    views: Iterable[tuple[Any, Any]],
    *,
    loss: Callable,
    key: jax.Array,
    norm: str = "stored",
    episodic: bool = False,
) -> Iterator[np.ndarray]:
    """Yields the outputs for each input of a stream, after `phase.steps` steps on it.

    `views` has pairs (x to adapt to, x to predict), batches: for MEMO the copies of an
    image and the image itself, for TENT one batch twice. loss(outputs, None) ->
    float[batch], without labels (`evaluation.entropy`). `norm` as in `fit`, for the
    prediction too: under `batch` it uses the statistics of the batch it is for.
    episodic: the network is as it was before every input; otherwise it is online,
    and keeps what it learnt. Raises `InputError` for a phase that cannot be or has
    multipliers, and `Diverged` when a loss or gradient is not finite.
    """
    if phase.multipliers is not None:
        raise InputError("multipliers are refreshed by epochs: a stream has none")
    (program,) = programs(network, [phase], loss=loss, norm=norm)
    step = compiled_step(program)
    predict = _compiled_predict(network.stages, program.batch_stats)
    first = start(network, program, phase, key)
    state = tree.copy(first)
    for x, seen in views:
        if episodic:
            state = tree.copy(first)
        rows = len(jax.tree.leaves(x)[0])
        batch = Batch(x, np.zeros(rows, np.int32), np.ones(rows, np.float32))
        for _ in range(phase.steps):
            state, log = step(state, network.params, batch)
            if not np.isfinite([log.loss, log.grad_norm]).all():
                raise Diverged(int(state.step), float(log.loss))
        params = materialize(network.params, state, phase)
        yield np.asarray(predict(params, state.stats, seen))


@cache
def _compiled_predict(
    stages: tuple[Stage, ...], batch_stats: frozenset[str]
) -> Callable:
    def run(params, stats, x):
        return forward(stages, params, stats, x, batch_stats=batch_stats)[0]

    return jax.jit(run)

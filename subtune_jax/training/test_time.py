"""Test-time training: a network that adapts to each input before it predicts."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data.augmix import augmix_copies
from subtune_jax.data.batches import Batch, Dataset
from subtune_jax.errors import InputError
from subtune_jax.losses import entropy, marginal_entropy
from subtune_jax.network import (
    Labels,
    Network,
    Params,
    Stats,
    forward,
    require_network,
)
from subtune_jax.programs import Traces
from subtune_jax.training.loop import DivergedError
from subtune_jax.training.optimizers import Rule, adam, sgd
from subtune_jax.training.phases import Phase, check
from subtune_jax.training.predict import predict
from subtune_jax.training.settings import Settings, Stages
from subtune_jax.training.state import Running, State, live_params, start
from subtune_jax.training.step import compiled_step


def adapt_to_stream(
    network: Network,
    phase: Phase,
    views: Iterable[tuple[Any, Any]],
    *,
    loss: Callable,
    key: jax.Array,
    norm: Stages = "stored",
    dropout: Stages = "none",
    episodic: bool = False,
) -> Iterator[np.ndarray]:
    """Yields the outputs for each input of a stream, after `phase.steps` steps on it.

    `views` has pairs (x to adapt to, x to predict), batches: for MEMO the copies of an
    image and the image itself, for TENT one batch twice. loss(outputs, None) ->
    float[batch], without labels (`losses.entropy`). `norm` as in `fit`, for the
    prediction too: under `batch` it uses the statistics of the batch it is for.
    `dropout` as in `fit`, of the steps alone. episodic: the network is as it was before
    every input; otherwise it is online, and keeps what it learnt. Raises `InputError`
    for a phase that cannot be, or has multipliers, a schedule or a warm-up, and
    `DivergedError` when a loss or gradient is not finite.
    """
    require_network(network)
    _require_endless(phase)
    settings = Settings(loss, norm, dropout)
    check(network, [phase], settings)
    network = network._replace(
        params=jax.device_put(network.params), stats=jax.device_put(network.stats)
    )
    running, first = start(network, phase, settings, key)
    traces = Traces()
    step = compiled_step(traces, running.program)

    def outputs(params: Params, stats: Stats, x: Any) -> Any:
        normed = running.program.batch_stats
        return forward(network.stages, params, stats, x, batch_stats=normed)[0]

    outputs_of = partial(traces.run, "outputs", outputs)
    return _adapted(network, phase, views, running, first, step, outputs_of, episodic)


def _adapted(
    network: Network,
    phase: Phase,
    views: Iterable[tuple[Any, Any]],
    running: Running,
    first: State,
    step: Callable,
    outputs_of: Callable,
    episodic: bool,
) -> Iterator[np.ndarray]:
    state = tree.copy(first)
    for x, seen in views:
        if episodic:
            state = tree.copy(first)
        rows = len(jax.tree.leaves(x)[0])
        batch = Batch(x, np.zeros(rows, np.int32), np.ones(rows, np.float32))
        batch = jax.device_put(batch)
        for _ in range(phase.steps):
            state, log = step(state, network.params, batch)
            if not jax.device_get(log.finite):
                raise DivergedError(int(state.step), float(log.loss))
        params = live_params(network.params, running, state, (phase,))
        yield jax.device_get(outputs_of(params, state.stats, jax.device_put(seen)))


class StreamResult(NamedTuple):
    """Outputs for the inputs of a stream in order, up to where the network diverged."""

    outputs: np.ndarray
    diverged: bool


def memo(
    network: Network,
    labels: Labels,
    data: Dataset,
    *,
    learning_rate: float = 5e-3,
    copies: int = 32,
    seed: int = 0,
    norm: Stages = "stored",
    episodic: bool = False,
) -> StreamResult:
    """Returns the outputs of MEMO (Zhang, Levine and Finn 2022) on a stream of images.

    For each image one step of plain SGD on the marginal entropy of `copies` AugMix copies
    of it, then its prediction. labels: what adapts. Learning rate and copies are those of
    the paper's code. norm, episodic: see `adapt_to_stream`; episodic is the paper's MEMO,
    online that of surgical fine-tuning. The targets of `data` are not read.
    """

    def views() -> Iterator[tuple]:
        for index, image in enumerate(data.x[:]):
            rng = np.random.default_rng([seed, index + 1])
            yield augmix_copies(image, copies, rng), image[None]

    phase = Phase(labels, sgd(learning_rate, momentum=0.0), steps=1)
    return _stream_result(
        network, phase, views(), data, marginal_entropy, seed, norm, episodic
    )


def tent(
    network: Network,
    labels: Labels,
    data: Dataset,
    *,
    learning_rate: float = 1e-3,
    batch_size: int = 50,
    seed: int = 0,
    norm: Stages = "stored",
    episodic: bool = False,
) -> StreamResult:
    """Returns the outputs of TENT (Wang et al. 2021) on a stream of inputs.

    For each batch one step of Adam on its mean entropy, then its prediction (the paper's
    code predicts before the step, recalled). labels: what adapts, the unit `norms` in the
    paper, under `norm="batch"`. norm, episodic: see `adapt_to_stream`. The targets of
    `data` are not read.
    """

    def views() -> Iterator[tuple]:
        for begin in range(0, len(data.y), batch_size):
            batch = data.take(slice(begin, begin + batch_size)).x
            yield batch, batch

    phase = Phase(labels, adam(learning_rate), steps=1)
    return _stream_result(network, phase, views(), data, entropy, seed, norm, episodic)


def _stream_result(
    network: Network,
    phase: Phase,
    views: Iterator[tuple],
    data: Dataset,
    loss: Callable,
    seed: int,
    norm: Stages,
    episodic: bool,
) -> StreamResult:
    adapted = adapt_to_stream(
        network,
        phase,
        views,
        loss=loss,
        key=jax.random.key(seed),
        norm=norm,
        episodic=episodic,
    )
    # No rows, in the shape and type of the outputs: the stream may diverge at once.
    outputs = [predict(network, data.only(np.arange(1)))[:0]]
    try:
        outputs.extend(adapted)
    except DivergedError:
        return StreamResult(np.concatenate(outputs), True)
    return StreamResult(np.concatenate(outputs), False)


def _require_endless(phase: Phase) -> None:
    """Raises `InputError` for a phase whose rates depend on where it stands: a stream has
    no epochs and no end, and a schedule would have run out after the first input."""
    if phase.multipliers is not None:
        raise InputError("multipliers are refreshed by epochs: a stream has none")
    rules = phase.rules
    for rule in [rules] if isinstance(rules, Rule) else rules.values():
        if rule.schedule != "constant" or rule.warmup:
            given = "a warm-up" if rule.warmup else f"the schedule {rule.schedule!r}"
            raise InputError(
                f"{given} has an end and a stream has none: expected a constant rate"
            )

"""The one train step, a pure function of (state, frozen, batch)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from subtune_jax import tree
from subtune_jax.data.batches import Batch
from subtune_jax.losses import per_example, require_rows, weighted_mean
from subtune_jax.network import Network, Params, Stats, forward
from subtune_jax.programs import Traced, Traces, traces_of
from subtune_jax.training.phases import Program, transformation
from subtune_jax.training.state import State, narrow


class Logs(NamedTuple):
    """Scalars of one step: mean loss without penalty and gradient norm of what trains,
    float32, and whether these and all that trains are finite."""

    loss: jax.Array
    grad_norm: jax.Array
    finite: jax.Array


def train_step(
    program: Program, state: State, frozen: Params, batch: Batch
) -> tuple[State, Logs]:
    """Returns the state after one micro-batch, and its logs.

    `frozen` is the base, with the leaves that rest at their tuned values. Differentiates
    the trainable tree and nothing else, so whatever is done with the gradients
    (clipping, accumulation, norms) cannot bring the frozen backward pass back. With
    accumulation, every `accumulate`-th step moves the weights.
    """
    require_rows(batch)
    gates, dropout = jax.random.split(jax.random.fold_in(state.key, state.step))

    def objective(trainable):
        seen = narrow(trainable, program)
        params = program.materialize(seen, state.fixed, frozen, gates)
        params = jax.tree.map(lambda w, base: w.astype(base.dtype), params, frozen)
        outputs, stats = forward(
            program.stages,
            params,
            state.stats,
            batch.x,
            batch_stats=program.batch_stats,
            dropout=program.dropout,
            key=dropout,
            first=program.first,
            start=program.start,
        )
        loss = weighted_mean(per_example(program.loss, outputs, batch.y), batch.weight)
        return loss + program.penalty(trainable, state.fixed, frozen), (loss, stats)

    (_, (loss, stats)), grads = jax.value_and_grad(objective, has_aux=True)(
        state.trainable
    )
    tx, decayed = transformation(program, state.trainable), state.trainable
    if program.decayed is not None:
        decayed = program.decayed(state.trainable, state.fixed, frozen)
    updates, opt_state = tx.update(grads, state.opt_state, decayed)
    trainable = optax.apply_updates(state.trainable, updates)
    after = state._replace(
        trainable=trainable, opt_state=opt_state, stats=stats, step=state.step + 1
    )
    ascending = {leaf.path for leaf in program.leaves if leaf.direction == "ascent"}
    norm = optax.tree.norm(
        [g for path, g in tree.flatten(grads).items() if path not in ascending]
    )
    finite = [jnp.isfinite(x).all() for x in (loss, norm, *jax.tree.leaves(trainable))]
    logs = Logs(
        loss.astype(jnp.float32), norm.astype(jnp.float32), jnp.stack(finite).all()
    )
    return after, logs


def compiled_step(traces: Traces, program: Program) -> Callable:
    """Returns the compiled `(state, frozen, batch) -> (state, logs)`; it takes the state's
    buffers. traces: those of the run. Of its arguments only a batch changes its shape."""
    steps: dict[tuple, Callable] = {}

    def step(state: State, frozen: Params, batch: Batch) -> tuple[State, Logs]:
        width = tree.shapes(batch)
        if width not in steps:
            steps[width] = traced_step(traces, program, state, frozen, batch).run
        return steps[width](state, frozen, batch)

    return step


def traced_step(
    traces: Traces, program: Program, state: State, frozen: Params, batch: Batch
) -> Traced:
    """Returns the traced step of a phase at these shapes."""
    key, step = ("step", program), partial(train_step, program)
    return traces.traced(key, step, state, frozen, batch, donate=(0,))


def compiled_forward(
    network: Network, start: int = 0, stop: int | None = None
) -> Callable:
    """Returns the compiled `(params, stats, x) -> activations` of stages `start` to `stop`
    (excluded): stored norms, no dropout."""
    stages = network.stages[start:stop]

    def run(params, stats, x):
        return forward(stages, params, stats, x)[0]

    names = tuple(stage.name for stage in stages)
    traces = traces_of(*(stage.apply for stage in stages))

    def forwarded(params: Params, stats: Stats, x: Any) -> Any:
        own = [{name: of[name] for name in names} for of in (params, stats)]
        return traces.run(("forward", names), run, *own, x)

    return forwarded

"""The one train step, a pure function of (state, base, batch)."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from subtune_jax import tree
from subtune_jax.data.batches import Batch
from subtune_jax.network import Params, Stage, forward
from subtune_jax.training.phases import Program, transformation
from subtune_jax.training.state import State


class Logs(NamedTuple):
    """Scalars of one step, float32: mean loss without penalty, trainable gradient norm."""

    loss: jax.Array
    grad_norm: jax.Array


def train_step(
    program: Program, state: State, params: Params, batch: Batch
) -> tuple[State, Logs]:
    """Returns the state after one micro-batch, and its logs.

    Differentiates the trainable tree and nothing else, so whatever is done with the
    gradients (clipping, accumulation, norms) cannot bring the frozen backward pass
    back. With accumulation, every `accumulate`-th step moves the weights.
    """
    gates, dropout = jax.random.split(jax.random.fold_in(state.key, state.step))

    def objective(trainable):
        made = program.tuning.materialize(trainable, params, gates)
        outputs, stats = forward(
            program.stages,
            tree.combine(state.held, made),
            state.stats,
            batch.x,
            batch_stats=program.batch_stats,
            key=dropout,
            start=program.start,
        )
        loss = weighted_mean(program.loss(outputs, batch.y), batch.weight)
        return loss + program.tuning.penalty(trainable, params), (loss, stats)

    (_, (loss, stats)), grads = jax.value_and_grad(objective, has_aux=True)(
        state.trainable
    )
    tx = transformation(program, dict(program.rules), state.trainable)
    updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
    after = state._replace(
        trainable=optax.apply_updates(state.trainable, updates),
        opt_state=opt_state,
        stats=stats,
        step=state.step + 1,
    )
    logs = Logs(loss, optax.tree.norm(grads))
    return after, jax.tree.map(lambda log: log.astype(jnp.float32), logs)


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns sum(weight * values) / sum(weight), both float[batch]."""
    return jnp.sum(values * weight) / jnp.sum(weight)


@cache
def compiled_step(program: Program) -> Callable:
    """Returns the jitted `(state, params, batch) -> (state, logs)`; the state is donated."""
    return jax.jit(partial(train_step, program), donate_argnums=0)


@cache
def compiled_forward(
    stages: tuple[Stage, ...], start: int = 0, stop: int | None = None
) -> Callable:
    """Returns the jitted `(params, stats, x) -> activations` of stages `start` to `stop`
    (excluded): stored norms, no dropout."""

    def run(params, stats, x):
        return forward(stages, params, stats, x, start=start, stop=stop)[0]

    return jax.jit(run)

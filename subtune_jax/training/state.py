"""The state of a run: one immutable tree that a step maps to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.network import Network, Params, Stats, trainable_half
from subtune_jax.training.optimizers import carry_moments
from subtune_jax.training.phases import Phase, Program, transformation


class State(NamedTuple):
    """What a training step reads and replaces.

    trainable: the differentiated tree. held: parameters an earlier phase trained and
    this one freezes (`None` elsewhere). step: int32, counted over all phases. key: the
    root of the run's randomness; a step folds its number into it.
    """

    trainable: Any
    held: Params
    opt_state: Any
    stats: Stats
    step: jax.Array
    key: jax.Array


def start(network: Network, program: Program, phase: Phase, key: jax.Array) -> State:
    """Returns the state before the first step, in buffers of its own."""
    init_key, run_key = jax.random.split(key)
    trainable = phase.tuning.init(network.params, phase.labels, init_key)
    return State(
        trainable=trainable,
        held=jax.tree.map(lambda _: None, network.params),
        opt_state=transformation(program, phase.rules, trainable).init(trainable),
        stats=tree.copy(network.stats),
        step=jnp.zeros((), jnp.int32),
        key=run_key,
    )


def advance(
    network: Network, state: State, before: Phase, program: Program, phase: Phase
) -> State:
    """Returns the state for the next phase; values and moments carry over by path.

    A trainable leaf keeps its value, moments and count; a new one starts with its own
    count; a leaf that trains no longer is held at its value. `network` is the base.
    """
    # Steps fold in 0, 1, ...; the last number that folds in is never a step's.
    key = jax.random.fold_in(state.key, 0xFFFFFFFF)
    key = jax.random.fold_in(key, state.step)
    fresh = phase.tuning.init(network.params, phase.labels, key)
    known = tree.flatten(state.held) | tree.flatten(state.trainable)
    trainable = tree.map_with_path(lambda name, leaf: known.get(name, leaf), fresh)
    opt_state = transformation(program, phase.rules, trainable).init(trainable)
    return tree.copy(
        state._replace(
            trainable=trainable,
            held=_held(
                materialize(network.params, state, before), state, before, phase
            ),
            opt_state=carry_moments(opt_state, state.opt_state),
        )
    )


def _held(live: Params, state: State, before: Phase, phase: Phase) -> Params:
    """Returns the leaves that an earlier phase trained and this one freezes."""
    trained = {**tree.flatten(state.held), **_trainable(before)}
    held = trained.keys() - _trainable(phase).keys()
    return tree.map_with_path(lambda name, leaf: leaf if name in held else None, live)


def _trainable(phase: Phase) -> dict[str, str]:
    return tree.flatten(trainable_half(phase.labels, phase.labels))


def materialize(params: Params, state: State, phase: Phase) -> Params:
    """Returns the network's parameters at this state: deterministic, no dropout."""
    return tree.combine(
        state.held, phase.tuning.materialize(state.trainable, params, None)
    )

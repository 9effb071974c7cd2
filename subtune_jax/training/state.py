"""The state of a run: one immutable tree that a step maps to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.labels import trainable_half
from subtune_jax.network import Network, Params, Stats
from subtune_jax.training.optimizers import carry_moments
from subtune_jax.training.phases import (
    Phase,
    Program,
    make_program,
    phase_optimizer,
    same_tuning,
)
from subtune_jax.training.settings import Settings
from subtune_jax.tuning.method import Ended, Parts, call_anew


class State(NamedTuple):
    """What a training step reads and replaces.

    trainable: the differentiated tree, at least float32 (masters of narrower leaves).
    fixed: the tuning's values that do not train. resting: `{phase: Parts}`, the values
    of leaves that an earlier phase trained and this one does not, by the first phase of
    their tuning. step: int32, counted over all phases. key: the root of the run's
    randomness; a step folds its number into it.
    """

    trainable: Any
    fixed: Any
    resting: dict[str, Parts]
    opt_state: Any
    stats: Stats
    step: jax.Array
    key: jax.Array


class Running(NamedTuple):
    """A phase that runs: its index, its program, and the first phase of its tuning."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    program: Program
    tuned_since: int = 0


def start(
    network: Network, phase: Phase, settings: Settings, key: jax.Array
) -> tuple[Running, State]:
    """Returns the first phase and the state before its first step, in buffers of its own."""
    init_key, run_key = jax.random.split(key)
    parts = call_anew(phase.tuning.init, network.params, phase.labels, init_key)
    program = make_program(network, phase, parts.trainable, settings)
    trainable = sparse(tree.wide(parts.trainable))
    state = State(
        trainable=trainable,
        fixed=sparse(parts.fixed),
        resting={},
        opt_state=phase_optimizer(program, phase, trainable).init(trainable),
        stats=tree.copy(network.stats),
        step=jnp.zeros((), jnp.int32),
        key=run_key,
    )
    return Running(0, program), state


def advance(
    network: Network,
    running: Running,
    state: State,
    phases: tuple[Phase, ...],
    settings: Settings,
) -> tuple[Running, State]:
    """Returns the next phase and its state; values and moments carry over by path.

    Under the same tuning with the same fixed values a trainable leaf keeps its value,
    moments and count, and one that rested trains on from its own trainable value. Else
    the tuning takes over. What trains no longer rests with its own values. `network` is
    the base.
    """
    # Trainable values come from one of three places: from this phase's own leaves where
    # the tuning goes on (`values`), from `take_over` where it changes, and from a fresh
    # `init` for newcomers. All else that was ever tuned rests, by the tuning's phase.
    index, params = running.index + 1, network.params
    phase, whole = phases[index], every_part(running, state)
    # Steps fold in 0, 1, ...; the last number that folds in is never a step's.
    key = jax.random.fold_in(state.key, 0xFFFFFFFF)
    key = jax.random.fold_in(key, state.step)
    before, since = phases[running.index].tuning, running.tuned_since
    begun, leaves, values, taken = None, running.program.leaves, {}, set()
    if same_tuning(phase.tuning, before):
        mine, values = whole[str(since)], tree.flatten(whole[str(since)].trainable)
        # A tuning that only takes over (a mask that was learnt) has nothing to begin with.
        same = phase.tuning == before and phase.labels == phases[running.index].labels
        given = params, phase.labels, key
        begun = mine if same else call_anew(phase.tuning.init, *given)
    if begun is None or not _goes_on(begun, state, whole[str(since)], since, params):
        live = live_params(params, running, state, phases)
        ended = Ended(before, whole[str(since)], live)
        begun = _taken_over(phase, index, ended, params, key)
        since, leaves, values = index, (), {}
        # All that is selected is taken over: of a leaf that the new tuning leaves out
        # (no element of it is in a mask) the old values go too.
        taken = set(tree.flatten(trainable_half(phase.labels, phase.labels)))
    program = make_program(network, phase, begun.trainable, settings, index, leaves)
    fresh = tree.wide(begun.trainable)
    trainable = sparse(
        tree.map_with_path(lambda path, leaf: values.get(path, leaf), fresh)
    )
    opt_state = phase_optimizer(program, phase, trainable).init(trainable)
    after = State(
        trainable=trainable,
        fixed=sparse(begun.fixed),
        resting=_rest(whole, trainable, params, taken),
        opt_state=carry_moments(opt_state, state.opt_state) if leaves else opt_state,
        stats=state.stats,
        step=state.step,
        key=state.key,
    )
    return Running(index, program, since), tree.copy(after)


def _taken_over(
    phase: Phase, index: int, ended: Ended, params: Params, key: jax.Array
) -> Parts:
    if phase.tuning.take_over is None:
        raise InputError(
            f"phase {index} changes the tuning, and its tuning cannot take over from "
            "another"
        )
    return call_anew(phase.tuning.take_over, ended, params, phase.labels, key)


def _goes_on(
    begun: Parts, state: State, whole: Parts, since: int, params: Params
) -> bool:
    """Returns whether the trainable values of a phase mean the same in the next one.

    Not where a leaf has values of another form (a factor, or the weights themselves), or
    a fixed value that is another one (a mask with other places), nor where a leaf comes
    back that rests under a tuning before this one.
    """
    old, new = tree.flatten(whole.fixed), tree.flatten(begun.fixed)
    forms, next_forms = _forms(whole, params), _forms(begun, params)
    shared = forms.keys() & next_forms.keys()
    same = all(forms[leaf] == next_forms[leaf] for leaf in shared)
    same &= all(
        old[path].shape == new[path].shape and bool((old[path] == new[path]).all())
        for path in old.keys() & new.keys()
    )
    trains = set(tree.owners(begun.trainable, params).values())
    others = (p.trainable for n, p in state.resting.items() if n != str(since))
    rests = {path for other in others for path in tree.owners(other, params).values()}
    return same and not trains & rests


def _forms(parts: Parts, params: Params) -> dict[str, set[tuple]]:
    """Returns `{leaf: the parts and paths of its values}`."""
    forms: dict[str, set[tuple]] = {}
    for name, values in zip(Parts._fields, parts, strict=True):
        for path, leaf in tree.owners(values, params).items():
            forms.setdefault(leaf, set()).add((name, path))
    return forms


def _rest(
    whole: dict[str, Parts], trainable: Any, params: Params, taken: set[str]
) -> dict[str, Parts]:
    """Returns the parts without the leaves that now train or were taken over."""
    trains = set(tree.owners(trainable, params).values()) | taken

    def left(values: Any) -> Any:
        flat, owners = tree.flatten(values), tree.owners(values, params)
        # What belongs to no leaf (LoRA's scale, a multiplier) stays with those that rest:
        # their values mean nothing without it.
        kept = {p: v for p, v in flat.items() if owners.get(p) not in trains}
        return tree.unflatten(kept)

    rests = {since: Parts(*map(left, parts)) for since, parts in whole.items()}
    return {
        since: parts
        for since, parts in rests.items()
        if tree.owners(parts.trainable, params)
    }


def every_part(running: Running, state: State) -> dict[str, Parts]:
    """Returns all trained values, resting ones too, by the first phase of their tuning."""
    own = str(running.tuned_since)
    resting, moving = (
        state.resting.get(own, Parts({}, {})),
        (state.trainable, state.fixed),
    )
    both = (
        tree.unflatten(tree.flatten(one) | tree.flatten(other))
        for one, other in zip(resting, moving, strict=True)
    )
    return {**state.resting, own: Parts(*both)}


def all_parts(running: Running, state: State) -> Parts:
    """Returns the trainable and the fixed values of all phases."""
    every = every_part(running, state).values()
    merged: tuple[dict, dict] = {}, {}
    for parts in every:
        for values, part in zip(merged, parts, strict=True):
            values |= tree.flatten(part)
    return Parts(*map(tree.unflatten, merged))


def live_params(
    params: Params, running: Running, state: State, phases: tuple[Phase, ...]
) -> Params:
    """Returns the network's parameters at this state: deterministic, in the base's types."""
    under = frozen_params(params, state, phases)
    values = narrow(state.trainable, running.program), state.fixed
    tuned = call_anew(running.program.materialize, *values, params, None)
    trained = set(tree.owners(state.trainable, params).values())
    return _overlaid(under, tuned, trained)


def frozen_params(params: Params, state: State, phases: tuple[Phase, ...]) -> Params:
    """Returns the base with the leaves that rest at their tuned values."""
    frozen = params
    for since, parts in state.resting.items():
        run = phases[int(since)].tuning.materialize
        tuned = call_anew(run, parts.trainable, parts.fixed, params, None)
        rests = set(tree.owners(parts.trainable, params).values())
        frozen = _overlaid(frozen, tuned, rests)
    return frozen


def _overlaid(under: Params, over: Params, paths: set[str]) -> Params:
    """Returns `under` with copies of these leaves of `over`: the state's own buffers are
    deleted when the next step takes them."""
    return tree.map_with_path(
        lambda path, a, b: jnp.array(b, a.dtype, copy=True) if path in paths else a,
        under,
        over,
    )


def narrow(trainable: Any, program: Program) -> Any:
    """Returns the leaves in the types in which the network sees them."""
    dtypes = {leaf.path: leaf.dtype for leaf in program.leaves}
    return tree.map_with_path(lambda path, x: x.astype(dtypes[path]), trainable)


def sparse(values: Any) -> Any:
    """Returns a tree without its absent leaves, as a checkpoint gives it back."""
    return tree.unflatten(tree.flatten(values))

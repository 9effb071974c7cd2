"""Many tasks on one input: what they share is computed once (SubTuning, Kaplun et al. 2023,
section on multi-task inference).

A *stream* is what goes from one stage to the next for some of the tasks. All tasks begin
on one stream, and tasks part at the first stage where they differ. A stage runs once for
each of its distinct parameters, on the streams that share them, joined along the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.data.inputs import require_inputs
from subtune_jax.deltas.delta import Delta, base_fingerprint
from subtune_jax.deltas.swap import apply
from subtune_jax.errors import InputError, require_type, require_whole, unknown
from subtune_jax.flops import contraction_flops
from subtune_jax.network import Network, Stage, require_network
from subtune_jax.programs import traces_of
from subtune_jax.serving.parts import body_of, changes, head_of_task

Groups = tuple[tuple[int, ...], ...]  # at a stage: the streams of each distinct weights
Block = tuple[Any, tuple[int, ...]]  # joined streams, with their numbers


class Member(NamedTuple):
    """A task of a trunk.

    keys: for every stage of the body what the task changed there, as a SHA-256; empty
    where it is the base. weights: (params, stats) of every stage of the body. head: its
    last stage, and `head_weights`. outputs: how many of its columns are real (`None`: all).
    """

    keys: tuple[str, ...]
    weights: tuple[Any, ...]
    head: Stage
    head_weights: Any
    outputs: int | None = None


class Layout(NamedTuple):
    """What is compiled: the groups of every stage, whether their weights are stacked, and
    for every head its function and stream."""

    stages: tuple[Callable, ...]
    groups: tuple[Groups, ...]
    stacked: tuple[bool, ...]
    heads: tuple[tuple[Callable, int], ...]


class Trunk(NamedTuple):
    """Many tasks on one base; an immutable value. `trunk(x)` returns `{task: outputs}`."""

    network: Network
    members: Mapping[str, Member]
    layout: Layout
    weights: Any
    order: tuple[str | None, ...]  # of the heads; None: an idle place
    capacity: int
    stacked: bool
    fingerprint: str

    def __call__(self, x: Any) -> dict[str, jax.Array]:
        """Returns `{task: outputs[batch, ...]}` for a batch of inputs of the base: stored
        statistics, no dropout. Raises `InputError` for inputs that it cannot take."""
        rows = require_inputs(self.network, x)
        if _lazy(x):
            x = jax.tree.map(lambda leaf: leaf[np.arange(rows)], x)
        x = tree.beside(x, self.network.params)
        return _named(self, program(self.layout)(self.weights, x))

    def __repr__(self) -> str:
        streams = [sum(map(len, groups)) for groups in self.layout.groups]
        return f"Trunk({len(self.members)} tasks, streams by stage {streams})"


def plan(
    network: Network,
    deltas: Mapping[str, Delta],
    *,
    capacity: int = 1,
    stacked: bool | None = None,
) -> Trunk:
    """Returns the trunk of tasks on a base, from their deltas alone.

    The source task is a delta that changed nothing but the head. Tasks that changed a
    stage alike share its stream. capacity: tasks that changed the same stages are filled
    up to a multiple of it by idle ones, which compute and are thrown away: within that
    room `add` and `remove` compile nothing, for tasks whose changes no other one shares.
    stacked: whether a stage's distinct weights are one array with an axis for the task, or
    run one after the other; default: on an accelerator. Raises `InputError` for no task,
    and for a delta of another base.
    """
    require_network(network)
    require_whole(capacity=capacity)
    require_type(Mapping, deltas=deltas)
    if not deltas:
        raise InputError("there is no task: give a dict of deltas by name")
    stacked = jax.default_backend() != "cpu" if stacked is None else stacked
    fingerprint = base_fingerprint(network)
    params, stats = tree.on_device((network.params, network.stats))
    network = network._replace(params=params, stats=stats)
    members = {
        name: _member(network, name, delta, fingerprint, capacity)
        for name, delta in deltas.items()
    }
    return _arranged(network, members, capacity, stacked, fingerprint)


def add(trunk: Trunk, name: str, delta: Delta) -> Trunk:
    """Returns the trunk with one task more, or another one under the name of an old one.
    Stacked weights are stacked anew. Raises `InputError` as `plan`."""
    new = _member(trunk.network, name, delta, trunk.fingerprint, trunk.capacity)
    return _with(trunk, {**trunk.members, name: new})


def remove(trunk: Trunk, name: str) -> Trunk:
    """Returns the trunk without a task. Raises `InputError` for an unknown task, and for
    the last one."""
    if name not in trunk.members:
        raise unknown("task", name, trunk.members)
    rest = {other: one for other, one in trunk.members.items() if other != name}
    if not rest:
        raise InputError(f"{name!r} is the only task: a trunk has one at least")
    return _with(trunk, rest)


def outputs(trunk: Trunk, x: Any) -> dict[str, jax.Array]:
    """Returns `{task: outputs}` of a batch on its devices: pure, for `jax.jit`."""
    return _named(trunk, _run(trunk.layout, trunk.weights, x))


def _named(trunk: Trunk, heads: Sequence[jax.Array]) -> dict[str, jax.Array]:
    """Returns what the heads gave, by task and without idle ones and filled up columns."""
    return {
        name: y[..., : trunk.members[name].outputs]
        for name, y in zip(trunk.order, heads, strict=True)
        if name is not None
    }


def trunk_flops(trunk: Trunk, x: Any) -> int:
    """Returns the contraction FLOPs of a trunk on a batch; shapes and dtypes suffice."""
    return contraction_flops(partial(_run, trunk.layout), trunk.weights, x)


def _with(trunk: Trunk, members: Mapping[str, Member]) -> Trunk:
    how = trunk.capacity, trunk.stacked, trunk.fingerprint
    return _arranged(trunk.network, members, *how)


def _lazy(x: Any) -> bool:
    return any(hasattr(leaf, "only") for leaf in jax.tree.leaves(x))


def _member(
    network: Network, name: str, delta: Delta, fingerprint: str, capacity: int
) -> Member:
    require_type(Delta, **{f"the task {name!r}": delta})
    body = body_of(network, delta)
    try:
        head, weights, outputs = head_of_task(network, delta, fingerprint)
        tuned, _ = apply(network, body, fingerprint=fingerprint)
    except InputError as error:  # one of many
        raise InputError(f"the task {name!r}: {error}") from None
    if capacity == 1 and outputs is not None:  # no other head is to fit its program
        params, stats = weights
        last = {k: params[k][..., :outputs] for k in ("kernel", "bias")}
        weights = ({**params, **last}, stats)
    keys = changes(body)
    return Member(
        tuple(keys.get(stage.name, "") for stage in network.stages[:-1]),
        tuple((tuned.params[s.name], tuned.stats[s.name]) for s in tuned.stages[:-1]),
        head,
        weights,
        outputs,
    )


def _arranged(
    network: Network,
    members: Mapping[str, Member],
    capacity: int,
    stacked: bool,
    fingerprint: str,
) -> Trunk:
    places = _places(members, capacity)
    stages, groups, stacks, weights = [], [], [], []
    on = [0] * len(places)  # the stream of each place
    for i, stage in enumerate(network.stages[:-1]):
        keys = [one.keys[i] for _, one in places]
        sharing, on = _parted(keys, on)
        own = {one.keys[i]: one.weights[i] for _, one in reversed(places)}
        distinct = [own[key] for key in sharing]
        alike = len({len(streams) for streams in sharing.values()}) == 1
        stack = stacked and alike and len(distinct) > 1
        stages.append(stage.apply)
        groups.append(tuple(map(tuple, sharing.values())))
        stacks.append(stack)
        weights.append(_stack(distinct) if stack else distinct)
    heads = tuple((one.head.apply, s) for (_, one), s in zip(places, on, strict=True))
    layout = Layout(tuple(stages), tuple(groups), tuple(stacks), heads)
    whole = (weights, [one.head_weights for _, one in places])
    order = tuple(name for name, _ in places)
    return Trunk(network, members, layout, whole, order, capacity, stacked, fingerprint)


def _parted(
    keys: Sequence[str], on: Sequence[int]
) -> tuple[dict[str, list[int]], list[int]]:
    """Returns the streams that each distinct key takes in, and the stream after it of every
    place. Streams are numbered anew, those of one key in a row."""
    sharing: dict[str, list[int]] = {}
    for key, stream in zip(keys, on, strict=True):
        held = sharing.setdefault(key, [])
        if stream not in held:
            held.append(stream)
    pairs = [(key, stream) for key, streams in sharing.items() for stream in streams]
    return sharing, [pairs.index(pair) for pair in zip(keys, on, strict=True)]


def _stack(values: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)


def _places(
    members: Mapping[str, Member], capacity: int
) -> list[tuple[str | None, Member]]:
    """Returns the tasks, those that changed the same stages together, and idle ones.

    So the layout does not depend on when a task came, and a new one takes an idle place."""
    patterns: dict[tuple, list[tuple[str | None, Member]]] = {}
    for name, one in members.items():
        shapes = jax.tree.map(np.shape, one.head_weights)
        pattern = (tuple(map(bool, one.keys)), str((one.head.apply, shapes)))
        patterns.setdefault(pattern, []).append((name, one))
    for held in patterns.values():
        idle = held[0][1]
        for n in range(-len(held) % capacity):
            keys = tuple(key and f"{key} {n}" for key in idle.keys)
            held.append((None, idle._replace(keys=keys)))
    return [place for pattern in sorted(patterns) for place in patterns[pattern]]


def program(layout: Layout) -> Callable:
    """Returns the compiled `(weights, x) -> outputs of every head`."""
    traces = traces_of(*layout.stages, *(head for head, _ in layout.heads))
    streams = tuple(stream for _, stream in layout.heads)
    key = ("trunk", layout.groups, layout.stacked, streams)
    return partial(traces.run, key, partial(_run, layout))


def _run(layout: Layout, weights: Any, x: Any) -> list[Any]:
    body, heads = weights
    blocks: list[Block] = [(x, (0,))]
    for apply_stage, groups, stacked, own in zip(
        layout.stages, layout.groups, layout.stacked, body, strict=True
    ):
        run = partial(apply_stage, batch_stats=False, key=None)
        inputs = [_joined(blocks, streams) for streams in groups]
        if stacked:
            after = jax.vmap(lambda w, y, run=run: run(*w, y)[0])(own, _stack(inputs))
            outputs = [
                jax.tree.map(lambda y, n=n: y[n], after) for n in range(len(groups))
            ]
        else:
            outputs = [run(*w, y)[0] for w, y in zip(own, inputs, strict=True)]
        blocks, count = [], 0
        for y, streams in zip(outputs, groups, strict=True):
            blocks.append((y, tuple(range(count, count + len(streams)))))
            count += len(streams)
    return [
        head(*own, _joined(blocks, (stream,)), batch_stats=False, key=None)[0]
        for (head, stream), own in zip(layout.heads, heads, strict=True)
    ]


def _joined(blocks: Sequence[Block], streams: tuple[int, ...]) -> Any:
    """Returns these streams joined along the batch; a block that is just them as it is."""
    for block, held in blocks:
        if held == streams:
            return block
    pieces = [_stream(blocks, stream) for stream in streams]
    if len(pieces) == 1:
        return pieces[0]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *pieces)


def _stream(blocks: Sequence[Block], stream: int) -> Any:
    (block, held), *_ = [(y, held) for y, held in blocks if stream in held]
    place, size = held.index(stream), len(held)

    def cut(leaf: jax.Array) -> jax.Array:
        rows = leaf.shape[0] // size
        return leaf[place * rows : (place + 1) * rows]

    return jax.tree.map(cut, block)

"""Phases: a method is a list of them, and each becomes one compiled program."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from subtune_jax import tree
from subtune_jax.data.batches import Batch
from subtune_jax.errors import InputError, require_type, require_whole
from subtune_jax.head import normalized_linear
from subtune_jax.labels import (
    FROZEN,
    lowest_trainable,
    stages_with_batch_stats,
    stages_with_dropout,
)
from subtune_jax.network import Labels, Network, Stage
from subtune_jax.training.optimizers import Rule, optimizer
from subtune_jax.training.settings import Settings, Stages
from subtune_jax.tuning.method import Parts, Tuning, trained_labels
from subtune_jax.tuning.subset import subset

Multipliers = Callable[[Network, Iterable[Batch], Sequence[str]], Mapping[str, float]]


class Phase(NamedTuple):
    """What trains, by which rules, for how many steps, under which tuning.

    `rules` is one `Rule` for all groups or a dict with a rule per group.
    `multipliers(network, batches, paths) -> {path: factor}`, if given, sets the factors
    of the learning rates at the start of the phase and of every epoch, from the network
    as it stands, the batches of that epoch and the paths of the leaves that train;
    `reset_moments` starts the moments anew then, and nothing else. `norm` and `dropout`,
    if given, take the place of the run's. `keeps`: whether the phase's epochs may be
    kept as the best of the run.
    """

    labels: Labels
    rules: Rule | Mapping[str, Rule]
    steps: int
    tuning: Tuning = subset()
    multipliers: Multipliers | None = None
    reset_moments: bool = False
    norm: Stages | None = None
    dropout: Stages | None = None
    keeps: bool = True


class Leaf(NamedTuple):
    """A trainable leaf: its path, its group and how that moves, the phase since which its
    moments count, and the dtype in which the network sees it."""

    path: str
    group: str
    direction: str
    wave: int
    dtype: str


class Program(NamedTuple):
    """What the step of a phase is traced from: functions, and no values of a state.

    Phases of one call that have the same functions, and all else equal, share a trace.
    """

    stages: tuple[Stage, ...]
    materialize: Callable
    penalty: Callable
    decayed: Callable | None
    loss: Callable
    leaves: tuple[Leaf, ...]
    rules: tuple[tuple[str, Rule], ...]
    accumulate: int
    batch_stats: frozenset[str]
    dropout: frozenset[str]
    lowest: int  # the first stage in which something trains
    first: int = 0  # the index of the first stage in the whole network
    start: int = 0  # the first stage that a step runs; those before it are cached


def make_program(
    network: Network,
    phase: Phase,
    trainable: tree.Tree,
    settings: Settings,
    index: int = 0,
    before: Sequence[Leaf] = (),
) -> Program:
    """Returns the program of phase `index` with this trainable tree (shapes suffice).

    `before` are the leaves of the phase before, if it had the same tuning: a leaf that
    keeps its direction keeps its wave, with its moments. A newcomer starts with its own
    count, since Adam at count 500 would move it at twice the rate. Raises `InputError`
    for what cannot be.
    """
    labels = trained_labels(trainable, phase.labels)
    groups = tree.flatten(phase.tuning.groups(trainable, phase.labels))
    if not groups:
        raise InputError(f"phase {index} trains nothing: every leaf is frozen")
    rules = rules_by_group(phase.rules, set(groups.values()))
    _require_rates_reached(phase, rules, settings.accumulate)
    dtypes = {path: str(leaf.dtype) for path, leaf in tree.flatten(trainable).items()}
    _require_floats(dtypes)
    norm = settings.norm if phase.norm is None else phase.norm
    dropout = settings.dropout if phase.dropout is None else phase.dropout
    batch_stats = stages_with_batch_stats(network.stats, labels, norm)
    _require_spread(network, batch_stats, settings.batch_size)
    return Program(
        stages=network.stages,
        materialize=phase.tuning.materialize,
        penalty=phase.tuning.penalty,
        decayed=phase.tuning.decayed,
        loss=settings.loss,
        leaves=tuple(
            _leaf(path, group, rules[group].direction, dtypes[path], index, before)
            for path, group in groups.items()
        ),
        rules=tuple((group, _form(rule)) for group, rule in rules.items()),
        accumulate=settings.accumulate,
        batch_stats=batch_stats,
        dropout=stages_with_dropout(network.stages, labels, dropout),
        lowest=lowest_trainable(network.stages, labels),
        first=network.first,
    )


def _require_spread(
    network: Network, batch_stats: frozenset[str], batch_size: int
) -> None:
    """Raises `InputError` where a head normalizes features over one example."""
    name, apply = network.stages[-1]
    if apply is normalized_linear and name in batch_stats and batch_size == 1:
        raise InputError(
            f"stage {name!r} normalizes its features over the batch, and a batch of 1 "
            "leaves none: take a larger batch_size, or a head without normalize"
        )


def check(
    network: Network, phases: Sequence[Phase], settings: Settings
) -> list[Program | None]:
    """Returns the programs of phases, `None` where one is only known when it begins: what
    a phase trains that takes over another tuning, or comes after one that does.

    Raises `InputError`, before anything has run, for no phase or one that trains nothing,
    a group without a rule, steps that are not a multiple of `accumulate`, labels of
    another network, and a change to a tuning that cannot take over.
    """
    require_whole(accumulate=settings.accumulate)
    if not phases:
        raise InputError("a run needs at least one phase")
    programs: list[Program | None] = []
    for index, phase in enumerate(phases):
        require_whole(steps=phase.steps)
        require_type(Tuning, tuning=phase.tuning)  # lora(4), not lora
        require_rules(phase.rules)
        if phase.steps % settings.accumulate:
            raise InputError(
                f"steps ({phase.steps}) must be a multiple of accumulate "
                f"({settings.accumulate})"
            )
        if not tree.alike(phase.labels, network.params):
            raise InputError(
                f"the labels of phase {index} are not those of the network: select(network, "
                "{group: [selectors]}) returns them"
            )
        if set(jax.tree.leaves(phase.labels)) <= {FROZEN}:
            raise InputError(f"phase {index} trains nothing: every leaf is frozen")
        changes = index > 0 and not same_tuning(phase.tuning, phases[index - 1].tuning)
        if changes and phase.tuning.take_over is None:
            raise InputError(
                f"phase {index} changes the tuning, and its tuning cannot take over from "
                "another"
            )
        if changes or None in programs:
            programs.append(None)
            continue
        shapes = parts_shapes(network, phase).trainable
        before = programs[-1] if programs else None
        leaves = () if before is None else before.leaves
        programs.append(make_program(network, phase, shapes, settings, index, leaves))
    return programs


def same_tuning(one: Tuning, other: Tuning) -> bool:
    """Returns whether trainable values of one tuning mean the same under the other."""
    # Two calls of one tuning's maker have other `init` closures (other indices, other
    # strengths); what its values mean is said by `materialize` alone.
    return one.materialize == other.materialize


def parts_shapes(network: Network, phase: Phase) -> Parts:
    """Returns the shapes and dtypes of what the phase's tuning starts with."""

    def init(params, key):
        return phase.tuning.init(params, phase.labels, key)

    return jax.eval_shape(init, network.params, jax.random.key(0))


def _leaf(
    path: str,
    group: str,
    direction: str,
    dtype: str,
    index: int,
    before: Sequence[Leaf],
) -> Leaf:
    """A leaf that changes its optimizer starts again: its old moments mean something else."""
    # A wave is the phase since which a leaf's moments count. Leaves of one group that
    # began together share one count; at count 500 Adam's bias correction is over, and a
    # newcomer with fresh moments would move at about twice the rate.
    same = (b for b in before if (b.path, b.direction) == (path, direction))
    wave = next((leaf.wave for leaf in same), index)
    return Leaf(path, group, direction, wave, dtype)


def _require_floats(dtypes: Mapping[str, str]) -> None:
    for path, dtype in dtypes.items():
        if not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(
                f"leaf {path!r} is {dtype}: only real floating-point parameters can be "
                "trained, so leave it out of the selection"
            )


def _require_rates_reached(
    phase: Phase, rules: Mapping[str, Rule], accumulate: int
) -> None:
    updates = phase.steps // accumulate
    for group, rule in rules.items():
        if rule.warmup and rule.warmup >= updates:
            raise InputError(
                f"the warm-up of group {group!r} takes {rule.warmup} updates and its "
                f"phase has {updates}: its rate would never be reached"
            )


def rules_by_group(
    rules: Rule | Mapping[str, Rule], groups: set[str]
) -> dict[str, Rule]:
    """Returns `{group: rule}`; raises `InputError` for a missing or surplus rule."""
    if isinstance(rules, Rule):
        return {group: rules for group in sorted(groups)}
    norms: dict[str, float | None] = {}
    for rule in rules.values():
        if rule.clip_group and norms.setdefault(rule.clip_group, rule.clip_norm) != (
            rule.clip_norm
        ):
            raise InputError(
                f"the groups that clip_group {rule.clip_group!r} clips together have norms "
                f"{norms[rule.clip_group]} and {rule.clip_norm}: give them one"
            )
    if set(rules) != groups:
        raise InputError(
            f"rules are given for groups {', '.join(sorted(rules))} but the trainable "
            f"leaves are in groups {', '.join(sorted(groups))}"
        )
    return dict(sorted(rules.items()))


def require_rules(rules: Rule | Mapping[str, Rule]) -> None:
    """Raises `InputError` unless rules are one `Rule`, or a dict of them by group."""
    for rule in rules.values() if isinstance(rules, Mapping) else [rules]:
        if isinstance(rule, Rule):
            continue
        optax_s = isinstance(rule, optax.GradientTransformation)
        name = "an optax transformation" if optax_s else f"a {type(rule).__name__}"
        raise InputError(
            f"rules must be a Rule or a dict of them by group, got {name}: sgd, adam and "
            "adamw make one, with clipping, decay, schedule and warm-up"
        )


def transformation(
    program: Program,
    trainable: tree.Tree,
    rules: Rule | Mapping[str, Rule] | None = None,
    updates: int = 0,
) -> optax.GradientTransformation:
    """Returns the optimizer of a program; only its `init` reads the numbers in `rules`
    and `updates`."""
    groups = {leaf.path: leaf.group for leaf in program.leaves}
    waves = {leaf.path: leaf.wave for leaf in program.leaves}
    tx = optimizer(
        rules_by_group(rules or dict(program.rules), set(groups.values())),
        tree.map_with_path(lambda path, _: groups[path], trainable),
        tree.map_with_path(lambda path, _: waves[path], trainable),
        updates,
    )
    if program.accumulate == 1:
        return tx
    return optax.MultiSteps(tx, program.accumulate).gradient_transformation()


def phase_optimizer(
    program: Program, phase: Phase, trainable: tree.Tree
) -> optax.GradientTransformation:
    """Returns the optimizer whose `init` has the numbers of a phase."""
    updates = phase.steps // program.accumulate
    return transformation(program, trainable, phase.rules, updates)


def _form(rule: Rule) -> Rule:
    """Returns the part of a rule that is compiled: its other numbers are values of the
    state."""
    clip = None if rule.clip_norm is None else 1.0
    return Rule(
        1.0,
        rule.direction,
        schedule=rule.schedule,
        clip_norm=clip,
        eps=rule.eps,
        clip_group=rule.clip_group,
    )

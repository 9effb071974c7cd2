"""Phases: a method is a list of them, and each becomes one compiled program."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import optax

from subtune_jax import tree
from subtune_jax.data.batches import Batch
from subtune_jax.errors import InputError, require_positive
from subtune_jax.network import Labels, Network, Stage, stages_with_batch_stats
from subtune_jax.training.optimizers import Rule, optimizer
from subtune_jax.tuning.method import Tuning
from subtune_jax.tuning.subset import subset

Multipliers = Callable[[Network, Iterable[Batch], Sequence[str]], Mapping[str, float]]


class Phase(NamedTuple):
    """What trains, by which rules, for how many steps, under which tuning.

    `rules` is one `Rule` for all groups or a dict with a rule per group.
    `multipliers(network, batches, paths) -> {path: factor}`, if given, sets the factors
    of the learning rates at the start of every epoch, from the network as it stands,
    the batches of that epoch and the trainable paths; `reset_moments` starts the
    moments anew then.
    """

    labels: Labels
    rules: Rule | Mapping[str, Rule]
    steps: int
    tuning: Tuning = subset
    multipliers: Multipliers | None = None
    reset_moments: bool = False


class Program(NamedTuple):
    """What is compiled into the step of a phase: hashable, and free of rates and data.

    Two phases with equal programs share one trace.
    """

    stages: tuple[Stage, ...]
    tuning: Tuning
    loss: Callable
    groups: tuple[tuple[str, str, int], ...]  # (trainable path, group, wave)
    rules: tuple[tuple[str, Rule], ...]
    updates: int
    accumulate: int
    batch_stats: frozenset[str]
    start: int = 0  # the first stage that a step runs; those before it are cached


def programs(
    network: Network,
    phases: Sequence[Phase],
    *,
    loss: Callable,
    norm: str = "stored",
    accumulate: int = 1,
) -> list[Program]:
    """Returns the program of every phase.

    A leaf's wave is the phase in which it began to train with the direction it has
    now. Raises `InputError` for no phase or one that trains nothing, a group without a
    rule, steps that are no multiple of `accumulate`, labels of another network, or a
    change of tuning, whose trainable trees have nothing to carry over.
    """
    require_positive(accumulate=accumulate)
    if not phases:
        raise InputError("a run needs at least one phase")
    waves: dict[str, tuple[int, str]] = {}
    made = []
    for index, phase in enumerate(phases):
        require_positive(steps=phase.steps)
        if phase.steps % accumulate:
            raise InputError(
                f"steps ({phase.steps}) must be a multiple of accumulate ({accumulate})"
            )
        if jax.tree.structure(phase.labels) != jax.tree.structure(network.params):
            raise InputError(f"the labels of phase {index} are of another network")
        if phase.tuning[:3] != phases[0].tuning[:3]:
            raise InputError(
                f"phase {index} changes the tuning: its trainable tree is another one"
            )
        groups = trainable_groups(network, phase)
        if not groups:
            raise InputError(f"phase {index} trains nothing: every leaf is frozen")
        rules = rules_by_group(phase.rules, set(groups.values()))
        waves = {
            name: _wave(waves, name, index, rules[g]) for name, g in groups.items()
        }
        made.append(
            Program(
                stages=network.stages,
                tuning=phase.tuning,
                loss=loss,
                groups=tuple((n, group, waves[n][0]) for n, group in groups.items()),
                rules=_static(rules),
                updates=_schedule_length(phase, accumulate),
                accumulate=accumulate,
                batch_stats=stages_with_batch_stats(network.stats, phase.labels, norm),
            )
        )
    return made


def trainable_groups(network: Network, phase: Phase) -> dict[str, str]:
    """Returns the group of every leaf of the phase's trainable tree, by path."""
    trainable = trainable_shapes(network, phase)
    return tree.flatten(phase.tuning.groups(trainable, phase.labels))


def trainable_shapes(network: Network, phase: Phase) -> tree.Tree:
    """Returns the shapes and dtypes of the phase's trainable tree."""

    def init(params, key):
        return phase.tuning.init(params, phase.labels, key)

    return jax.eval_shape(init, network.params, jax.random.key(0))


def _wave(
    waves: Mapping[str, tuple[int, str]], name: str, index: int, rule: Rule
) -> tuple[int, str]:
    """Returns (wave, direction): a leaf with other moments than before starts anew."""
    known = waves.get(name)
    return known if known and known[1] == rule.direction else (index, rule.direction)


def rules_by_group(
    rules: Rule | Mapping[str, Rule], groups: set[str]
) -> dict[str, Rule]:
    """Returns `{group: rule}`; raises `InputError` for a missing or surplus rule."""
    if isinstance(rules, Rule):
        return {group: rules for group in sorted(groups)}
    if set(rules) != groups:
        raise InputError(
            f"rules are given for groups {', '.join(sorted(rules))} but the trainable "
            f"leaves are in groups {', '.join(sorted(groups))}"
        )
    return dict(sorted(rules.items()))


def transformation(
    program: Program, rules: Rule | Mapping[str, Rule], trainable: tree.Tree
) -> optax.GradientTransformation:
    """Returns the optimizer of a program; only its `init` reads the rates in `rules`."""
    groups = {name: group for name, group, _ in program.groups}
    waves = {name: wave for name, _, wave in program.groups}
    made = optimizer(
        rules_by_group(rules, set(groups.values())),
        tree.map_with_path(lambda name, _: groups[name], trainable),
        tree.map_with_path(lambda name, _: waves[name], trainable),
        program.updates,
    )
    if program.accumulate == 1:
        return made
    return optax.MultiSteps(made, program.accumulate).gradient_transformation()


def _static(rules: Mapping[str, Rule]) -> tuple[tuple[str, Rule], ...]:
    return tuple((group, rule._replace(rate=1.0)) for group, rule in rules.items())


def _schedule_length(phase: Phase, accumulate: int) -> int:
    """Returns the updates of a phase, or 0 where no schedule reads them."""
    rules = [phase.rules] if isinstance(phase.rules, Rule) else phase.rules.values()
    constant = all(rule.schedule == "constant" for rule in rules)
    return 0 if constant else phase.steps // accumulate

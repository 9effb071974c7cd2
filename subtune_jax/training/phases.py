"""Phases: a method is a list of them, and each becomes one compiled program."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import optax

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive
from subtune_jax.network import Labels, Network, Stage, stages_with_batch_stats
from subtune_jax.training.optimizers import Rule, optimizer
from subtune_jax.tuning.method import Tuning
from subtune_jax.tuning.subset import subset


class Phase(NamedTuple):
    """What trains, by which rules, for how many steps, under which tuning.

    `rules` is one `Rule` for all groups or a dict with a rule per group.
    """

    labels: Labels
    rules: Rule | Mapping[str, Rule]
    steps: int
    tuning: Tuning = subset


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


def programs(
    network: Network,
    phases: Sequence[Phase],
    *,
    loss: Callable,
    norm: str = "stored",
    accumulate: int = 1,
) -> list[Program]:
    """Returns the program of every phase.

    A leaf's wave is the phase in which it began to train. Raises `InputError` for an
    empty phase, a group without a rule, or steps that are no multiple of `accumulate`.
    """
    require_positive(accumulate=accumulate)
    waves: dict[str, int] = {}
    made = []
    for index, phase in enumerate(phases):
        require_positive(steps=phase.steps)
        if phase.steps % accumulate:
            raise InputError(
                f"steps ({phase.steps}) must be a multiple of accumulate ({accumulate})"
            )
        groups = trainable_groups(network, phase)
        if not groups:
            raise InputError(f"phase {index} trains nothing: every leaf is frozen")
        waves = {name: waves.get(name, index) for name in groups}
        made.append(
            Program(
                stages=network.stages,
                tuning=phase.tuning,
                loss=loss,
                groups=tuple(
                    (name, group, waves[name]) for name, group in groups.items()
                ),
                rules=_static(rules_by_group(phase.rules, set(groups.values()))),
                updates=_schedule_length(phase, accumulate),
                accumulate=accumulate,
                batch_stats=stages_with_batch_stats(network.stats, phase.labels, norm),
            )
        )
    return made


def trainable_groups(network: Network, phase: Phase) -> dict[str, str]:
    """Returns the group of every leaf of the phase's trainable tree, by path."""
    init = partial(phase.tuning.init, labels=phase.labels, key=None)
    trainable = jax.eval_shape(lambda params: init(params), network.params)
    return tree.flatten(phase.tuning.groups(trainable, phase.labels))


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

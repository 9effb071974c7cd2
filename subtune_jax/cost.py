"""What a selection costs: FLOPs, memory and optimizer state of one step."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subtune_jax import tree
from subtune_jax.data.batches import Batch
from subtune_jax.dry_run import output_shapes
from subtune_jax.errors import InputError
from subtune_jax.flops import contraction_flops
from subtune_jax.labels import FROZEN
from subtune_jax.losses import cross_entropy, require_rows
from subtune_jax.network import Network, require_network
from subtune_jax.programs import Traces
from subtune_jax.stage_flops import stage_flops
from subtune_jax.training.optimizers import Rule
from subtune_jax.training.phases import Phase, check
from subtune_jax.training.settings import Settings, Stages
from subtune_jax.training.state import start
from subtune_jax.training.step import traced_step, train_step
from subtune_jax.tuning.method import trained_labels


class Cost(NamedTuple):
    """The cost of one training step (one micro-batch) of a phase."""

    trainable: int  # numbers that train
    forward: int  # contraction FLOPs of the forward pass
    floor: int  # least contraction FLOPs of the step, see `stage_flops`
    flops: int  # contraction FLOPs of the step as written
    compiled_flops: int  # all FLOPs of the compiled step, as XLA counts them
    temp_bytes: int  # scratch memory of the compiled step
    optimizer_bytes: int  # moments, counts and rates


def step_cost(
    network: Network,
    phase: Phase,
    batch: Batch,
    *,
    loss: Callable = cross_entropy,
    norm: Stages = "stored",
    dropout: Stages = "tuned",
    accumulate: int = 1,
) -> Cost:
    """Returns the cost of a step of the phase on a batch of this shape.

    `loss`, `norm`, `dropout` and `accumulate` as in `fit`. Nothing is run; the step is
    compiled.
    """
    require_rows(batch)
    output_shapes(network, batch.x)
    settings = Settings(loss, norm, dropout, accumulate)
    # One step is compiled, whatever it is a part of.
    phase = phase._replace(steps=max(phase.steps // accumulate, 1) * accumulate)
    (program,) = check(network, [phase], settings)
    state = jax.eval_shape(
        lambda params, stats, key: start(
            network._replace(params=params, stats=stats), phase, settings, key
        )[1],
        network.params,
        network.stats,
        jax.random.key(0),
    )
    frozen = network.params
    if program is None:
        raise InputError("what the phase trains is only known when it begins")
    given = program, state, frozen, batch
    compiled = traced_step(Traces(), *given).run.lower(*given[1:]).compile()
    labels = trained_labels(state.trainable, phase.labels)
    return Cost(
        trainable=tree.count(state.trainable),
        forward=sum(stage_flops(network, batch.x).values()),
        floor=sum(stage_flops(network, batch.x, labels).values()),
        flops=contraction_flops(
            partial(train_step, program), state, network.params, batch
        ),
        compiled_flops=int(compiled.cost_analysis()["flops"]),
        temp_bytes=compiled.memory_analysis().temp_size_in_bytes,
        optimizer_bytes=tree.nbytes(state.opt_state),
    )


def cost_table(
    network: Network,
    phases: Mapping[str, Phase],
    batch: Batch,
    *,
    loss: Callable = cross_entropy,
    norm: Stages = "stored",
    dropout: Stages = "tuned",
    accumulate: int = 1,
) -> str:
    """Returns the costs of named phases as markdown, beside full tuning and the floor.

    Where no phase is called `all`, one that tunes everything by the rules of the first
    is added. `forwards` is the step's FLOPs in units of the forward pass. The other
    arguments are those of `step_cost`.
    """
    require_network(network)
    first = next(iter(phases.values()))
    rules = first.rules if isinstance(first.rules, Rule) else [*first.rules.values()][0]
    every = jax.tree.map(
        lambda leaf: "all" if jnp.issubdtype(leaf.dtype, jnp.floating) else FROZEN,
        network.params,
    )
    phases = (
        {**phases} if "all" in phases else {**phases, "all": Phase(every, rules, 1)}
    )
    lines = [
        "| tuned | trained | GFLOP | floor | forwards | compiled GFLOP "
        "| temporary MiB | optimizer KiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, phase in phases.items():
        c = step_cost(
            network,
            phase,
            batch,
            loss=loss,
            norm=norm,
            dropout=dropout,
            accumulate=accumulate,
        )
        lines.append(
            f"| {name} | {c.trainable:,} | {c.flops / 1e9:.3f} | {c.floor / 1e9:.3f} | "
            f"{c.flops / c.forward:.2f} | {c.compiled_flops / 1e9:.3f} | "
            f"{c.temp_bytes / 2**20:.1f} | {c.optimizer_bytes / 2**10:.1f} |"
        )
    return "\n".join(lines)

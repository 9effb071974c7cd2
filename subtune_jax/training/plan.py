"""The plan of a run: what is fixed before its first step."""

from collections.abc import Sequence
from itertools import accumulate as running_total
from typing import NamedTuple

import jax
import numpy as np

from subtune_jax.data import batches
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import lengths
from subtune_jax.data.classes import named_outputs
from subtune_jax.data.inputs import require_data
from subtune_jax.errors import (
    InputError,
    require_type,
)
from subtune_jax.labels import stages_with_batch_stats
from subtune_jax.network import Network
from subtune_jax.programs import Traces
from subtune_jax.training.mesh import Placement, placement
from subtune_jax.training.phases import Phase, Program, check
from subtune_jax.training.settings import Settings, require_settings


class Plan(NamedTuple):
    """A run's phases and programs, and how its batches are made."""

    network: Network  # the base, on its devices
    phases: tuple[Phase, ...]
    settings: Settings
    ends: tuple[int, ...]  # the number of steps up to and with each phase
    per_epoch: int  # steps of a pass over the data
    data: Dataset
    sizes: np.ndarray | None  # lengths of ragged rows, which order the batches
    drop: bool
    seed: tuple[int, ...]  # of the order of examples
    key: jax.Array
    place: Placement
    traces: Traces  # of this call, which other runs of it may share

    def phase_at(self, step: int) -> int:
        """Returns the index of the phase that makes step `step` (counted from 1)."""
        return next(i for i, end in enumerate(self.ends) if step <= end)


def make_plan(
    network: Network,
    phases: Phase | Sequence[Phase],
    data: Dataset,
    *,
    key: jax.Array,
    settings: Settings = Settings(),
    traces: Traces | None = None,
) -> Plan:
    """Returns the plan of a run; raises `InputError` for a run that cannot be. traces: what
    the call has traced so far; default: nothing."""
    require_settings(settings)
    require_data(network, data, settings.loss)
    network = named_outputs(network, data)
    require_key(key)
    if not isinstance(phases, Sequence):
        raise InputError(
            f"phases must be a Phase or a list of them, got {type(phases).__name__}"
        )
    phases = (phases,) if isinstance(phases, Phase) else tuple(phases)
    require_type(Phase, **{f"phase {i}": phase for i, phase in enumerate(phases)})
    if phases and not any(phase.keeps for phase in phases):
        raise InputError("no phase keeps its epochs: the run would have no result")
    programs = check(network, phases, settings)
    # Padding would count in a batch's statistics.
    drop = settings.accumulate > 1 or any(
        _batch_stats(network, phase, program, settings)
        for phase, program in zip(phases, programs, strict=True)
    )
    place = placement() if settings.place is None else settings.place
    # Once: a base in NumPy would travel to the device again at every step.
    network = network._replace(
        params=place.whole(network.params), stats=place.whole(network.stats)
    )
    key, order = jax.random.split(key)
    return Plan(
        network=network,
        phases=phases,
        settings=settings,
        ends=tuple(running_total(phase.steps for phase in phases)),
        per_epoch=batches.steps_per_epoch(len(data.y), settings.batch_size, drop=drop),
        data=data,
        sizes=lengths(data.x),
        drop=drop,
        seed=tuple(np.asarray(jax.random.key_data(order)).tolist()),
        key=key,
        place=place,
        traces=Traces() if traces is None else traces,
    )


def _batch_stats(
    network: Network, phase: Phase, program: Program | None, settings: Settings
) -> frozenset[str]:
    """Returns the stages that normalize by the batch, of a phase that is known or not."""
    if program is not None:
        return program.batch_stats
    norm = settings.norm if phase.norm is None else phase.norm
    return stages_with_batch_stats(network.stats, phase.labels, norm)


def require_key(key: jax.Array) -> None:
    """Raises `InputError` unless this is one typed random key."""
    array = isinstance(key, jax.Array)
    kind = key.dtype if array else type(key).__name__
    typed = array and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape:
        many = f"{key.size} keys" if typed else kind
        raise InputError(f"key must be one jax.random.key(seed), got {many}")

"""The part of a network past a frozen prefix, as a network of its own."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import NamedTuple

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data.batches import Dataset
from subtune_jax.dry_run import shapes_after
from subtune_jax.errors import InputError
from subtune_jax.network import Network, UnitTable, require_network
from subtune_jax.selection.select import is_matched
from subtune_jax.stage_flops import stage_flops
from subtune_jax.training.prefix_cache import features, has_rows


def cut(
    network: Network, stop: int, *datasets: Dataset
) -> tuple[Network, tuple[Dataset, ...]]:
    """Returns the network past its first `stop` stages, and data of their activations.

    The suffix is an ordinary network: `fit`, `evaluate` and scores take it with these data
    as they take the whole network with its own. Its stages keep their keys (`first`), its
    unit tables lack the units of the prefix, and it reads no pixels or tokens. The
    prefix runs with stored statistics and without dropout. Raises `InputError` unless
    0 <= stop < number of stages.
    """
    require_network(network)
    if not (isinstance(stop, Integral) and 0 <= stop < len(network.stages)):
        raise InputError(
            f"stop must be from 0 to {len(network.stages) - 1}, which leaves a stage, got "
            f"{stop!r}"
        )
    kept = [stage.name for stage in network.stages[stop:]]
    suffix = network._replace(
        stages=network.stages[stop:],
        params={name: network.params[name] for name in kept},
        stats={name: network.stats[name] for name in kept},
        first=network.first + stop,
    )
    if stop:
        suffix = suffix._replace(units=_held(suffix), source=None)
    return suffix, tuple(
        features(network, stop, data) if stop else data for data in datasets
    )


def rejoin(network: Network, suffix: Network) -> Network:
    """Returns the network with its last stages as they are in a suffix of it."""
    require_network(network)
    require_network(suffix)
    return network._replace(
        params={**network.params, **suffix.params},
        stats={**network.stats, **suffix.stats},
    )


class Cut(NamedTuple):
    """A suffix, the data that it reads, and the FLOPs that making them took just now."""

    network: Network
    data: tuple[Dataset, ...]
    flops: int


def kept_cuts(
    network: Network, datasets: Sequence[Dataset], budget: int
) -> Callable[[int], Cut]:
    """Returns `cut` of this network and these data as a function of `stop`.

    A cut is made from the deepest one before it that is kept. Where its activations alone
    would take more than `budget` bytes, the deepest cut before it that fits is given
    instead (with stop 0: the whole network). Those used least recently go when all take
    more than the budget together.
    """
    kept: dict[int, Cut] = {}
    sizes = _sizes(network, datasets)

    def at(stop: int) -> Cut:
        stop = max(
            s for s, size in enumerate(sizes[: stop + 1]) if not s or size <= budget
        )
        if stop not in kept:
            begin = max((before for before in kept if before < stop), default=0)
            from_ = kept.get(begin, Cut(network, tuple(datasets), 0))
            suffix, data = cut(from_.network, stop - begin, *from_.data)
            kept[stop] = Cut(suffix, data, _prefix_flops(from_, stop - begin))
        now = kept.pop(stop)
        kept[stop] = now._replace(flops=0)  # last in the order of the dict: used last
        while len(kept) > 1 and sum(map(_nbytes, kept.values())) > budget:
            del kept[next(iter(kept))]
        return now

    return at


def _sizes(network: Network, datasets: Sequence[Dataset]) -> list[float]:
    """Returns the bytes of the activations of all data after each number of stages, with
    texts at the width of the longest; infinite where they cannot be kept."""
    sizes = [0.0] * len(network.stages)
    for data in datasets:
        x = data.take(np.arange(1)).x
        for i, stage in enumerate(network.stages[:-1], start=1):
            own = network.params[stage.name], network.stats[stage.name]
            x = shapes_after(stage, *own, x)
            sizes[i] += tree.nbytes(x) * len(data.y)
            if not has_rows(network, i, data):  # such activations cannot be kept
                sizes[i] = math.inf
    return sizes


def _prefix_flops(cut: Cut, stages: int) -> int:
    """Returns the forward FLOPs of a cut's first stages on all of its data."""
    names = [stage.name for stage in cut.network.stages[:stages]]
    total = 0
    for data in cut.data:
        flops = stage_flops(cut.network, data.take(np.arange(1)).x)
        total += len(data.y) * sum(flops[name] for name in names)
    return total


def _nbytes(cut: Cut) -> int:
    leaves = jax.tree.leaves([data.x for data in cut.data])
    arrays = (getattr(leaf, "values", leaf) for leaf in leaves)  # of ragged rows
    return sum(getattr(array, "nbytes", 0) for array in arrays)  # 0: read when taken


def _held(network: Network) -> UnitTable:
    """Returns the unit tables without the units of which the network has no leaf."""
    tables = {
        table: {
            unit: patterns
            for unit, patterns in units.items()
            if is_matched(network, patterns)
        }
        for table, units in network.units.items()
    }
    return {table: units for table, units in tables.items() if units}

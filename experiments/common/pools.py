"""Pools: the images that the parts of a target task are drawn from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.common.flags import Common
from subtune_jax.data.batches import Dataset
from subtune_jax.data.breeds import breeds, subpopulations
from subtune_jax.data.classes import match_classes
from subtune_jax.data.folders import folder
from subtune_jax.data.shifts import shift
from subtune_jax.data.splits import balanced_indices, split_balanced
from subtune_jax.data.task import Sealed, Task, class_group_pairs
from subtune_jax.data.tfds import images
from subtune_jax.data.vtab import vtab_1k
from subtune_jax.errors import InputError, listed
from subtune_jax.network import Network

if TYPE_CHECKING:  # its tasks are made from pools
    from experiments.common.images import Target

VTAB = {"vtab": "official", "vtab_subtuning": "subtuning"}


class Pool(NamedTuple):
    """Labelled images to draw a target from; `groups` (int[n]) if they have any."""

    data: Dataset
    groups: np.ndarray | None = None

    @property
    def pairs(self) -> np.ndarray:
        """A number for each class, or for each pair of class and group."""
        if self.groups is None:
            return self.data.y
        return class_group_pairs(self.data.y, self.groups)

    def take(self, index: np.ndarray) -> "Pool":
        """Returns the examples at `index`, their images read."""
        groups = None if self.groups is None else self.groups[index]
        return Pool(self.data.take(index), groups)


def drawn_pool(
    target: "Target",
    common: Common,
    network: Network,
    sizes: Mapping[str, int | None],
    rng: np.random.Generator,
) -> Pool:
    """Returns images enough for parts of these sizes, drawn by class, and read."""
    pool = image_pool(target, common, network)
    pool = pool._replace(data=fitting(pool.data, target, network))
    drawn = balanced_indices(pool.pairs, {"target": pool_size(sizes, pool)}, rng)
    return pool.take(drawn["target"])


def apart_task(
    target: "Target",
    common: Common,
    network: Network,
    name: str,
    rng: np.random.Generator,
) -> Task:
    """Returns the task whose test images are of a split of their own."""
    others = {part: size for part, size in target.sizes.items() if part != "test"}
    pool = drawn_pool(target, common, network, others, rng)
    data = shift(name).target(pool.data, rng)
    parts = split_balanced(data, others, rng)
    own = replace(target, split=target.test_split)
    tests = drawn_pool(own, common, network, {"test": target.test_examples}, rng)
    test = Sealed(shift(name).target(tests.data, rng))
    return Task(network, parts["train"], parts["validation"], test)


def vtab_task(target: "Target", common: Common, network: Network) -> Task:
    """Returns the task of VTAB-1k for a study that validates on folds of the training part:
    the validation part is of it."""
    size, home = _size(target, network), common.tfds_home()
    train, test = vtab_1k(target.dataset, home, VTAB[target.parts], size)
    train = fitting(train, target, network)
    test = fitting(test, target, network)
    return Task(network, train, train.take(np.arange(800, 1000)), Sealed(test))


def pool_size(sizes: Mapping[str, int | None], pool: Pool) -> int | None:
    """Returns how many images are enough to draw all parts from; `None` for all of them.

    Images are read when they are drawn, so a few of a large set are read alone.
    """
    if None in sizes.values():
        return None
    _, counts = np.unique(pool.pairs, return_counts=True)
    needed = sum(-(-size // len(counts)) for size in sizes.values() if size)
    return needed * len(counts) if needed <= counts.min() else None


def image_pool(target: "Target", common: Common, network: Network) -> Pool:
    """Returns all images of a folder or of a prepared TFDS split, none of them read."""
    size = _size(target, network)
    if Path(target.dataset).is_dir():
        pool = _folder_pool(target, size)
    else:
        home = common.tfds_home()
        data = images(target.dataset, target.split, home, size)
        pool = Pool(data)
    if target.breeds is None:
        return pool
    classes = breeds(target.breeds, target.hierarchy, target.breeds_split)
    return Pool(subpopulations(pool.data, classes, "target"))


def _size(target: "Target", network: Network) -> int | None:
    return network.source.reads.size[0] if target.resize else None


def _folder_pool(target: "Target", size: int | None) -> Pool:
    read = folder(target.dataset, size)
    if target.groups and len(read.group_names) < 2:
        raise InputError(f"{target.dataset} has no groups: expected CLASS/GROUP/FILE")
    return Pool(read.data, read.groups if target.groups else None)


def fitting(data: Dataset, target: "Target", network: Network) -> Dataset:
    """Returns the data with the labels of a kept head; raises `InputError` where the
    network cannot take them, or its head is one of other classes."""
    shape = data.x[np.arange(1)].shape[1:]
    reads = network.source.reads
    expected = (*reads.size, reads.channels)
    if shape != expected:
        raise InputError(
            f"images of {target.dataset} are {shape} (height, width, channels): the "
            f"network takes {expected}; --resize changes height and width"
        )
    if target.new_head:
        return data
    own = network.source.classes
    try:
        if own and data.classes:
            return match_classes(data, network)
    except InputError:
        pass  # said below, with the flag that helps
    raise InputError(
        f"the head of {Path(network.source.folder).name} is of {_listed(own)}, and "
        f"{target.dataset} has {_listed(data.classes)}: give --new-head for a fresh head"
    )


def _listed(names: Sequence[str]) -> str:
    return (
        f"{len(names)} classes ({listed(names)})" if names else "classes without names"
    )

"""Target tasks: a pretrained network and disjoint parts of data shifted from its source."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from experiments import digits
from experiments.cli import Common
from subtune_jax.data.batches import Data
from subtune_jax.data.breeds import BENCHMARKS, SPLITS, breeds, subpopulations
from subtune_jax.data.images import folder
from subtune_jax.data.prepared import images
from subtune_jax.data.sampling import balanced_indices
from subtune_jax.data.shifts import shift
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.evaluation.metrics import Metric, accuracy, worst_group_accuracy
from subtune_jax.models.pretrained import Pretrained, load
from subtune_jax.network import Network

DIGITS = ("contrast", "gaussian_noise", "subpopulation", "label_flip")


@dataclass(frozen=True)
class Target:
    """Flags that say what the target task is."""

    dataset: str = "digits"
    """digits (embedded), a prepared TFDS image set (cifar10, cifar10_corrupted/...), or
    a folder of images as CLASS/FILE or CLASS/GROUP/FILE."""
    split: str = "test"
    """TFDS split that target images are drawn from, e.g. test or test[:2000]."""
    shift: tuple[str, ...] | None = None
    """Shifts to run (also corruptions: jpeg_compression_5, ...); default for digits: contrast
    gaussian_noise subpopulation
    label_flip, else none (the data are shifted already)."""
    train_examples: int | None = None
    """Target images for training, balanced over classes; digits 100, else 1000 (paper)."""
    validation_examples: int = 100
    """Target images for choosing rate and epoch (100: official code)."""
    test_examples: int | None = None
    """Target images for the test; default: all that are left (official code: 900)."""
    groups: bool = False
    """For a folder with groups: balance the parts over pairs of class and group, and
    report the accuracy of the worst pair (paper: Waterbirds, CelebA)."""
    breeds: str | None = None
    """Target subclasses of a BREEDS benchmark (living17, entity30) of --dataset imagenet2012
    or another set with its labels; the weights are those of a network of the source."""
    breeds_split: str = "rand"
    """How BREEDS divides subclasses: rand, good or bad."""
    hierarchy: Path | None = None
    """Folder of the class hierarchy files of BREEDS (see the README)."""
    resize: bool = False
    """Resize images to the size that the network takes."""
    network_norm: str = "group"
    """Norm layers of the embedded network: group or batch."""

    @property
    def shifts(self) -> tuple[str, ...]:
        """The shifts to run."""
        default = DIGITS if self.dataset == "digits" else ("none",)
        return default if self.shift is None else self.shift

    @property
    def sizes(self) -> dict[str, int | None]:
        """The examples of each part; `None` is all that are left."""
        train = self.train_examples or (100 if self.dataset == "digits" else 1000)
        return {
            "train": train,
            "validation": self.validation_examples,
            "test": self.test_examples,
        }

    def check(self, common: Common) -> None:
        """Raises `InputError` for the first flag that cannot be."""
        for name in ("train_examples", "validation_examples", "test_examples"):
            if getattr(self, name) is not None:
                require_positive(**{name: getattr(self, name)})
        self._check_parts()
        if not self.shifts:
            raise InputError("--shift needs at least one value")
        for name in self.shifts:
            if shift(name).level == "feature" and self.dataset != "digits":
                raise InputError(
                    f"shift {name!r} changes the source task: it is for digits only"
                )
        if self.dataset == "digits" and (self.resize or self.split != "test"):
            raise InputError(
                "digits are embedded: --split and --resize are for real data"
            )
        if self.dataset != "digits" and self.network_norm != "group":
            raise InputError(
                "--network-norm is of the digits' network: weights have theirs"
            )
        if self.dataset == "digits" and (common.weights or common.data_dir):
            raise InputError(
                "digits are embedded: --weights and --data-dir name real data"
            )
        if self.dataset != "digits" and common.weights is None:
            raise InputError(
                f"data set {self.dataset!r} needs --weights: a folder or hub id"
            )

    def _check_parts(self) -> None:
        if self.groups and not Path(self.dataset).is_dir():
            raise InputError("--groups needs --dataset: a folder as CLASS/GROUP/FILE")
        if (self.breeds is None) != (self.hierarchy is None):
            raise InputError(
                "--breeds and --hierarchy are given together or not at all"
            )
        if self.breeds is not None and (self.groups or self.dataset == "digits"):
            raise InputError(
                "--breeds needs a --dataset with ImageNet labels, no --groups"
            )
        if self.breeds is not None and self.breeds not in BENCHMARKS:
            raise unknown("BREEDS benchmark", self.breeds, BENCHMARKS)
        if self.breeds_split not in SPLITS:
            raise unknown("split", self.breeds_split, SPLITS)


TargetFlags = Annotated[Target, tyro.conf.OmitArgPrefixes]


class Task(NamedTuple):
    """A network pretrained on the source, and the target's disjoint parts.

    `metrics` has what scores the validation and the test part, called `metric`; `also`
    what else the chosen network is tested on, `{name: (data, metric)}`.
    """

    network: Network
    train: Data
    validation: Data
    test: Data
    metrics: Mapping[str, Metric] = {"validation": accuracy, "test": accuracy}
    metric: str = "accuracy"
    also: Mapping[str, tuple[Data, Metric]] = {}


class Pool(NamedTuple):
    """Labelled images to draw a target from; `groups` (int[n]) if they have any."""

    data: Data
    groups: np.ndarray | None = None

    @property
    def pairs(self) -> np.ndarray:
        """A number for each class, or for each pair of class and group."""
        if self.groups is None:
            return self.data.y
        return self.data.y * (int(self.groups.max()) + 1) + self.groups

    def take(self, index: np.ndarray) -> "Pool":
        """Returns the examples at `index`."""
        groups = None if self.groups is None else self.groups[index]
        return Pool(self.data.take(index), groups)


def make_task(target: Target, common: Common, name: str, seed: int) -> Task:
    """Returns the target task of a shift; the seed draws its images, noise and parts."""
    rng = np.random.default_rng(seed)
    if target.dataset == "digits":
        network = digits.pretrained(shift(name), target.network_norm)
        pool = Pool(digits.pools()["target"])
    else:
        pretrained = load(common.weights)
        whole, network = real_images(target, common, pretrained), pretrained.network
        require_fit(whole.data, target, pretrained)
        wanted = {"target": pool_size(target, whole.pairs)}
        pool = whole.take(balanced_indices(whole.pairs, wanted, rng)["target"])
    shifted = pool._replace(data=shift(name).target(pool.data, rng))
    return parted(network, shifted, target.sizes, rng)


def parted(
    network: Network,
    pool: Pool,
    sizes: Mapping[str, int | None],
    rng: np.random.Generator,
) -> Task:
    """Returns the task with the pool's disjoint, balanced parts."""
    indices = balanced_indices(pool.pairs, sizes, rng)
    task = Task(network, **{k: pool.data.take(index) for k, index in indices.items()})
    if pool.groups is None:
        return task
    for part in task.metrics:
        lost = set(pool.pairs.tolist()) - set(pool.pairs[indices[part]].tolist())
        if lost:
            raise InputError(
                f"the {part} part has no image of {len(lost)} of the pairs of class and "
                "group, and the worst may be one of them: choose other sizes"
            )
    metrics = {
        part: worst_group_accuracy(pool.pairs[indices[part]]) for part in task.metrics
    }
    return task._replace(metrics=metrics, metric="worst-group accuracy")


def pool_size(target: Target, pairs: np.ndarray) -> int | None:
    """Returns how many images are enough to draw all parts from; `None` for all of them.

    Images are read when they are drawn, so a few of a large set are read alone.
    """
    if target.test_examples is None:
        return None
    _, counts = np.unique(pairs, return_counts=True)
    needed = sum(-(-size // len(counts)) for size in target.sizes.values())
    return needed * len(counts) if needed <= counts.min() else None


def real_images(target: Target, common: Common, pretrained: Pretrained) -> Pool:
    """Returns all images of a folder or of a prepared TFDS split, none of them read."""
    size = pretrained.size[0] if target.resize else None
    if Path(target.dataset).is_dir():
        found = folder(target.dataset, size)
        if target.groups and len(found.group_names) < 2:
            raise InputError(
                f"{target.dataset} has no groups: expected CLASS/GROUP/FILE"
            )
        pool = Pool(found.data, found.groups if target.groups else None)
    else:
        home = common.data_dir or os.environ.get("TFDS_DATA_DIR")
        if home is None:
            raise InputError(
                "give --data-dir or set TFDS_DATA_DIR: where are TFDS data sets?"
            )
        pool = Pool(images(target.dataset, target.split, home, size))
    if target.breeds is None:
        return pool
    classes = breeds(target.breeds, target.hierarchy, target.breeds_split)
    return Pool(subpopulations(pool.data, classes, "target"))


def require_fit(data: Data, target: Target, pretrained: Pretrained) -> None:
    """Raises `InputError` where the network cannot take the data."""
    found, outputs = data.x[np.arange(1)].shape[1:], int(data.y.max()) + 1
    if found != pretrained.size:
        raise InputError(
            f"images of {target.dataset} are {found} (height, width, channels): the "
            f"network takes {pretrained.size}; --resize changes height and width"
        )
    expected = pretrained.network.params["head"]["bias"].size
    if outputs != expected:
        raise InputError(
            f"{target.dataset} has {outputs} classes: the network has {expected} outputs"
        )

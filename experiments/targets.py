"""Target tasks: a pretrained network and disjoint parts of data shifted from its source."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro

from experiments import digits
from experiments.cli import Common
from subtune_jax.data.batches import Dataset, steps_per_epoch
from subtune_jax.data.breeds import BENCHMARKS, SPLITS, breeds, subpopulations
from subtune_jax.data.folders import folder
from subtune_jax.data.shifts import shift
from subtune_jax.data.splits import balanced_indices
from subtune_jax.data.tfds import class_names, images
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.head import replace_head
from subtune_jax.metrics import Metric, accuracy, worst_group_accuracy
from subtune_jax.models.load import load_pretrained
from subtune_jax.network import Network
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate

PROBE_RATE, PROBE_EPOCHS = 1e-3, 30  # of a fresh head, from zeros; our choice
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
    new_head: bool = False
    """Give the network a fresh head for the classes of --dataset, trained on the training
    part before the study begins (the rest frozen). Without it the head is kept, and
    the classes must be those that the weights' configuration names."""
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
        if self.dataset == "digits" and self.new_head:
            raise InputError("digits are embedded: their network has a head for them")
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
    train: Dataset
    validation: Dataset
    test: Dataset
    metrics: Mapping[str, Metric] = {"validation": accuracy, "test": accuracy}
    metric: str = "accuracy"
    also: Mapping[str, tuple[Dataset, Metric]] = {}


class Pool(NamedTuple):
    """Labelled images to draw a target from; `groups` (int[n]) if they have any, and the
    names of their classes."""

    data: Dataset
    groups: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    @property
    def pairs(self) -> np.ndarray:
        """A number for each class, or for each pair of class and group."""
        if self.groups is None:
            return self.data.y
        return self.data.y * (int(self.groups.max()) + 1) + self.groups

    def take(self, index: np.ndarray) -> "Pool":
        """Returns the examples at `index`."""
        groups = None if self.groups is None else self.groups[index]
        return Pool(self.data.take(index), groups, self.classes)


def make_task(target: Target, common: Common, name: str, seed: int) -> Task:
    """Returns the target task of a shift; the seed draws its images, noise and parts."""
    rng = np.random.default_rng(seed)
    if target.dataset == "digits":
        network = digits.pretrained(shift(name), target.network_norm)
        pool = Pool(digits.pools()["target"])
    else:
        network = load_pretrained(common.weights)
        whole = real_images(target, common, network)
        require_fit(whole, target, network)
        wanted = {"target": pool_size(target, whole.pairs)}
        pool = whole.take(balanced_indices(whole.pairs, wanted, rng)["target"])
    shifted = pool._replace(data=shift(name).target(pool.data, rng))
    task = parted(network, shifted, target.sizes, rng)
    return probed(task, seed) if target.new_head else task


def probed(task: Task, seed: int) -> Task:
    """Returns the task with a fresh head on its network, trained alone: all else frozen,
    the best of `PROBE_EPOCHS` epochs on validation data kept."""
    head, train = task.network.stages[-1].name, task.train
    classes = 1 + max(int(part.y.max()) for part in (train, task.validation, task.test))
    network = replace_head(task.network, classes, jax.random.key(seed))
    steps = PROBE_EPOCHS * steps_per_epoch(len(train.y), 64, drop=False)
    fitted = fit(
        network,
        Phase(select(network, {"head": [f"{head}/.*"]}), adam(PROBE_RATE), steps),
        train,
        key=jax.random.key(seed),
        validate=lambda network: evaluate(
            network, task.validation, task.metrics["validation"]
        ),
    )
    return task._replace(network=fitted.network)


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


def real_images(target: Target, common: Common, network: Network) -> Pool:
    """Returns all images of a folder or of a prepared TFDS split, none of them read."""
    size = network.source.reads.size[0] if target.resize else None
    if Path(target.dataset).is_dir():
        found = folder(target.dataset, size)
        if target.groups and len(found.group_names) < 2:
            raise InputError(
                f"{target.dataset} has no groups: expected CLASS/GROUP/FILE"
            )
        groups = found.groups if target.groups else None
        pool = Pool(found.data, groups, found.class_names)
    else:
        home = common.data_dir or os.environ.get("TFDS_DATA_DIR")
        if home is None:
            raise InputError(
                "give --data-dir or set TFDS_DATA_DIR: where are TFDS data sets?"
            )
        data = images(target.dataset, target.split, home, size)
        pool = Pool(data, None, class_names(target.dataset, home))
    if target.breeds is None:
        return pool
    classes = breeds(target.breeds, target.hierarchy, target.breeds_split)
    names = tuple(one.name for one in classes)
    return Pool(subpopulations(pool.data, classes, "target"), None, names)


def require_fit(pool: Pool, target: Target, network: Network) -> None:
    """Raises `InputError` where the network cannot take the data, or its head is one of
    other classes."""
    found = pool.data.x[np.arange(1)].shape[1:]
    reads = network.source.reads
    expected = (*reads.size, reads.channels)
    if found != expected:
        raise InputError(
            f"images of {target.dataset} are {found} (height, width, channels): the "
            f"network takes {expected}; --resize changes height and width"
        )
    if target.new_head:
        return
    told = network.source.classes
    if not told or [*map(_plain, told)] != [*map(_plain, pool.classes)]:
        raise InputError(
            f"the head of {Path(network.source.folder).name} is of {_listed(told)}, and "
            f"{target.dataset} has {_listed(pool.classes)}: give --new-head for a fresh head"
        )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().lower()


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "classes without names"
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} classes ({', '.join(names[:3])}{more})"

"""Target tasks: a pretrained network and disjoint parts of data shifted from its source."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from experiments import digits
from experiments.cli import Common
from subtune_jax.data.batches import Data
from subtune_jax.data.images import folder
from subtune_jax.data.prepared import images
from subtune_jax.data.sampling import balanced_parts
from subtune_jax.data.shifts import shift
from subtune_jax.errors import InputError, require_positive
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
        if not self.shifts:
            raise InputError("--shift needs at least one value")
        for name in self.shifts:
            if shift(name).level == "feature" and self.dataset != "digits":
                raise InputError(
                    f"shift {name!r} changes the source task: it is for digits only"
                )
        if self.dataset == "digits" and (common.weights or common.data_dir):
            raise InputError(
                "digits are embedded: --weights and --data-dir name real data"
            )
        if self.dataset != "digits" and common.weights is None:
            raise InputError(
                f"data set {self.dataset!r} needs --weights: a folder or hub id"
            )


TargetFlags = Annotated[Target, tyro.conf.OmitArgPrefixes]


class Task(NamedTuple):
    """A network pretrained on the source, and the target's disjoint parts."""

    network: Network
    train: Data
    validation: Data
    test: Data


def make_task(target: Target, common: Common, name: str, seed: int) -> Task:
    """Returns the target task of a shift; the seed draws its images, noise and parts."""
    rng = np.random.default_rng(seed)
    if target.dataset == "digits":
        network = digits.pretrained(shift(name), target.network_norm)
        pool = digits.pools()["target"]
    else:
        pretrained = load(common.weights)
        data = require_fit(real_images(target, common, pretrained), target, pretrained)
        network = pretrained.network
        pool = balanced_parts(data, {"target": pool_size(target, data)}, rng)["target"]
    shifted = shift(name).target(pool, rng)
    return Task(network, **balanced_parts(shifted, target.sizes, rng))


def pool_size(target: Target, data: Data) -> int | None:
    """Returns how many images are enough to draw all parts from; `None` for all of them.

    Images are read when they are drawn, so a few of a large set are read alone.
    """
    if target.test_examples is None:
        return None
    per_class = np.bincount(data.y)
    needed = sum(-(-size // len(per_class)) for size in target.sizes.values())
    return needed * len(per_class) if needed <= per_class.min() else None


def real_images(target: Target, common: Common, pretrained: Pretrained) -> Data:
    """Returns all images of a folder or of a prepared TFDS split."""
    size = pretrained.size[0] if target.resize else None
    if Path(target.dataset).is_dir():
        return folder(target.dataset, size).data
    home = common.data_dir or os.environ.get("TFDS_DATA_DIR")
    if home is None:
        raise InputError(
            "give --data-dir or set TFDS_DATA_DIR: where are TFDS data sets?"
        )
    return images(target.dataset, target.split, home, size)


def require_fit(data: Data, target: Target, pretrained: Pretrained) -> Data:
    """Returns the data; raises `InputError` where the network cannot take them."""
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
    return data

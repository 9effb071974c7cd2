"""The data of VTAB-1k: 1,000 training images of a set, and its whole test split."""

from pathlib import Path

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.tfds import images, split_sizes
from subtune_jax.errors import unknown

PROTOCOLS = ("official", "subtuning")
# SubTuning's four sets; those whose last 200 images are of a validation split of their own.
SETS = ("cifar100", "caltech101", "oxford_flowers102", "dmlab")
VALIDATED = ("oxford_flowers102", "dmlab")


def vtab_splits(
    name: str, sizes: dict[str, int], protocol: str = "official"
) -> tuple[str, str, str]:
    """Returns the TFDS splits of 800 and of 200 training images, and of the test.

    `official` (task_adaptation): the 200 are the first of the validation split for
    oxford_flowers102 and dmlab, else those from 90 % of the training split on. `subtuning`
    (the paper's repository): those from 80 % on, for every set. sizes: examples by split.
    Raises `InputError` for another protocol, and for sets beside SubTuning's four, whose
    official splits we have not read.
    """
    if name not in SETS:
        raise unknown("set of VTAB-1k", name, SETS)
    if protocol not in PROTOCOLS:
        raise unknown("protocol of VTAB", protocol, PROTOCOLS)
    if protocol == "official" and name in VALIDATED:
        return "train[:800]", "validation[:200]", "test"
    percent = 90 if protocol == "official" else 80
    begin = percent * sizes["train"] // 100
    return "train[:800]", f"train[{begin}:{begin + 200}]", "test"


def vtab_1k(
    name: str,
    data_dir: str | Path,
    protocol: str = "official",
    size: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Returns the 1,000 training images, read, and the test images, read when taken.

    name: that of TFDS (cifar100, caltech101, oxford_flowers102, dmlab, ...). size: to which
    images are resized. The splits: `vtab_splits`. Raises `InputError` as `images` does.
    """
    first, second, test = vtab_splits(name, split_sizes(name, data_dir), protocol)
    parts = [images(name, split, data_dir, size) for split in (first, second)]
    x = np.concatenate([part.x[:] for part in parts])
    train = parts[0]._replace(x=x, y=np.concatenate([part.y for part in parts]))
    return train, images(name, test, data_dir, size)

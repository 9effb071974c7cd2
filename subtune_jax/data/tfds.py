"""Prepared TFDS data sets, read from their folder without TensorFlow."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.folders import LazyImages
from subtune_jax.errors import InputError, nearest

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def records(
    name: str, split: str, data_dir: str | Path, **options: Any
) -> Sequence[dict[str, Any]]:
    """Returns the records of a split (`test`, `test[:2000]`), indexed at random.

    `name` is that of TFDS, with its config if it has any (`glue/rte`). `options` are
    those of `DatasetBuilder.as_data_source`. Raises `InputError` when the set is not
    in `data_dir`, is not in the `array_record` format, or has no such split.
    """
    folder = find(name, data_dir)
    import tensorflow_datasets as tfds  # a second of imports, only when used

    builder = tfds.builder_from_directory(folder)
    (part,) = re.findall(r"^\w*", split)
    if part not in builder.info.splits:
        raise InputError(
            f"{name} has no split {part!r}: expected one of "
            f"{', '.join(builder.info.splits)}"
        )
    try:
        return builder.as_data_source(split, **options)
    except NotImplementedError as error:
        raise InputError(
            f"{folder} is not in the array_record format: {error}"
        ) from None
    except ValueError:
        raise InputError(
            f"cannot read split {split!r} of {name}: expected e.g. {part} or {part}[:100]"
        ) from None


def find(name: str, data_dir: str | Path) -> Path:
    """Returns the folder of the newest prepared version of a data set."""
    home = Path(data_dir).expanduser()
    versions = sorted(
        _versions(home / name), key=lambda p: [int(n) for n in p.name.split(".")]
    )
    if versions:
        return versions[-1]
    prepared = sorted(
        {str(p.parents[1].relative_to(home)) for p in home.glob("**/dataset_info.json")}
    )
    configs = [other for other in prepared if other.startswith(f"{name}/")]
    if configs:
        raise InputError(f"{name} needs one of its configs: {', '.join(configs)}")
    raise InputError(
        f"no prepared data set {name!r} in {home} (there: "
        f"{', '.join(nearest(name, prepared)) or 'nothing'}); prepare it with "
        f"tensorflow_datasets.data_source({name!r}, data_dir={str(home)!r}) where there "
        "is a network (many sets need TensorFlow for that, not for reading: pip install "
        "tensorflow-cpu)"
    )


def _versions(folder: Path) -> list[Path]:
    folders = [p.parent for p in folder.glob("*/dataset_info.json")]
    return [p for p in folders if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]


def class_names(name: str, data_dir: str | Path) -> tuple[str, ...]:
    """Returns the names of a set's labels in their order, () where it has numbers alone.

    The builder of `cifar10_corrupted` keeps no names: its labels are those of CIFAR-10.
    """
    if name.partition("/")[0] == "cifar10_corrupted":
        return CIFAR10
    import tensorflow_datasets as tfds  # a second of imports, only when used

    builder = tfds.builder_from_directory(find(name, data_dir))
    features = builder.info.features
    label = features["label"] if "label" in features else None
    names = tuple(getattr(label, "names", None) or ())
    return () if names == tuple(map(str, range(len(names)))) else names


def split_sizes(name: str, data_dir: str | Path) -> dict[str, int]:
    """Returns the examples of every split of a prepared set."""
    import tensorflow_datasets as tfds  # a second of imports, only when used

    splits = tfds.builder_from_directory(find(name, data_dir)).info.splits
    return {part: info.num_examples for part, info in splits.items()}


def images(
    name: str, split: str, data_dir: str | Path, size: int | None = None
) -> Dataset:
    """Returns a TFDS image set: pixels are read when taken, labels are here.

    x: uint8[n, h, w, c] as `LazyImages`; y: int32[n]. Raises `InputError` as `records`
    does, and when a record has no `image` and `label`.
    """
    source = records(name, split, data_dir)
    features = list(source[0])
    if not {"image", "label"} <= set(features):
        raise InputError(
            f"{name} is not an image set: its features are {', '.join(features)}"
        )
    from tensorflow_datasets import decode

    labels = records(name, split, data_dir, decoders={"image": decode.SkipDecoding()})
    y = np.array([labels[i]["label"] for i in range(len(labels))], np.int32)
    pixels = LazyImages(lambda i: source[i]["image"], np.arange(len(y)), size)
    return Dataset(pixels, y, class_names(name, data_dir))

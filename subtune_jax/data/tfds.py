"""Prepared TFDS data sets, read from their folder without TensorFlow."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.folders import LazyImages
from subtune_jax.data.image_files import eight_bits, read_image
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
    features = _builder(name, data_dir).info.features
    label = features["label"] if "label" in features else None
    names = tuple(getattr(label, "names", None) or ())
    return () if names == tuple(map(str, range(len(names)))) else names


def _builder(name: str, data_dir: str | Path) -> Any:
    import tensorflow_datasets as tfds  # a second of imports, only when used

    return tfds.builder_from_directory(find(name, data_dir))


def split_sizes(name: str, data_dir: str | Path) -> dict[str, int]:
    """Returns the examples of every split of a prepared set."""
    splits = _builder(name, data_dir).info.splits
    return {part: info.num_examples for part, info in splits.items()}


def images(
    name: str, split: str, data_dir: str | Path, size: int | None = None
) -> Dataset:
    """Returns a TFDS image set: pixels are read when taken, labels are here.

    x: uint8[n, h, w, c] as `LazyImages`, scaled as `image_files.eight_bits` says; y:
    int32[n]. Raises `InputError` as `records` does, when a record has no `image` and
    `label`, and where labels are not one class of an example.
    """
    _require_images(name, data_dir)
    import tensorflow_datasets as tfds  # a second of imports, only when used

    skip = {"image": tfds.decode.SkipDecoding()}
    source = records(name, split, data_dir)
    stored = records(name, split, data_dir, decoders=skip)
    y = _classes([stored[i]["label"] for i in range(len(stored))], name, split)
    feature = _builder(name, data_dir).info.features["image"]

    def read(i: int) -> np.ndarray:
        if feature.np_dtype == np.uint16:  # which TFDS decodes with OpenCV alone
            file = io.BytesIO(stored[i]["image"])
            channels = 1 if feature.shape[-1] == 1 else 3  # alpha is left out
            return read_image(file, channels, f"image {i} of {name}")
        return eight_bits(source[i]["image"])

    pixels = LazyImages(read, np.arange(len(y)), size)
    return Dataset(pixels, y, class_names(name, data_dir))


def _require_images(name: str, data_dir: str | Path) -> None:
    """Raises `InputError` unless a set has the features `image`, one each, and `label`."""
    import tensorflow_datasets as tfds  # a second of imports, only when used

    features = _builder(name, data_dir).info.features
    names = list(features.keys()) if hasattr(features, "keys") else []
    if not {"image", "label"} <= set(names):
        raise InputError(
            f"{name} is not an image set: its features are {', '.join(names) or 'unnamed'}"
        )
    if not isinstance(features["image"], tfds.features.Image):
        raise InputError(
            f"the feature 'image' of {name} is no single image but a "
            f"{type(features['image']).__name__}"
        )


def _classes(labels: Sequence[Any], name: str, split: str) -> np.ndarray:
    """Returns int32[n]; raises `InputError` for labels that are not one class each."""
    kinds = {np.asarray(label).dtype.kind for label in labels}
    if any(np.ndim(label) for label in labels) or not kinds <= set("iub"):
        first = np.asarray(labels[0])
        raise InputError(
            f"the labels of {name} are {first.dtype}{list(first.shape)}: expected one class, "
            "a whole number, for each example"
        )
    y = np.array(labels, np.int32)
    if len(y) and y.min() < 0:
        raise InputError(
            f"{(y < 0).sum()} of the {len(y)} labels in split {split!r} of {name} are below "
            "0: sets hide labels so; name a split that has them"
        )
    return y

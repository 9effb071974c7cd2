"""Folders of images, read where they are taken."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from subtune_jax.data.batches import Dataset
from subtune_jax.data.crops import resized
from subtune_jax.errors import InputError

# What Pillow raises for files that are no images, damaged or too large.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class LazyImages:
    """Images as an array that is read where it is indexed.

    `images[index]` with an integer array or a slice returns uint8[n, h, w, c]: `read(i)`
    for the rows i, resized to `size` pixels a side if that is given.
    """

    read: Callable[[int], np.ndarray]
    rows: np.ndarray
    size: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        images = [resized(self.read(int(i)), self.size) for i in self.rows[index]]
        if len({image.shape for image in images}) > 1:
            raise InputError("images of this set differ in size: they need resizing")
        return np.stack(images)

    def only(self, index: np.ndarray) -> "LazyImages":
        """Returns these rows alone; none is read."""
        return replace(self, rows=self.rows[index])


class Folder(NamedTuple):
    """Labelled images; `groups` is int32[n], an index into `group_names` (or all 0)."""

    data: Dataset
    groups: np.ndarray
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]


def folder(root: str | Path, size: int | None = None) -> Folder:
    """Returns the images of `root/CLASS/*.png` or `root/CLASS/GROUP/*.png` (or jpg, bmp,
    webp) as RGB, read when they are taken.

    Classes and groups are numbered in alphabetical order. Raises `InputError` when
    there are no images, a file is none, or they differ in size and no `size` is given.
    """
    root = Path(root)
    files = sorted(p for p in root.glob("**/*") if p.suffix.lower() in SUFFIXES)
    parts = [file.relative_to(root).parts[:-1] for file in files]
    depths = {len(part) for part in parts}
    if depths not in ({1}, {2}):
        raise InputError(f"expected images in {root} as CLASS/FILE or CLASS/GROUP/FILE")
    sizes = {_size(file) for file in files}
    if len(sizes) > 1 and size is None:
        raise InputError(
            f"images in {root} differ in size ({len(sizes)} sizes): give a size"
        )
    classes, y = _numbered([part[0] for part in parts])
    names, groups = _numbered([part[1] if len(part) > 1 else "" for part in parts])
    pixels = LazyImages(lambda i: read_image(files[i]), np.arange(len(files)), size)
    return Folder(Dataset(pixels, y), groups, classes, names)


def _numbered(names: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    distinct, numbers = np.unique(names, return_inverse=True)
    return tuple(distinct.tolist()), numbers.astype(np.int32)


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as picture:  # the header alone
            return picture.size
    except UNREADABLE as error:
        raise InputError(f"{file} is not a readable image: {error}") from None


def read_image(file: str | Path, channels: int = 3) -> np.ndarray:
    """Returns uint8[height, width, channels] of a file: RGB, or with one channel grey.

    Raises `InputError` for what is no image, damaged, or too large for Pillow."""
    try:
        pixels = np.asarray(Image.open(file).convert("RGB" if channels == 3 else "L"))
    except UNREADABLE as error:
        raise InputError(f"{file} is not a readable image: {error}") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]

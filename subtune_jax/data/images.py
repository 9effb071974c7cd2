"""Images as uint8 arrays: resizing, random crops and flips, folders of files."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from subtune_jax.data.batches import Data
from subtune_jax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def resized(image: np.ndarray, size: int | None) -> np.ndarray:
    """Returns uint8[size, size, c], bilinear with antialiasing; unchanged for `None`."""
    if size is None or image.shape[:2] == (size, size):
        return image
    single = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if single else image)
    made = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    return made[..., None] if single else made


def crop_and_flip(padding: int = 4) -> Callable:
    """Returns the augmentation of CIFAR: a random crop of the zero-padded image, and a
    left-right flip of every second one; `augment(images, rng)` on uint8[n, h, w, c]."""

    def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n, height, width, _ = images.shape
        around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        padded = np.pad(images, around)
        corners = rng.integers(0, 2 * padding + 1, (n, 2))
        flips = rng.random(n) < 0.5
        crops = [
            image[top : top + height, left : left + width]
            for image, (top, left) in zip(padded, corners, strict=True)
        ]
        return np.stack(
            [c[:, ::-1] if f else c for c, f in zip(crops, flips, strict=True)]
        )

    return augment


class Folder(NamedTuple):
    """Labelled images; `groups` is int32[n], an index into `group_names` (or all 0)."""

    data: Data
    groups: np.ndarray
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]


def folder(root: str | Path, size: int | None = None) -> Folder:
    """Reads `root/CLASS/*.png` or `root/CLASS/GROUP/*.png` (or jpg, bmp, webp) as RGB.

    Classes and groups are numbered in alphabetical order. Raises `InputError` when
    there are no images, or they differ in size and no `size` is given.
    """
    root = Path(root)
    files = sorted(p for p in root.glob("**/*") if p.suffix.lower() in SUFFIXES)
    parts = [file.relative_to(root).parts[:-1] for file in files]
    if not files or any(len(part) not in (1, 2) for part in parts):
        raise InputError(f"expected images in {root} as CLASS/FILE or CLASS/GROUP/FILE")
    classes = tuple(sorted({part[0] for part in parts}))
    groups = tuple(sorted({part[1] if len(part) > 1 else "" for part in parts}))
    pixels = [_read(file, size) for file in files]
    shapes = {image.shape for image in pixels}
    if len(shapes) > 1:
        raise InputError(
            f"images in {root} differ in size ({len(shapes)} sizes): give a size"
        )
    y = np.array([classes.index(part[0]) for part in parts], np.int32)
    g = np.array(
        [groups.index(part[1] if len(part) > 1 else "") for part in parts], np.int32
    )
    return Folder(Data(np.stack(pixels), y), g, classes, groups)


def _read(file: Path, size: int | None) -> np.ndarray:
    try:
        return resized(np.asarray(Image.open(file).convert("RGB")), size)
    except OSError as error:
        raise InputError(f"{file} is no readable image: {error}") from None

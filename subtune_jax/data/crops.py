"""Images as uint8 arrays: resizing, random crops and flips."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from subtune_jax.errors import InputError

TRIES = 10  # boxes that are drawn before the central one is taken (torchvision)


def resized(image: np.ndarray, size: int | None) -> np.ndarray:
    """Returns uint8[size, size, c], bilinear with antialiasing; unchanged for `None`."""
    if size is None or image.shape[:2] == (size, size):
        return image
    single = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if single else image)
    scaled = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    return scaled[..., None] if single else scaled


def crop_and_flip(padding: int = 4) -> Callable:
    """Returns the augmentation of CIFAR: a random crop of the zero-padded image, and a
    left-right flip of every second one; `augment(images, rng)` on uint8[n, h, w, c]."""

    def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n, height, width, _ = images.shape
        around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        padded = np.pad(images, around)
        corners = rng.integers(0, 2 * padding + 1, (n, 2))
        flips = np.less(rng.random(n), 0.5)
        crops = [
            image[top : top + height, left : left + width]
            for image, (top, left) in zip(padded, corners, strict=True)
        ]
        return np.stack(
            [crop[:, ::-1] if flips[i] else crop for i, crop in enumerate(crops)]
        )

    return augment


def resized_crop_and_flip(
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Callable:
    """Returns the augmentation of ImageNet: a random box of the image, resized to the
    whole, and a left-right flip of every second one; `augment(images, rng)` on uint8[n, h,
    w, c].

    scale: the box's share of the area. ratio: its width over its height, drawn evenly in
    logarithm. As torchvision's RandomResizedCrop and SubTuning's training images, but that
    the box is of the image at the network's size. Raises `InputError` for an empty range.
    """
    for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
        if not 0 < low <= high:
            raise InputError(f"{name} must rise from above 0, got {(low, high)}")

    def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flips = np.less(rng.random(len(images)), 0.5)
        crops = [
            _boxed(image, *_box(image.shape, scale, ratio, rng)) for image in images
        ]
        return np.stack([c[:, ::-1] if flips[i] else c for i, c in enumerate(crops)])

    return augment


def _boxed(image: np.ndarray, top: int, left: int, tall: int, wide: int) -> np.ndarray:
    """Returns a box of an image, resized to its height and width."""
    height, width, channels = image.shape
    single = image[..., 0] if channels == 1 else image
    box = (left, top, left + wide, top + tall)
    picture = Image.fromarray(single).resize(
        (width, height), Image.Resampling.BILINEAR, box
    )
    return np.asarray(picture).reshape(image.shape)


def _box(
    shape: tuple[int, ...],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Returns the top, left, height and width of a random box, or of the central one that
    has a ratio in the range where ten drawn boxes do not fit."""
    height, width = shape[:2]
    for _ in range(TRIES):
        area = rng.uniform(*scale) * height * width
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        wide, tall = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(rng.integers(0, height - tall + 1))
            return top, int(rng.integers(0, width - wide + 1)), tall, wide
    wide = min(width, round(height * ratio[1]))
    tall = min(height, round(width / ratio[0]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide

"""Common image corruptions at five severities, for arrays of any size.

The formulas and CIFAR constants of Hendrycks and Dietterich 2019 (ImageNet-C's
`make_cifar_c.py`, github.com/hendrycks/robustness), in NumPy, SciPy and Pillow. Each is
`f(image, c, rng) -> image` on float64[h, w, channels] in [0, 1]; names are those of
TFDS's `cifar10_corrupted`. Written so far are the 13 below; motion blur, elastic, fog,
frost, snow and spatter are not.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from subtune_jax.errors import InputError, unknown


def gaussian_noise(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """x + N(0, c^2)."""
    return x + rng.normal(0, c, x.shape)


def shot_noise(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson(c x) / c."""
    return rng.poisson(x * c) / c


def impulse_noise(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """A share c of all values becomes 0 or 1, with equal chance."""
    hit, salt = rng.random(x.shape) < c, rng.random(x.shape) < 0.5
    return np.where(hit, salt.astype(float), x)


def speckle_noise(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """x + x N(0, c^2)."""
    return x + x * rng.normal(0, c, x.shape)


def gaussian_blur(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of sigma c pixels, edges repeated."""
    return ndimage.gaussian_filter(x, (c, c, 0), mode="nearest")


def frosted_glass_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Blur, move each pixel to a neighbor's place, blur; c = (sigma, reach, passes).

    As the original: its swap acts on views of one array, so it copies one way.
    """
    sigma, reach, passes = c
    x = np.uint8(gaussian_blur(x, sigma, rng) * 255)
    height, width = x.shape[:2]
    for _ in range(passes):
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                dx, dy = rng.integers(-reach, reach, 2)
                x[h, w] = x[h + dy, w + dx]
    return gaussian_blur(x / 255, sigma, rng)


def defocus_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """A disk of radius c[0], itself blurred by a 3 x 3 Gaussian of sigma c[1]."""
    radius, alias = c
    size = np.arange(-8, 9)
    disk = (size[:, None] ** 2 + size**2 <= radius**2).astype(float)
    taps = np.exp(-np.square([-1, 0, 1]) / (2 * alias**2))
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(taps, taps) / taps.sum() ** 2)
    return ndimage.convolve(x, kernel[..., None], mode="mirror")


def zoom_blur(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and its zooms by 1, 1.01, ... below c."""
    zooms = [_zoomed(x, factor) for factor in np.arange(1, c, 0.01)]
    return (x + sum(zooms)) / (len(zooms) + 1)


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    size = x.shape[0]
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    inner = x[top : top + crop, top : top + crop]
    made = ndimage.zoom(inner, (factor, factor, 1), order=1)
    trim = (made.shape[0] - size) // 2
    return made[trim : trim + size, trim : trim + size]


def contrast(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """mean + c (x - mean), mean per channel."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * c + mean


def brightness(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """The value of HSV plus c."""
    hue, saturation, value = _to_hsv(x)
    return _to_rgb(hue, saturation, np.clip(value + c, 0, 1))


def saturate(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """The saturation of HSV times c[0] plus c[1]."""
    hue, saturation, value = _to_hsv(x)
    return _to_rgb(hue, np.clip(saturation * c[0] + c[1], 0, 1), value)


def jpeg_compression(x: np.ndarray, c: int, rng: np.random.Generator) -> np.ndarray:
    """JPEG of quality c, by Pillow."""
    file = BytesIO()
    _picture(x).save(file, "JPEG", quality=c)
    return _pixels(Image.open(file), x)


def pixelate(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """Box-resized to a share c of its size and back."""
    height, width = x.shape[:2]
    small = _picture(x).resize((int(width * c), int(height * c)), Image.Resampling.BOX)
    return _pixels(small.resize((width, height), Image.Resampling.BOX), x)


def _picture(x: np.ndarray) -> Image.Image:
    image = np.round(x * 255).astype(np.uint8)
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _pixels(picture: Image.Image, like: np.ndarray) -> np.ndarray:
    return np.asarray(picture, float).reshape(like.shape) / 255


def _to_hsv(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if x.shape[-1] != 3:
        raise InputError(
            f"this corruption needs 3 channels, the image has {x.shape[-1]}"
        )
    value, spread = x.max(-1), np.ptp(x, -1)
    safe = np.where(spread > 0, spread, 1)
    r, g, b = np.moveaxis(x, -1, 0)
    by_max = [(g - b) / safe % 6, (b - r) / safe + 2, (r - g) / safe + 4]
    hue = np.choose(x.argmax(-1), by_max) / 6
    return np.where(spread > 0, hue, 0), spread / np.where(value > 0, value, 1), value


def _to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    def channel(n: int) -> np.ndarray:
        k = (n + hue * 6) % 6
        return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)

    return np.stack([channel(n) for n in (5, 3, 1)], axis=-1)


class Corruption(NamedTuple):
    """A corruption and its constant for each of the severities 1 to 5."""

    apply: Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]
    constants: tuple


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": Corruption(speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "frosted_glass_blur": Corruption(
        frosted_glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "defocus_blur": Corruption(
        defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    ),
    "zoom_blur": Corruption(zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "saturate": Corruption(
        saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
    ),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40)),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
}


def corrupt(
    images: np.ndarray, name: str, severity: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns uint8[n, h, w, c] corrupted, cut to integers as the original does.

    Raises `InputError` for an unknown name, a severity that is not 1 to 5, and where
    color is needed and the images have none.
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in range(1, 6):
        raise InputError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    apply, constants = CORRUPTIONS[name]
    made = (apply(image / 255, constants[severity - 1], rng) for image in images)
    return np.stack([np.uint8(np.clip(x, 0, 1) * 255) for x in made])

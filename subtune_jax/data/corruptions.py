"""Common image corruptions at five severities, for arrays of any size.

The formulas and CIFAR constants of Hendrycks and Dietterich 2019 (ImageNet-C's
`make_cifar_c.py`, github.com/hendrycks/robustness), in NumPy, SciPy and Pillow. Each is
`f(image, c, rng) -> image` on float64[h, w, channels] in [0, 1]; names are those of
TFDS's `cifar10_corrupted`. Frost differs: its photographs are a generated texture here
(see `weather`).
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from subtune_jax.data.blurs import (
    defocus_blur,
    frosted_glass_blur,
    gaussian_blur,
    motion_blur,
    zoom_blur,
)
from subtune_jax.data.weather import fog, frost, snow, spatter
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


def contrast(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """mean + c (x - mean), mean per channel."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * c + mean


def brightness(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """The value of HSV plus c; of a gray image, its level."""
    if x.shape[-1] == 1:
        return x + c
    hue, saturation, value = _to_hsv(x)
    return _to_rgb(hue, saturation, np.clip(value + c, 0, 1))


def saturate(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """The saturation of HSV times c[0] plus c[1]; a gray image has none and stays."""
    if x.shape[-1] == 1:
        return x
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
    size = max(1, int(width * c)), max(1, int(height * c))
    small = _picture(x).resize(size, Image.Resampling.BOX)
    return _pixels(small.resize((width, height), Image.Resampling.BOX), x)


def elastic(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Moves three points at random by up to c[2], and then every pixel smoothly: by
    c[0] times uniform noise blurred by c[1]. In shares of the smaller side."""
    size = min(x.shape[:2])
    amount, sigma, reach = (size * share for share in c)
    x = _affine(x, reach, rng)
    noise = rng.uniform(-1, 1, (2, *x.shape[:2]))
    smooth = (0, sigma, sigma)
    offsets = amount * ndimage.gaussian_filter(
        noise, smooth, mode="reflect", truncate=3
    )
    places = np.indices(x.shape[:2]) + offsets
    return _sampled(x, places, "reflect")


def _affine(x: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Moves three points around the center at random; what is outside is mirrored."""
    middle, side = np.array(x.shape[:2]) // 2, min(x.shape[:2]) // 3
    old = middle + side * np.array([[1, 1], [-1, 1], [-1, -1]])
    new = old + rng.uniform(-reach, reach, old.shape)
    back = np.linalg.solve(np.c_[new, np.ones(3)], old)  # [new 1] back = old
    places = np.indices(x.shape[:2])
    moved = np.einsum("rhw,rk->khw", places, back[:2]) + back[2][:, None, None]
    return _sampled(x, moved, "mirror")


def _sampled(x: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
    channels = np.moveaxis(x, -1, 0)
    made = [ndimage.map_coordinates(c, places, order=1, mode=mode) for c in channels]
    return np.stack(made, axis=-1)


def _picture(x: np.ndarray) -> Image.Image:
    image = np.round(x * 255).astype(np.uint8)
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _pixels(picture: Image.Image, like: np.ndarray) -> np.ndarray:
    return np.asarray(picture, float).reshape(like.shape) / 255


def _to_hsv(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    "motion_blur": Corruption(
        motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
    ),
    "zoom_blur": Corruption(zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "fog": Corruption(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "frost": Corruption(
        frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    ),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "spatter": Corruption(
        spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    ),
    "elastic": Corruption(
        elastic,
        (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    ),
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
    """Returns uint8[n, h, w, 1 or 3] corrupted, cut to integers as the original does.

    Raises `InputError` for an unknown name, a severity that is not 1 to 5, and images
    of another form.
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if not isinstance(severity, int) or severity not in range(1, 6):
        raise InputError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    images = images[:]  # those that are read when taken are read here
    form = f"{images.dtype}{list(images.shape)}"
    right = images.ndim == 4 and images.shape[-1] in (1, 3) and images.size
    if images.dtype != np.uint8 or not right:
        raise InputError(f"images must be uint8[n, height, width, 1 or 3], got {form}")
    apply, constants = CORRUPTIONS[name]
    made = (apply(image / 255, constants[severity - 1], rng) for image in images)
    return np.stack([np.uint8(np.clip(x, 0, 1) * 255) for x in made])

"""Common image corruptions at five severities, for arrays of any size.

The formulas and CIFAR constants of Hendrycks and Dietterich 2019 (ImageNet-C's
`make_cifar_c.py`, github.com/hendrycks/robustness), in NumPy, SciPy and Pillow. Each is
`f(image, c, rng) -> image` on float64[h, w, channels] in [0, 1]; names are those of
TFDS's `cifar10_corrupted`. Frost differs: its photographs are a generated texture here
(see `weather`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from subtune_jax.data.corruptions.blur import (
    defocus_blur,
    frosted_glass_blur,
    gaussian_blur,
    motion_blur,
    zoom_blur,
)
from subtune_jax.data.corruptions.digital import (
    brightness,
    contrast,
    elastic,
    jpeg_compression,
    pixelate,
    saturate,
)
from subtune_jax.data.corruptions.noise import (
    gaussian_noise,
    impulse_noise,
    shot_noise,
    speckle_noise,
)
from subtune_jax.data.corruptions.weather import fog, frost, snow, spatter
from subtune_jax.errors import InputError, unknown


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

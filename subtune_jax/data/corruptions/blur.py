"""Blurs among the common corruptions; see `corruptions` for sources and constants."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def gaussian_blur(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of sigma c pixels, edges repeated."""
    return ndimage.gaussian_filter(x, (c, c, 0), mode="nearest")


def frosted_glass_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Blur, move each pixel to a neighbor's place, blur; c = (sigma, reach, passes).

    As the original: its swap acts on views of one array, so it copies one way.
    """
    sigma, reach, passes = c
    x = (gaussian_blur(x, sigma, rng) * 255).astype(np.uint8)
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


def motion_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """One-sided Gaussian along a random angle of -45 to 45 degrees; c = (radius, sigma)."""
    radius, sigma = c
    return moved(x, radius, sigma, rng.uniform(-45, 45))


def moved(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Returns sum_i k_i x(pixel + i (sin, cos)(angle)), i = 0..2 radius, k_i ~ N(0, sigma).

    What ImageMagick's MotionBlurImage computes (recalled); edges repeated.
    """
    taps = np.exp(-np.square(np.arange(2 * radius + 1)) / (2 * sigma**2))
    turn = np.deg2rad(angle)
    rows, columns = (np.arange(n) for n in x.shape[:2])
    smeared = np.zeros_like(x)
    for i, tap in enumerate(taps / taps.sum()):
        down, right = (int(np.ceil(i * f(turn) - 0.5)) for f in (np.sin, np.cos))
        below = np.clip(rows + down, 0, len(rows) - 1)
        beside = np.clip(columns + right, 0, len(columns) - 1)
        smeared += tap * x[np.ix_(below, beside)]
    return smeared


def zoom_blur(x: np.ndarray, c: float, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and its zooms by 1, 1.01, ... below c."""
    zooms = [zoomed(x, factor) for factor in np.arange(1, c, 0.01)]
    return (x + sum(zooms)) / (len(zooms) + 1)


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Returns the middle of the image, enlarged to its size by linear interpolation."""
    crop = [int(np.ceil(n / factor)) for n in x.shape[:2]]
    inner = x[_middle(x.shape, crop)]
    larger = ndimage.zoom(inner, (factor, factor, 1), order=1)
    return larger[_middle(larger.shape, x.shape)]


def _middle(shape: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    begins = [(n - m) // 2 for n, m in zip(shape[:2], size[:2], strict=True)]
    return tuple(slice(b, b + m) for b, m in zip(begins, size[:2], strict=True))

"""Fog, frost, snow and spatter among the common corruptions.

See `corruptions` for sources and constants. What the original takes from OpenCV and
ImageMagick is computed here with SciPy.
"""

import numpy as np
from scipy import ndimage

from subtune_jax.data.corruptions.blur import moved, zoomed

LUMA = np.array([0.299, 0.587, 0.114])
WATER, MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
# Mean colors of the original's five frost photographs (two are one picture), and the
# standard deviation within their crops; measured.
FROSTS = (
    np.array(
        [
            [78, 149, 166],
            [201, 205, 214],
            [201, 205, 214],
            [138, 153, 165],
            [112, 123, 135],
        ]
    )
    / 255
)
FROST_SPREAD = 17 / 255


def fog(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """(x + c[0] plasma) m / (m + c[0]), m the image's maximum; c[1] the decay."""
    height, width = x.shape[:2]
    haze = plasma(1 << (max(height, width) - 1).bit_length(), c[1], rng)
    brightest = x.max()
    thick = x + c[0] * haze[:height, :width, None]
    return thick * brightest / (brightest + c[0])


def plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a fractal of [size, size] in 0..1, on a torus, by diamond and square.

    `size` is a power of two; the noise of a level is uniform in +-w^2 with w = 100,
    divided by `decay` from level to level, as in the original.
    """
    heights, step, w = np.zeros((size, size)), size, 100.0

    def mean(total: np.ndarray) -> np.ndarray:
        return total / 4 + w * rng.uniform(-w, w, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = mean(pairs + np.roll(pairs, -1, axis=1))
        centers = heights[half::step, half::step]
        beside = corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = mean(
            centers + np.roll(centers, 1, axis=0) + beside
        )
        below = corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = mean(
            centers + np.roll(centers, 1, axis=1) + below
        )
        step, w = half, w / decay
    heights -= heights.min()
    return heights / max(heights.max(), 1e-12)


def frost(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """c[0] x + c[1] ice. The ice is generated: the original crops photographs."""
    height, width, channels = x.shape
    return c[0] * x + c[1] * _ice(height, width, channels, rng)


def _ice(
    height: int, width: int, channels: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns a texture with the color, spread and spectrum (power ~ f^-1.2) of frost."""
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    f[0, 0] = np.inf
    waves = np.fft.fft2(rng.normal(size=(height, width))) / f**0.6
    texture = np.fft.ifft2(waves).real
    texture *= FROST_SPREAD / max(texture.std(), 1e-12)
    color = _tint(FROSTS[rng.integers(len(FROSTS))], channels)
    return np.clip(color + texture[..., None], 0, 1)


def snow(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Whitens the image and adds moving flakes, and the same upside down.

    Flakes: N(c[0], c[1]^2), zoomed by c[2], what is below c[3] gone, blurred along an
    angle of -135 to -45 degrees (radius c[4], sigma c[5]). c[6]: how much image stays.
    """
    flakes = zoomed(rng.normal(c[0], c[1], (*x.shape[:2], 1)), c[2])
    flakes = np.floor(np.clip(np.where(flakes < c[3], 0, flakes), 0, 1) * 255) / 255
    flakes = moved(flakes, c[4], c[5], rng.uniform(-135, -45))
    gray = (x @ LUMA)[..., None] if x.shape[-1] == 3 else x
    x = c[6] * x + (1 - c[6]) * np.maximum(x, gray * 1.5 + 0.5)
    return x + flakes + np.rot90(flakes, k=2)


def spatter(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Drops of water (c[5] 0) or mud (1) where smooth noise is above c[3].

    Noise: N(c[0], c[1]^2) blurred by c[2]. c[4]: the water's brightness, or the blur
    of the mud's rims.
    """
    noise = rng.normal(c[0], c[1], x.shape[:2])
    liquid = ndimage.gaussian_filter(noise, c[2], mode="nearest")
    liquid[liquid < c[3]] = 0
    if c[5]:
        mask = (liquid > c[3]).astype(float)
        mask = ndimage.gaussian_filter(mask, c[4], mode="nearest")[..., None]
        mask[mask < 0.8] = 0
        return x * (1 - mask) + mask * _tint(MUD, x.shape[-1])
    gloss = _gloss((np.clip(liquid, 0, 1) * 255).astype(np.uint8))
    drops = c[4] * gloss / max(gloss.max(), 1e-12)
    return x + drops[..., None] * _tint(WATER, x.shape[-1])


def _gloss(liquid: np.ndarray) -> np.ndarray:
    """Returns the light on drops: their height times a relief of the distance to rims."""
    rims = _rims(liquid, 50, 150)
    far = (
        ndimage.distance_transform_edt(~rims) if rims.any() else np.full(rims.shape, 20)
    )
    near = ndimage.uniform_filter(np.minimum(far, 20.0), 3, mode="mirror")
    relief = [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]
    light = ndimage.correlate(_equalized(near.astype(np.uint8)), relief, mode="mirror")
    return liquid * ndimage.uniform_filter(np.clip(light, 0, 255), 3, mode="mirror")


def _rims(gray: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns Canny's edges: ridges of the gradient above `low` that touch one above
    `high`; the gradient's size is |dx| + |dy|, by Sobel's filter."""
    dy, dx = (
        ndimage.sobel(gray.astype(float), axis, mode="nearest") for axis in (0, 1)
    )
    size = np.abs(dx) + np.abs(dy)
    ways = np.round(np.arctan2(dy, dx) / (np.pi / 4)).astype(int) % 4
    around = np.pad(size, 1)
    height, width = size.shape

    def beside(down: int, right: int) -> np.ndarray:
        return around[1 + down :, 1 + right :][:height, :width]

    ridge = np.zeros(size.shape, bool)
    for way, (down, right) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        top = (size > beside(-down, -right)) & (size >= beside(down, right))
        ridge |= (ways == way) & top
    regions, _ = ndimage.label(ridge & (size > low), np.ones((3, 3)))
    strong = np.unique(regions[ridge & (size > high)])
    return np.isin(regions, strong[strong > 0])


def _equalized(gray: np.ndarray) -> np.ndarray:
    """Returns uint8 levels spread evenly over 0..255 by their cumulative histogram."""
    counts = np.bincount(gray.ravel(), minlength=256)
    first = counts[gray.min()]
    if first == gray.size:
        return gray.astype(float)
    below = np.cumsum(counts) - first
    return np.round(below * 255 / (gray.size - first))[gray]


def _tint(color: np.ndarray, channels: int) -> np.ndarray:
    return color if channels == 3 else np.full(channels, color @ LUMA)

"""Digital corruptions: color, compression, resolution and elastic deformation."""

from io import BytesIO

import numpy as np
from PIL import Image
from scipy import ndimage


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

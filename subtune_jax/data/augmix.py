"""AugMix copies of an image: mixtures of short chains of mild changes.

Hendrycks et al. 2020, with the operations, strengths and random crops of MEMO's code
(github.com/zhangmarvin/memo, `utils/third_party.py`). Two
differences: new corners are gray in every channel, and copies are rounded to uint8.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from subtune_jax.data.crops import crop_and_flip
from subtune_jax.errors import InputError, require_positive

GRAY = 128
Operation = Callable[[Image.Image, np.random.Generator], Image.Image]


def augmix_copies(
    image: np.ndarray, copies: int, rng: np.random.Generator, *, chains: int = 3
) -> np.ndarray:
    """Returns uint8[copies, h, w, c]: m x + (1 - m) sum_i w_i chain_i(x).

    x is a random crop (padded by an eighth), flipped every second time; w is Dirichlet,
    m uniform, and a chain has 1 to 3 random operations. Raises `InputError`
    unless the image is uint8[h, w, 1 or 3].
    """
    require_positive(copies=copies, chains=chains)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise InputError(
            "AugMix takes uint8 images of [height, width, 1 or 3], got "
            f"{image.dtype}{list(image.shape)}"
        )
    padding = max(1, image.shape[0] // 8)
    views = crop_and_flip(padding)(np.repeat(image[None], copies, axis=0), rng)
    return np.stack([_mixed(view, chains, rng) for view in views])


def _mixed(x: np.ndarray, chains: int, rng: np.random.Generator) -> np.ndarray:
    weights, m = rng.dirichlet(np.ones(chains)), rng.beta(1, 1)
    mix = sum(w * _chain(x, rng) for w in weights)
    return np.round(m * x + (1 - m) * mix).astype(np.uint8)


def _chain(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
    for index in rng.integers(len(OPERATIONS), size=rng.integers(1, 4)):
        picture = OPERATIONS[index](picture, rng)
    return np.asarray(picture).reshape(x.shape)


def _level(rng: np.random.Generator, most: float) -> float:
    """Returns a strength between 1 and 10 % of `most`: level 1 of AugMix's 10."""
    return rng.uniform(0.01, 0.1) * most


def _signed(level: float, rng: np.random.Generator) -> float:
    return level if rng.random() < 0.5 else -level


def _gray(picture: Image.Image) -> int | tuple[int, ...]:
    return GRAY if picture.mode == "L" else (GRAY,) * 3


def _affine(picture: Image.Image, *six: float) -> Image.Image:
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        six,
        resample=Image.Resampling.BILINEAR,
        fillcolor=_gray(picture),
    )


def _rotate(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    degrees = _signed(int(_level(rng, 30)), rng)
    return picture.rotate(
        degrees, resample=Image.Resampling.BILINEAR, fillcolor=_gray(picture)
    )


def _solarize(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(_level(rng, 256)))


def _shear_x(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _affine(picture, 1, _signed(_level(rng, 0.3), rng), 0, 0, 1, 0)


def _shear_y(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _affine(picture, 1, 0, 0, _signed(_level(rng, 0.3), rng), 1, 0)


def _translate_x(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = int(_level(rng, picture.width / 3))
    return _affine(picture, 1, 0, _signed(pixels, rng), 0, 1, 0)


def _translate_y(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = int(_level(rng, picture.height / 3))
    return _affine(picture, 1, 0, 0, 0, 1, _signed(pixels, rng))


OPERATIONS: tuple[Operation, ...] = (
    lambda picture, rng: ImageOps.autocontrast(picture),
    lambda picture, rng: ImageOps.equalize(picture),
    lambda picture, rng: ImageOps.posterize(picture, 4),
    _rotate,
    _solarize,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)

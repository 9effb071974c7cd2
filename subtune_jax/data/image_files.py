"""Image files as arrays of 8 bits: the whole range of their values, the right way up."""

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from subtune_jax.errors import InputError, listed

# Pillow has more, but some of them run a program (EPS), need another one (WMF), or name
# files that are no pictures to most people (HDF5). HEIF is there with pillow-heif alone.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "PCX"),
    *("PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
# Pictures that are refused by name, where another file beside images is passed over.
OTHER_PICTURES = (
    *(".heic", ".heif", ".jxl", ".svg", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".orf", ".rw2", ".dcm", ".exr", ".hdr", ".pdf", ".ai", ".xcf"),
)
QUARTER_TURNS = (5, 6, 7, 8)  # orientation tags that exchange height and width
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # of TIFF


@cache
def formats() -> tuple[str, ...]:
    """Returns those of `FORMATS` that this installation of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """Returns the suffixes of files in `formats`."""
    readable, known = formats(), Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in readable)


@cache
def other_pictures() -> frozenset[str]:
    """Returns the suffixes of pictures that are not read."""
    formats()
    return frozenset((*Image.registered_extensions(), *OTHER_PICTURES)) - suffixes()


def read_image(
    file: str | Path | BinaryIO, channels: int = 3, name: str | None = None
) -> np.ndarray:
    """Returns uint8[height, width, channels] of a file: RGB, or with one channel grey.

    Orientation tags are obeyed; values of 16 bits, and floats from 0 to 1, are scaled. Of
    several frames the first is taken, and alpha is left out. name: what errors call the
    file. Raises `InputError` for what is no image, damaged, too large for Pillow, or of
    another range."""
    name = str(file) if name is None else name
    if channels not in (1, 3):
        raise InputError(f"images are read with 1 or 3 channels, got {channels}")
    try:
        with _opened(file) as picture:
            values = _values(picture, "RGB" if channels == 3 else "L")
    except Exception as error:  # Pillow raises many classes for damaged files
        raise _unreadable(name, error) from None
    try:
        pixels = eight_bits(values)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], channels, 2)


def _opened(file: str | Path | BinaryIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged tags, which are passed over
        return Image.open(file, formats=formats())


def _values(picture: Image.Image, mode: str) -> np.ndarray:
    """Returns the values of a picture the right way up: those of more than 8 bits as they
    are, others as this mode."""
    # The tags of a file are lost when it is turned.
    negative = getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    wide = picture.format in ("PNG", "PPM")  # their mode I is of 16 bits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upright = ImageOps.exif_transpose(picture)
    if upright.mode[0] not in "IF":
        return np.asarray(upright.convert(mode))
    values = np.asarray(upright)
    if upright.mode == "I" and wide:
        values = values.astype(np.uint16)
    # Pillow obeys WhiteIsZero at 8 bits alone.
    return 65535 - values if negative and values.dtype.kind == "u" else values


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Returns uint8 pixels: v / 257 of 16 bits, 255 v of floats from 0 to 1, rounded.

    Raises `InputError` for values of another type or range."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.rint(values / 257).astype(np.uint8)
    low, high = (float(f(values)) for f in (np.min, np.max))
    if values.dtype.kind == "f" and 0 <= low and high <= 1:
        return np.rint(values * 255.0).astype(np.uint8)
    raise InputError(
        f"pixels are {values.dtype} from {low:g} to {high:g}: expected 8 or 16 bits, or "
        "floats from 0 to 1"
    )


def image_size(file: str | Path) -> tuple[int, int]:
    """Returns the height and width that `read_image` gives; only the header is read.

    Raises `InputError` for what is no image."""
    try:
        with _opened(file) as picture:
            width, height = picture.size
            # The method of the base class: that of PNG files reads all of them.
            tag = Image.Image.getexif(picture).get(ExifTags.Base.Orientation)
            turned = (
                tag in QUARTER_TURNS and picture.format != "TIFF"
            )  # turned by Pillow
    except Exception as error:
        raise _unreadable(file, error) from None
    return (width, height) if turned else (height, width)


def _unreadable(file: str | Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{file} is not a readable image: {reason}")


def read_each(read: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Returns `read(item)` of each; raises one `InputError` that names all that failed."""
    results, errors = [], []
    for item in items:
        try:
            results.append(read(item))
        except InputError as error:
            errors.append(str(error))
    if len(errors) > 1:
        raise InputError(f"{len(errors)} images cannot be read: {listed(errors)}")
    if errors:
        raise InputError(errors[0])
    return results

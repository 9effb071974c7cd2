"""Texts and images as the base of a server reads them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from subtune_jax.data.crops import resized
from subtune_jax.data.text import encode, tokenizer
from subtune_jax.errors import InputError
from subtune_jax.network import Network, Pixels, Tokens

# What Pillow raises for files that are no images, damaged or too large.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
LONGEST = 128  # tokens of a text, where nothing else is said; as the text studies


def read(
    network: Network, inputs: Any, words: Any = None, longest: int | None = None
) -> tuple[Any, dict[int, str]]:
    """Returns inputs as arrays, and `{row: what is wrong}` of those that cannot be read.

    inputs: arrays as the network takes them; or a list of texts, or of pairs of texts; or
    a list of images, each a file or uint8[height, width, channels]. words: the tokenizer;
    default: that of the base's folder. Rows that cannot be read stand for another one.
    Raises `InputError` for no input, and for a base that does not say what it reads.
    """
    if isinstance(inputs, str | Path):
        raise InputError(
            "inputs must be a list, got one text or file: put it into a list"
        )
    if not isinstance(inputs, list | tuple):
        return inputs, {}
    if not inputs:
        raise InputError("there are no inputs: the list is empty")
    reads = None if network.source is None else network.source.reads
    if isinstance(reads, Tokens):
        return _texts(network, reads, inputs, words, longest)
    if isinstance(reads, Pixels):
        return _images(reads, inputs)
    raise InputError(
        "the base does not say what it reads, so inputs must be arrays, got a list"
    )


def reader(network: Network) -> Any:
    """Returns the tokenizer of a base that reads texts, from its folder; else `None`."""
    source = network.source
    if source is None or not isinstance(source.reads, Tokens) or not source.folder:
        return None
    return tokenizer(source.folder, source.reads.vocab_size)


def _texts(
    network: Network, reads: Tokens, inputs: Sequence[Any], words: Any, longest: Any
) -> tuple[Any, dict[int, str]]:
    if words is None:
        raise InputError(
            "the base has no folder with a tokenizer: give tokenizer=, that of its texts"
        )
    if longest is None:
        longest = min(LONGEST, reads.max_length or LONGEST)
    wrong, groups = {}, {1: [], 2: []}  # type: ignore[var-annotated]
    for i, text in enumerate(inputs):
        parts = text if isinstance(text, tuple) else (text,)
        if len(parts) in groups and all(isinstance(part, str) for part in parts):
            groups[len(parts)].append((i, parts))
        else:
            wrong[i] = f"expected a text or a pair of texts, got {type(text).__name__}"
    read = {
        n: encode(words, [p for _, p in g], longest) for n, g in groups.items() if g
    }
    if not read:
        return {}, wrong
    arrays: dict[str, np.ndarray] = {}
    taken = {
        n: {k: c[np.arange(len(groups[n]))] for k, c in columns.items()}
        for n, columns in read.items()
    }
    width = max(columns["input_ids"].shape[1] for columns in taken.values())
    for n, columns in taken.items():
        rows = [i for i, _ in groups[n]]
        for name, values in columns.items():
            whole = arrays.setdefault(
                name, np.zeros((len(inputs), width), values.dtype)
            )
            whole[rows, : values.shape[1]] = values
    return arrays, wrong


def _images(reads: Pixels, inputs: Sequence[Any]) -> tuple[Any, dict[int, str]]:
    images: dict[int, np.ndarray] = {}
    wrong: dict[int, str] = {}
    for i, one in enumerate(inputs):
        try:
            images[i] = _image(reads, one)
        except InputError as error:
            wrong[i] = str(error)
    if not images:
        return np.zeros((len(inputs), 1, 1, reads.channels), np.uint8), wrong
    sizes = Counter(image.shape for image in images.values())
    shape = sizes.most_common(1)[0][0]
    for i, image in images.items():
        if image.shape != shape:
            wrong[i] = (
                f"the image is {_size(image.shape)} and others of the batch are "
                f"{_size(shape)}: the base has no size of its own to resize to"
            )
    blank = np.zeros(shape, np.uint8)
    rows = range(len(inputs))
    return np.stack([blank if i in wrong else images[i] for i in rows]), wrong


def _image(reads: Pixels, one: Any) -> np.ndarray:
    image = one
    if isinstance(one, str | Path):
        try:
            mode = "RGB" if reads.channels == 3 else "L"
            image = np.asarray(Image.open(one).convert(mode))
        except UNREADABLE as error:
            raise InputError(f"{one} is not a readable image: {error}") from None
        image = image if image.ndim == 3 else image[..., None]
    shape: tuple[int, ...] = getattr(image, "shape", ())
    if len(shape) != 3 or shape[-1] != reads.channels:
        got = f"shape {list(shape)}" if shape else type(one).__name__
        raise InputError(
            f"expected an image [height, width, {reads.channels}], got {got}"
        )
    if image.dtype != np.uint8:
        raise InputError(f"expected an image of uint8, got {image.dtype}")
    return image if reads.size is None else resized(image, reads.size[0])


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[:2]))

"""Texts and images as the base of a server reads them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtune_jax.data.crops import resized
from subtune_jax.data.image_files import read_image
from subtune_jax.data.text import encode, not_texts
from subtune_jax.data.tokenizer_files import tokenizer
from subtune_jax.errors import InputError
from subtune_jax.network import Network, Pixels, Tokens

LONGEST = 128  # tokens of a text, where nothing else is said; as the text studies


def read(
    network: Network, inputs: Any, words: Any = None, longest: int | None = None
) -> tuple[Any, dict[int, str]]:
    """Returns inputs as arrays, and `{row: what is wrong}` of those that cannot be read.

    inputs: arrays as the network takes them; or a list of texts, or of pairs of texts; or
    a list of images, each a file or uint8[height, width, channels]. words: the tokenizer;
    default: that of the base's folder. Rows that cannot be read are zeros.
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
        return _texts(reads, inputs, words, longest)
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
    reads: Tokens, inputs: Sequence[Any], words: Any, longest: int | None
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
        said = not_texts(parts)
        if len(parts) in groups and said is None:
            groups[len(parts)].append((i, parts))
        else:
            got = said or f"has {len(parts)} texts"
            wrong[i] = f"expected a text or a pair of texts: the input {got}"
    arrays: dict[str, np.ndarray] = {}
    for group in filter(None, groups.values()):
        rows = [i for i, _ in group]
        columns = encode(words, [parts for _, parts in group], longest)
        for name, column in columns.items():
            values = column[np.arange(len(rows))]
            arrays[name] = _placed(arrays.get(name), values, rows, len(inputs))
    return arrays, wrong


def _placed(old: Any, values: np.ndarray, rows: list[int], count: int) -> np.ndarray:
    """Returns int[count, tokens] with these rows filled in, as wide as the longest."""
    width = max(values.shape[1], 0 if old is None else old.shape[1])
    whole = np.zeros((count, width), values.dtype)
    if old is not None:
        whole[:, : old.shape[1]] = old
    whole[rows, : values.shape[1]] = values
    return whole


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
    is_file = isinstance(one, str | Path)
    image = read_image(one, reads.channels) if is_file else one
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

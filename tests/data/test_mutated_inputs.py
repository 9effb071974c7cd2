"""Files with damaged bytes: one sentence of ours or a value, no other exception.

SUBTUNE_MUTATIONS says how many of each kind are tried (by default a fifteenth of what was
run when this was written: 10,500 in all).
"""

import io
import json
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from subtune_jax.data.folders import folder
from subtune_jax.data.image_files import image_size, read_image
from subtune_jax.data.tables import read_table
from subtune_jax.data.text import encode
from subtune_jax.data.tokenizer_files import tokenizer
from subtune_jax.errors import InputError
from subtune_jax.models.load import load_pretrained
from tests.data.test_tokenizer_files import WORDS, folder_of, whole
from tests.models.test_reference import CASES, loaded

SHARE = float(os.environ.get("SUBTUNE_MUTATIONS", "1"))
pytestmark = pytest.mark.slow


def mutated(data, rng):
    """Returns bytes with one to four changes: bits, cuts, copies, zeros, other numbers."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at, long = int(rng.integers(len(data))), int(rng.integers(1, 9))
        kind = rng.integers(7)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at : at + long]
        elif kind == 2:
            data[at:at] = data[at : at + long]
        elif kind == 3:
            data[at : at + long] = bytes(min(long, len(data) - at))
        elif kind == 4:
            data[at:at] = rng.bytes(long)
        elif kind == 5:
            del data[at:]
        else:  # a digit, where there is one, becomes a large or negative number
            digits = [i for i, b in enumerate(data) if 48 <= b < 58]
            if digits:
                i = int(rng.choice(digits))
                data[i : i + 1] = rng.choice([b"999999999", b"-1", b"0", b"1e999"])
    return bytes(data)


def tried(files, count, read, seed=0):
    """Returns how many of `count` mutations of a file's bytes were read and refused."""
    rng, outcomes = np.random.default_rng(seed), {"read": 0, "refused": 0}
    originals = {file: file.read_bytes() for file in files}
    for i in range(round(SHARE * count)):
        file = files[i % len(files)]
        file.write_bytes(mutated(originals[file], rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                read(file)
            outcomes["read"] += 1
        except InputError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)
        file.write_bytes(originals[file])
    return outcomes


SUFFIXES = ("png", "jpg", "webp", "tif", "gif", "bmp", "ppm", "jp2", "tga")


def test_images(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    files = [tmp_path / "a" / f"1.{suffix}" for suffix in SUFFIXES]
    files[0].parent.mkdir()
    for file in files:
        picture = Image.fromarray(noise)
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(
            file, **({"exif": exif} if file.suffix in (".jpg", ".png") else {})
        )
    wide = tmp_path / "a" / "wide.png"
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(wide)

    def read(file):
        pixels = read_image(file)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
        assert pixels.shape[:2] == image_size(file)
        folder(tmp_path, 8)

    outcomes = tried([*files, wide], 300, read)
    assert min(outcomes.values()) > 0
    read(files[0])


def test_bytes_that_are_no_file():
    rng = np.random.default_rng(0)
    for _ in range(round(SHARE * 50)):
        with pytest.raises(InputError):
            read_image(io.BytesIO(rng.bytes(200)))


def test_tables(tmp_path):
    rows = [f'"text {i}, é",{"pos" if i % 2 else "neg"}' for i in range(6)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(rows))
    lines = [json.dumps({"text": f"text {i}", "label": i % 3}) for i in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    files = [tmp_path / "a.csv", tmp_path / "a.jsonl"]
    outcomes = tried(files, 150, lambda file: read_table(file, "text", "label"))
    assert min(outcomes.values()) > 0


def test_tokenizers(tmp_path):
    pieces, one = tmp_path / "pieces", tmp_path / "whole"
    for root in (pieces, one):
        root.mkdir()
    config = {"do_lower_case": True, "truncation_side": "left", "model_max_length": 9}
    config["added_tokens_decoder"] = {str(len(WORDS)): {"content": "[E1]"}}
    folder_of(
        pieces, tokenizer_config=config, special_tokens_map={"cls_token": "[CLS]"}
    )
    folder_of(one, tokenizer_config={"do_lower_case": False}, added_tokens={"x": 12})
    whole(one)
    files = [file for root in (pieces, one) for file in sorted(root.iterdir())]

    def read(file):
        words = tokenizer(file.parent, 40)
        assert encode(words, ["Paris is one six"], 8)["input_ids"][:].max() < 40

    outcomes = tried(files, 120, read)
    assert min(outcomes.values()) > 0


@pytest.mark.parametrize("name", ["bert, gelu", "vit", "wide resnet"])
def test_networks(tmp_path, name):
    loaded(CASES[name], tmp_path)
    files = sorted(tmp_path.glob("*.json")) + [tmp_path / "model.safetensors"]
    outcomes = tried(files, 25, lambda file: load_pretrained(tmp_path))
    assert outcomes["refused"] > 0
    load_pretrained(tmp_path)

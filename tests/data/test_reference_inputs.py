"""Texts, image files and folders against what transformers, Pillow and torchvision read
(tests/fixtures/make_inputs.py), without transformers and torchvision."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from subtune_jax.data.folders import folder
from subtune_jax.data.image_files import read_image
from subtune_jax.data.text import encode
from subtune_jax.data.tokenizer_files import tokenizer

STORED = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "inputs.json").read_text()
)


@pytest.mark.parametrize("case", STORED["tokenizers"], ids=lambda case: case["name"])
def test_texts_have_the_tokens_of_transformers(tmp_path, case):
    for name, text in case["files"].items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    words = tokenizer(tmp_path)
    for text, ids, types in zip(
        STORED["texts"], case["ids"], case["types"], strict=True
    ):
        x = {name: rows[:][0] for name, rows in encode(words, [text], 8).items()}
        real = x["attention_mask"] > 0
        assert x["input_ids"][real].tolist() == ids, text
        assert x["token_type_ids"][real].tolist() == types, text


@pytest.mark.parametrize("case", STORED["images"], ids=lambda case: case["name"])
def test_images_have_the_pixels_of_pillow(tmp_path, case):
    file = tmp_path / f"a.{case['suffix']}"
    file.write_bytes(base64.b64decode(case["file"]))
    pixels = np.frombuffer(base64.b64decode(case["pixels"]), np.uint8)
    np.testing.assert_array_equal(read_image(file), pixels.reshape(case["shape"]))


def test_classes_have_the_numbers_of_torchvision(tmp_path):
    for name in STORED["classes"]:
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / "1.png")
    names = folder(tmp_path).class_names
    assert {name: i for i, name in enumerate(names)} == STORED["classes"]

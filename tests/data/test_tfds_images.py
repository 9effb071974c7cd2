"""Prepared sets of other images and labels: read right, or one sentence."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from subtune_jax.data import splits
from subtune_jax.data.task import split_task
from subtune_jax.data.tfds import images
from subtune_jax.errors import InputError
from subtune_jax.metrics import spearman
from tests import toy
from tests.data.test_inputs import refused

RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
UNIT = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)


def png(values):
    """Returns a PNG as TFDS stores it: floats are the bytes of four channels."""
    if values.dtype == np.float32:
        values = values.view(np.uint8).reshape(*values.shape, 4)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return io.BytesIO(file.getvalue())


def prepared(home, pixels, image, label, labels):
    """Prepares a set of one split; returns its name."""

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        code_path = None
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            floats = image is FLOATS  # TFDS needs TensorFlow to encode them
            held = tfds.features.Image(shape=(8, 8, 4)) if floats else image
            features = {"image": held, "label": label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i, one in enumerate(labels):
                many = isinstance(image, tfds.features.Sequence)
                yield i, {"image": [png(pixels)] if many else png(pixels), "label": one}

    builder = Own(data_dir=home, file_format="array_record")
    builder.download_and_prepare()
    features = tfds.features.FeaturesDict({"image": image, "label": label})
    features.save_config(builder.data_path)
    return "own"


WIDE = tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16)
FLOATS = tfds.features.Image(shape=(8, 8, 1), dtype=np.float32)
GREY = tfds.features.Image(shape=(8, 8, 1))
CLASS = tfds.features.ClassLabel(names=["ant", "bee"])
SMALL = (RAMP / 257).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "feature", "expected"),
    [
        (RAMP, WIDE, np.rint(RAMP / 257)),
        (UNIT, FLOATS, np.rint(UNIT * 255)),
        (SMALL, GREY, SMALL),
    ],
)
def test_images_of_other_types_are_scaled(tmp_path, pixels, feature, expected):
    name = prepared(tmp_path, pixels, feature, CLASS, ["bee", "ant"])
    data = images(name, "test", tmp_path)
    assert sorted(data.y.tolist()) == [0, 1] and data.classes == ("ant", "bee")
    assert data.x[:].dtype == np.uint8
    np.testing.assert_array_equal(data.x[:][0, ..., 0], expected)


@pytest.mark.parametrize(
    ("label", "labels", "said"),
    [
        (
            CLASS,
            [0, -1, -1],
            "2 of the 3 labels in split 'test' of own are below 0: se",
        ),
        (np.float32, [0.5, 1.0], r"labels of own are float64\[\]: expected one class"),
        (tfds.features.Text(), ["a", "b"], "labels of own are .*: expected one class"),
        (
            tfds.features.Sequence(np.int64),
            [[0, 1], [1, 0]],
            r"int64\[2\]: expected one",
        ),
    ],
)
def test_labels_that_are_not_one_class_are_said(tmp_path, label, labels, said):
    name = prepared(tmp_path, SMALL, GREY, label, labels)
    with pytest.raises(InputError, match=said):
        images(name, "test", tmp_path)


def test_several_images_of_an_example_are_said(tmp_path):
    name = prepared(tmp_path, SMALL, tfds.features.Sequence(GREY), CLASS, ["ant"])
    with pytest.raises(InputError, match="'image' of own is no single image but a Seq"):
        images(name, "test", tmp_path)


def test_floats_of_another_range_are_said(tmp_path):
    name = prepared(tmp_path, 2 * UNIT, FLOATS, CLASS, ["ant"])
    with pytest.raises(InputError, match="pixels are float32 from 0 to 2: expected 8"):
        images(name, "test", tmp_path).x[:]


SIZES = {"train": 10, "validation": 10, "test": None}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            np.where(np.arange(48) % 5, 1, -1),
            "10 of 48 labels are below 0.*leave these",
        ),
        (np.full(48, -1), "48 of 48 labels are below 0"),
        (np.where(np.arange(48) % 5, 1.0, np.nan), "expected integer labels|finite"),
        (np.arange(48) / 48, "expected integer labels"),
        (np.array(["a"] * 48), "expected integer labels|must be numbers"),
        (np.zeros((48, 2), int), "expected integer labels"),
        (np.array([None] * 48), "expected integer labels|must be numbers"),
    ],
)
def test_parts_are_drawn_of_classes_alone(labels, said):
    data = toy.points(48)._replace(y=labels)
    takers = (
        lambda: split_task(toy.mlp(), data, SIZES, 0),
        lambda: splits.balanced_indices(labels, SIZES, 0),
        lambda: splits.balanced_folds(labels, 2, 0),
        lambda: splits.split_balanced(data, SIZES, 0),
    )
    for take in takers:
        with pytest.raises(InputError, match=said):
            take()


def test_targets_that_are_no_numbers():
    data = toy.points(64)
    lost = np.where(np.arange(64) % 5, 1.0, np.nan).astype(np.float32)
    names = ("fit", "sweep", "evaluate")
    refused(toy.mlp(), data._replace(y=lost), "targets must be finite numbers", names)
    with pytest.raises(
        InputError, match="targets must be finite numbers: some are NaN"
    ):
        spearman(np.arange(64.0), lost)

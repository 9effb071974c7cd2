"""Crops and VTAB's splits."""

import numpy as np
import pytest

from subtune_jax.data.crops import resized_crop_and_flip
from subtune_jax.data.tfds import images, split_sizes
from subtune_jax.data.vtab import vtab_1k, vtab_splits
from subtune_jax.errors import InputError

SIZES = {"train": 3_059, "test": 6_084}


def test_the_splits_of_vtab_are_those_of_its_code_and_of_the_papers_repository():
    train, test = "train[:800]", "test"
    assert vtab_splits("cifar100", {"train": 50_000}) == (
        train,
        "train[45000:45200]",
        test,
    )
    assert vtab_splits("caltech101", SIZES) == (train, "train[2753:2953]", test)
    own = (train, "validation[:200]", test)
    assert vtab_splits("oxford_flowers102", SIZES) == vtab_splits("dmlab", SIZES) == own
    theirs = vtab_splits("dmlab", {"train": 65_550}, "subtuning")
    assert theirs == (train, "train[52440:52640]", test)
    with pytest.raises(InputError, match="unknown protocol of VTAB 'full'"):
        vtab_splits("dmlab", SIZES, "full")
    with pytest.raises(InputError, match="unknown set of VTAB-1k 'dtd'"):
        vtab_splits("dtd", SIZES)


def test_a_random_box_is_resized_to_the_whole_image():
    ramp = np.broadcast_to(
        np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (24, 24, 3)
    )
    images = np.stack([ramp] * 200)
    crops = resized_crop_and_flip()(images, np.random.default_rng(0))
    assert crops.shape == images.shape and crops.dtype == np.uint8
    assert np.all(crops == crops[:, :1])  # rows stay alike
    rising = crops[:, 0, -1, 0].astype(int) - crops[:, 0, 0, 0]
    assert 70 < np.sum(rising < 0) < 130  # every second one is flipped
    # The width of a box is between sqrt(0.08 * 3/4) and all of the image.
    widths = np.abs(rising) / 230
    assert widths.min() > 0.18 and widths.max() <= 1 and 0.5 < widths.mean() < 0.85
    again = resized_crop_and_flip()(images, np.random.default_rng(0))
    assert np.array_equal(crops, again)


def test_the_whole_image_is_a_box_and_gray_images_stay_gray():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    whole = resized_crop_and_flip(scale=(1, 1), ratio=(1, 1))
    crops = whole(images, np.random.default_rng(1))
    for crop, image in zip(crops, images, strict=True):
        assert np.array_equal(crop, image) or np.array_equal(crop, image[:, ::-1])
    # No box of twice the height fits: the central one of that ratio is taken.
    tall = resized_crop_and_flip(scale=(1, 1), ratio=(0.5, 0.5))
    assert tall(images, np.random.default_rng(1)).shape == images.shape
    with pytest.raises(InputError, match="scale must rise from above 0, got"):
        resized_crop_and_flip(scale=(0.5, 0.1))


def test_vtab_reads_a_thousand_images_of_a_prepared_set(real_data):
    home = real_data / "tfds"
    sizes = split_sizes("cifar100", home)
    train, test = vtab_1k("cifar100", home)
    assert train.x.shape == (1000, 32, 32, 3) and train.x.dtype == np.uint8
    assert len(train.y) == 1000 and len(test.y) == sizes["test"]
    end = sizes["train"] * 90 // 100 + 200
    last = images("cifar100", f"train[{end - 1}:{end}]", home)
    assert np.array_equal(train.x[-1], last.x[:][0]) and train.y[-1] == last.y[0]
    own, _ = vtab_1k("cifar100", home, "subtuning")
    assert np.array_equal(own.x[:800], train.x[:800])
    assert not np.array_equal(own.x[800:], train.x[800:])

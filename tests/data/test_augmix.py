"""AugMix copies stay near their image."""

import chex
import numpy as np
import pytest

from subtune_jax.data.augmix import OPERATIONS, augmix_copies
from subtune_jax.errors import InputError


def picture(channels=3, size=32):
    rows, columns = np.indices((size, size))
    x = 40 + 4 * rows + 2 * columns
    return np.repeat(x[..., None], channels, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_differ_and_keep_shape_dtype_and_brightness(channels):
    x = picture(channels)
    made = augmix_copies(x, 8, np.random.default_rng(0))
    chex.assert_shape(made, (8, *x.shape))
    assert made.dtype == np.uint8
    assert len(np.unique(made, axis=0)) == 8
    assert abs(made.mean() - x.mean()) < 25


def test_the_generator_alone_decides():
    one, two, other = (
        augmix_copies(picture(), 4, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert np.any(one != other)


def test_operations_are_mild():
    from PIL import Image

    x = picture()
    for operation in OPERATIONS[3:]:  # the first three spread or cut levels by design
        for seed in range(5):
            made = operation(Image.fromarray(x), np.random.default_rng(seed))
            inner = np.asarray(made).astype(float)[6:-6, 6:-6]
            assert np.abs(inner - x[6:-6, 6:-6]).mean() < 25, operation


def test_a_black_image_stays_black_where_no_corner_comes_in():
    x = np.zeros((32, 32, 1), np.uint8)
    middle = augmix_copies(x, 4, np.random.default_rng(0))[:, 8:-8, 8:-8]
    assert set(np.unique(middle)) == {0}


@pytest.mark.parametrize(
    ("image", "copies", "message"),
    [
        (picture().astype(float), 2, r"uint8 images of \[height, width, 1 or 3\], got"),
        (picture(2), 2, r"got uint8\[32, 32, 2\]"),
        (picture(), 0, "copies must be a positive number, got 0"),
    ],
)
def test_what_cannot_be_is_refused(image, copies, message):
    with pytest.raises(InputError, match=message):
        augmix_copies(image, copies, np.random.default_rng(0))


def test_copies_are_mixtures_and_no_crops_of_the_image():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    crops = [padded[t : t + 8, left : left + 8] for t in range(3) for left in range(3)]
    plain = {c.tobytes() for crop in crops for c in (crop, crop[:, ::-1].copy())}
    copies = augmix_copies(image, 40, np.random.default_rng(1))
    mixed = [copy for copy in copies if copy.tobytes() not in plain]
    assert len(mixed) > 35

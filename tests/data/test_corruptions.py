"""Our corruptions against the real corrupted sets: image i is test image i."""

import numpy as np
import pytest

from subtune_jax.data.batches import Data
from subtune_jax.data.corruptions import CORRUPTIONS, corrupt
from subtune_jax.data.prepared import images
from subtune_jax.data.shifts import shift
from subtune_jax.errors import InputError

N = 2000


@pytest.fixture(scope="module")
def clean(real_data):
    return images("cifar10", f"test[:{N}]", real_data / "tfds").take(np.arange(N)).x


def both(real_data, clean, name):
    real = images(f"cifar10_corrupted/{name}_5", "test", real_data / "tfds")
    ours = corrupt(clean, name, 5, np.random.default_rng(0))
    return ours.astype(float), real.take(np.arange(N)).x.astype(float)


@pytest.mark.parametrize("name", ["contrast", "jpeg_compression"])
def test_deterministic_ones_are_the_published_ones(real_data, clean, name):
    ours, real = both(real_data, clean, name)
    assert np.abs(ours - real).mean() <= 1.0
    assert np.mean(ours == real) > 0.99


@pytest.mark.parametrize("name", ["gaussian_noise", "frosted_glass_blur"])
def test_random_ones_agree_in_mean_variance_and_spectrum(real_data, clean, name):
    ours, real = both(real_data, clean, name)

    def facts(found):
        change = found - clean
        power = np.square(np.abs(np.fft.fft2(change, axes=(1, 2)))).mean(axis=(0, 3))
        radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32) * 32] * 2))
        rings = [power[(radius >= a) & (radius < b)].sum() for a, b in RINGS]
        return [found.mean(), change.var(), *rings]

    np.testing.assert_allclose(facts(ours), facts(real), rtol=0.03)


RINGS = ((0, 4), (4, 8), (8, 12), (12, 16))


def test_every_corruption_and_severity_gives_images(clean):
    for name in CORRUPTIONS:
        changes = []
        for severity in range(1, 6):
            made = corrupt(clean[:6], name, severity, np.random.default_rng(0))
            assert made.shape == clean[:6].shape and made.dtype == np.uint8
            changes.append(np.abs(made.astype(float) - clean[:6]).mean())
        assert min(changes) > 0, name
        if name not in (
            "saturate",
            "frosted_glass_blur",
        ):  # not ordered in the original
            assert changes[0] < changes[4], name


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 48, 48, 3)])
def test_other_sizes_and_grey_images(shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for name in set(CORRUPTIONS) - (
        {"brightness", "saturate"} if shape[-1] == 1 else set()
    ):
        assert corrupt(x, name, 5, np.random.default_rng(0)).shape == shape


def test_formulas_on_literal_images():
    rng = np.random.default_rng(0)
    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    for blur in ("contrast", "gaussian_blur", "defocus_blur", "zoom_blur", "pixelate"):
        assert np.abs(corrupt(grey, blur, 5, rng).astype(int) - 100).max() <= 1
    assert (
        np.abs(corrupt(grey, "brightness", 5, rng).astype(int) - (100 + 76)).max() <= 1
    )
    hit = corrupt(grey, "impulse_noise", 5, rng)
    assert set(np.unique(hit)) <= {0, 99, 100, 255}
    many = np.full((40, 32, 32, 3), 100, np.uint8)
    changed = np.abs(corrupt(many, "impulse_noise", 5, rng).astype(int) - 100) > 1
    assert changed.mean() == pytest.approx(0.07, abs=0.005)
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 200
    assert np.ptp(corrupt(red, "saturate", 1, rng), axis=-1).max() < 70  # toward grey


def test_a_corruption_is_a_shift_by_name_and_severity():
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    made = shift("contrast_4")
    assert made.level == "input"
    found = made.target(Data(x, np.arange(3)), np.random.default_rng(0)).x
    np.testing.assert_array_equal(
        found, corrupt(x, "contrast", 4, np.random.default_rng(0))
    )


def test_what_cannot_be_is_refused():
    x, rng = np.zeros((1, 8, 8, 1), np.uint8), np.random.default_rng(0)
    with pytest.raises(
        InputError, match="unknown corruption 'contrasts'.*mean 'contrast'"
    ):
        corrupt(x, "contrasts", 1, rng)
    with pytest.raises(InputError, match="severity must be 1, 2, 3, 4 or 5, got 6"):
        corrupt(x, "contrast", 6, rng)
    with pytest.raises(InputError, match="needs 3 channels, the image has 1"):
        corrupt(x, "saturate", 1, rng)
    with pytest.raises(InputError, match="unknown shift 'contrast_6'"):
        shift("contrast_6")

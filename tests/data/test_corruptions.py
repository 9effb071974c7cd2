"""Our corruptions against the real corrupted sets: image i is test image i."""

import chex
import numpy as np
import pytest

from subtune_jax.data.batches import Dataset
from subtune_jax.data.corruptions import CORRUPTIONS, corrupt
from subtune_jax.data.corruptions.blur import moved
from subtune_jax.data.corruptions.digital import elastic
from subtune_jax.data.corruptions.weather import plasma
from subtune_jax.data.shifts import shift
from subtune_jax.data.tfds import images
from subtune_jax.errors import InputError

pytestmark = pytest.mark.slow

N = 2000


@pytest.fixture(scope="module")
def clean(real_data):
    return images("cifar10", f"test[:{N}]", real_data / "tfds").take(np.arange(N)).x


def both(real_data, clean, name):
    real = images(f"cifar10_corrupted/{name}_5", "test", real_data / "tfds")
    ours = corrupt(clean, name, 5, np.random.default_rng(0))
    return ours.astype(float), real.take(np.arange(len(clean))).x.astype(float)


@pytest.mark.parametrize("name", ["contrast", "jpeg_compression"])
def test_deterministic_ones_are_the_published_ones(real_data, clean, name):
    ours, real = both(real_data, clean, name)
    assert np.abs(ours - real).mean() <= 1.0
    assert np.mean(ours == real) > 0.99


RINGS = ((0, 4), (4, 8), (8, 12), (12, 16))


def facts(clean, found):
    """Returns mean and variance of images, the variance of the change, its spectrum."""
    change = found - clean
    power = np.square(np.abs(np.fft.fft2(change, axes=(1, 2)))).mean(axis=(0, 3))
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32) * 32] * 2))
    rings = [power[(radius >= a) & (radius < b)].sum() / 1e6 for a, b in RINGS]
    return [found.mean(), found.var(), change.var(), *rings]


@pytest.mark.parametrize("name", ["gaussian_noise", "frosted_glass_blur"])
def test_random_ones_agree_in_mean_variance_and_spectrum(real_data, clean, name):
    clean = clean[:500] if name == "frosted_glass_blur" else clean  # pixel by pixel
    ours, real = both(real_data, clean, name)
    np.testing.assert_allclose(facts(clean, ours), facts(clean, real), rtol=0.03)


# The same facts of the original functions (make_cifar_c.py at 8190fe3, with OpenCV 4,
# scikit-image 0.26 and ImageMagick 6) on the same images, severity 5, numpy seed 0.
ORIGINAL = {
    "motion_blur": (122.05, 3562.4, 569.4, 250.4, 227.9, 86.3, 28.6),
    "fog": (120.98, 1548.8, 2283.4, 2116, 193.4, 60.62, 23.45),
    "snow": (173.63, 3850.2, 539.9, 3107, 103.9, 48.82, 33.39),
    "spatter": (117.61, 4156.6, 548.0, 126.5, 178, 139.8, 107.2),
    "elastic": (121.90, 3784.7, 524.5, 119.8, 215.8, 143.2, 61.12),
    "defocus_blur": (122.02, 3599.3, 202.2, 7.761, 55.7, 87.55, 54.02),
    "zoom_blur": (121.19, 3542.9, 668.7, 279.7, 271.9, 109.2, 37.26),
    "shot_noise": (121.28, 4484.0, 565.8, 33.18, 85.51, 139.9, 203.9),
    "impulse_noise": (122.87, 4964.9, 1428.1, 82.46, 215.5, 352.7, 513.6),
    "speckle_noise": (120.70, 4449.1, 645.3, 45.73, 97.43, 157.8, 230),
    "gaussian_blur": (122.05, 3502.9, 201.8, 12.11, 77.15, 81.38, 35.99),
    "brightness": (178.16, 3626.0, 481.0, 3649, 59.42, 24.15, 13.24),
    "saturate": (93.00, 4922.5, 1074.0, 1860, 112.3, 42.2, 21.36),
    "pixelate": (122.90, 3903.2, 209.3, 2.959, 30.96, 71.55, 93.8),
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_others_agree_with_the_original_functions(clean, name):
    ours = corrupt(clean, name, 5, np.random.default_rng(0)).astype(float)
    np.testing.assert_allclose(facts(clean, ours), ORIGINAL[name], rtol=0.035)


def test_generated_frost_has_the_brightness_and_spread_of_the_photographs(clean):
    """The spectrum is flatter in photographs: frost is the one that is not the original."""
    ours = corrupt(clean, "frost", 5, np.random.default_rng(0)).astype(float)
    np.testing.assert_allclose(facts(clean, ours)[:2], (163.65, 2634.9), rtol=0.05)


def test_every_name_of_tfds_is_there():
    names = """brightness contrast defocus_blur elastic fog frost frosted_glass_blur
    gaussian_blur gaussian_noise impulse_noise jpeg_compression motion_blur pixelate
    saturate shot_noise snow spatter speckle_noise zoom_blur"""
    assert sorted(CORRUPTIONS) == names.split()


def test_motion_is_a_gaussian_along_its_angle():
    x = np.zeros((9, 9, 1))
    x[4, 6] = 1.0
    made = moved(x, radius=2, sigma=1.0, angle=0.0)[4, :, 0]
    taps = np.exp(-(np.arange(5) ** 2) / 2)
    np.testing.assert_allclose(made[2:7], (taps / taps.sum())[::-1])
    down = moved(x.transpose(1, 0, 2), radius=2, sigma=1.0, angle=90.0)[:, 4, 0]
    np.testing.assert_allclose(down, made, atol=1e-12)


def test_plasma_fills_a_torus_from_zero_to_one():
    made = plasma(16, 2.0, np.random.default_rng(0))
    chex.assert_shape(made, (16, 16))
    assert made.min() == 0 and made.max() == 1
    assert np.isfinite(made).all() and len(np.unique(made)) == 256


def test_an_elastic_move_of_nothing_is_the_image():
    x = np.random.default_rng(0).random((12, 9, 3))
    made = elastic(x, (0, 0, 0), np.random.default_rng(0))
    np.testing.assert_allclose(made, x, atol=1e-12)


def test_every_corruption_and_severity_gives_images(clean):
    for name in CORRUPTIONS:
        changes = []
        for severity in range(1, 6):
            made = corrupt(clean[:6], name, severity, np.random.default_rng(0))
            chex.assert_shape(made, clean[:6].shape)
            assert made.dtype == np.uint8
            changes.append(np.abs(made.astype(float) - clean[:6]).mean())
        assert min(changes) > 0, name
        if name not in (
            "saturate",
            "frosted_glass_blur",
            "elastic",
        ):  # not ordered in the original
            assert changes[0] < changes[4], name


@pytest.mark.parametrize(
    "shape", [(2, 8, 8, 1), (2, 48, 48, 3), (2, 20, 33, 3), (1, 1, 1, 3)]
)
def test_other_sizes_and_grey_images(shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for name in CORRUPTIONS:
        chex.assert_shape(corrupt(x, name, 5, np.random.default_rng(0)), shape)


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
    found = made.target(Dataset(x, np.arange(3)), np.random.default_rng(0)).x
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
    with pytest.raises(InputError, match="severity must be 1, 2, 3, 4 or 5, got 3.0"):
        corrupt(x, "contrast", 3.0, rng)
    for wrong, form in (
        (x / 255, r"float64\[1, 8, 8, 1\]"),
        (x[0], r"uint8\[8, 8, 1\]"),
        (x[:0], r"uint8\[0, 8, 8, 1\]"),
        (np.zeros((1, 8, 8, 4), np.uint8), r"uint8\[1, 8, 8, 4\]"),
    ):
        with pytest.raises(InputError, match=f"1 or 3.,? got {form}"):
            corrupt(wrong, "jpeg_compression", 1, rng)
    with pytest.raises(InputError, match="unknown shift 'contrast_6'"):
        shift("contrast_6")


# Of github.com/hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py @ 8190fe3.
CONSTANTS = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "frosted_glass_blur": (
        (0.05, 1, 1),
        (0.25, 1, 1),
        (0.4, 1, 1),
        (0.25, 1, 2),
        (0.4, 1, 2),
    ),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_constants_of_every_severity_are_the_published_ones(name):
    assert CORRUPTIONS[name].constants == CONSTANTS[name]


def test_grey_images_of_one_channel_are_brighter_by_the_constant():
    grey = np.full((1, 8, 8, 1), 100, np.uint8)
    levels = (0.05, 0.1, 0.15, 0.2, 0.3)
    for severity, level in enumerate(levels, start=1):
        made = corrupt(grey, "brightness", severity, np.random.default_rng(0))
        np.testing.assert_allclose(made, 100 + 255 * level, atol=1)


@pytest.mark.parametrize(
    ("severity", "color"), [(1, (175, 238, 238)), (5, (63, 42, 20))]
)
def test_water_and_mud_have_their_colors(severity, color):
    dark = np.zeros((4, 32, 32, 3), np.uint8)
    made = corrupt(dark, "spatter", severity, np.random.default_rng(0)).astype(float)
    wet = made[made.sum(-1) > 100]
    assert len(wet) > 20
    share = wet / wet.sum(-1, keepdims=True)
    np.testing.assert_allclose(share.mean(0), np.array(color) / sum(color), atol=0.02)

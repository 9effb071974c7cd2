"""Image files: whole range, right way up, and what cannot be read is said."""

import numpy as np
import pytest
from PIL import Image

from subtune_jax.data.image_files import eight_bits, image_size, read_image
from subtune_jax.errors import InputError

RAMP = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)


def stored(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_16_bits_are_scaled(tmp_path, suffix):
    options = {"irreversible": False} if suffix == "jp2" else {}
    pixels = read_image(stored(tmp_path / f"ramp.{suffix}", RAMP, **options))
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[..., 0], np.rint(RAMP / 257))
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
    grey = read_image(tmp_path / f"ramp.{suffix}", channels=1)
    np.testing.assert_array_equal(grey[..., 0], np.rint(RAMP / 257))


def test_16_bits_of_the_other_byte_order_and_of_inverted_files(tmp_path):
    big = Image.frombytes("I;16B", (32, 32), RAMP.astype(">u2").tobytes())
    big.save(tmp_path / "big.tif")
    np.testing.assert_array_equal(
        read_image(tmp_path / "big.tif", 1)[..., 0], np.rint(RAMP / 257)
    )
    inverted = stored(tmp_path / "inverted.tif", RAMP, tiffinfo={262: 0})
    np.testing.assert_array_equal(
        read_image(inverted, 1)[..., 0], 255 - np.rint(RAMP / 257)
    )


@pytest.mark.parametrize("suffix", ["tif", "pfm"])
def test_floats_from_0_to_1_are_scaled(tmp_path, suffix):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pixels = read_image(stored(tmp_path / f"a.{suffix}", values), 1)
    np.testing.assert_array_equal(pixels[..., 0], np.rint(values * 255))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((4, 4), 1.5, np.float32), "float32 from 1.5 to 1.5: expected 8 or 16"),
        (np.full((4, 4), np.nan, np.float32), "float32 from nan to nan"),
        (np.full((4, 4), 70_000, np.int32), "int32 from 70000 to 70000"),
        (np.full((4, 4), -0.5, np.float32), "float32 from -0.5 to -0.5"),
    ],
)
def test_values_of_another_range_are_said(tmp_path, values, said):
    with pytest.raises(InputError, match=said) as error:
        read_image(stored(tmp_path / "a.tif", values))
    assert "a.tif" in str(error.value)
    with pytest.raises(InputError, match=said):
        eight_bits(values)


TURNS = {  # what the tag says of the stored image: EXIF 2.3, tag 0x112
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg"])
@pytest.mark.parametrize("tag", TURNS)
def test_orientation_is_obeyed(tmp_path, tag, suffix):
    image = np.zeros((24, 40, 3), np.uint8)
    image[:8, :16] = 255, 0, 0
    image[16:, :] = 0, 0, 255
    picture = Image.fromarray(image)
    exif = picture.getexif()
    exif[0x0112] = tag
    file = tmp_path / f"a.{suffix}"
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    picture.save(file, exif=exif, **lossless.get(suffix, {}))
    upright = TURNS[tag](image)
    assert image_size(file) == upright.shape[:2]
    np.testing.assert_allclose(
        read_image(file).astype(int), upright, atol=4 if suffix == "jpg" else 0
    )


@pytest.mark.parametrize(
    ("mode", "color", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("LA", (7, 0), (7, 7, 7)),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
        ("P", 0, (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_other_modes_are_rgb(tmp_path, mode, color, rgb):
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (3, 2), color).save(file)
    assert (read_image(file) == np.array(rgb)).all()


def test_what_would_run_a_program_is_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )
    with pytest.raises(InputError, match="not a readable image"):
        read_image(tmp_path / "a.png")

import chex
import numpy as np
import pytest
from PIL import Image

from subtune_jax.data import batches
from subtune_jax.data.batches import Dataset
from subtune_jax.data.crops import crop_and_flip, resized
from subtune_jax.data.folders import folder
from subtune_jax.data.image_files import read_image
from subtune_jax.data.tfds import find, images, records
from subtune_jax.errors import InputError


def test_prepared_images_are_read_without_tensorflow(real_data):
    import sys

    data = images("cifar10", "test[:100]", real_data / "tfds")
    assert data.y[:5].tolist() == [3, 8, 8, 0, 6]  # CIFAR-10's known first test labels
    taken = data.take(np.array([0, 99]))
    chex.assert_shape(taken.x, (2, 32, 32, 3))
    assert taken.x.dtype == np.uint8
    whole = records("cifar10", "test", real_data / "tfds")
    np.testing.assert_array_equal(taken.x[1], whole[99]["image"])
    assert len(data.y) == 100
    assert "tensorflow" not in sys.modules


def test_images_are_resized_when_read(real_data):
    data = images("cifar10", "test[:4]", real_data / "tfds", size=224)
    chex.assert_shape(data.take(slice(0, 2)).x, (2, 224, 224, 3))


def test_a_corrupted_set_is_of_the_same_images(real_data):
    clean = images("cifar10", "test[:2000]", real_data / "tfds")
    noisy = images("cifar10_corrupted/contrast_5", "test", real_data / "tfds")
    np.testing.assert_array_equal(clean.y, noisy.y)
    flat, full = (d.take(slice(0, 8)).x.astype(float) for d in (noisy, clean))
    assert (
        np.corrcoef(flat.mean((1, 2)).ravel(), full.mean((1, 2)).ravel())[0, 1] > 0.99
    )
    # severity 5 keeps 15 % of the distance from each channel's mean
    assert flat.std((1, 2)).mean() / full.std((1, 2)).mean() == pytest.approx(
        0.15, abs=0.01
    )


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "cifar10_corrupted",
            "test",
            "needs one of its configs: cifar10_corrupted/contrast_5",
        ),
        (
            "cifar11",
            "test",
            "no prepared data set 'cifar11'.*there: cifar10.*prepare it with",
        ),
        ("glue/mrpc", "test", "need TensorFlow for that, not for reading: pip install"),
        ("cifar10", "dev", "has no split 'dev': expected one of train, test"),
        ("cifar10", "test[:x]", "cannot read split 'test\\[:x\\]'"),
        ("glue/rte", "validation", "is not an image set: its features are"),
    ],
)
def test_what_is_not_there_is_said_with_how_to_get_it(real_data, name, split, message):
    with pytest.raises(InputError, match=message) as error:
        images(name, split, real_data / "tfds")
    assert "\n" not in str(error.value)


def test_resizing_keeps_constants_and_channels():
    grey = np.full((8, 8, 1), 77, np.uint8)
    chex.assert_shape(resized(grey, 16), (16, 16, 1))
    assert np.all(resized(grey, 16) == 77)
    color = np.full((9, 5, 3), 200, np.uint8)
    chex.assert_shape(resized(color, 4), (4, 4, 3))
    assert resized(color, None) is color


def test_crops_and_flips_come_from_the_image():
    image = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1)
    many = crop_and_flip(2)(np.repeat(image, 400, 0), np.random.default_rng(0))
    chex.assert_shape(many, (400, 8, 8, 1))
    assert many.dtype == np.uint8
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)))[0]
    crops = [padded[t : t + 8, left : left + 8] for t in range(5) for left in range(5)]
    known = {
        c.tobytes()
        for crop in crops
        for c in (crop, np.ascontiguousarray(crop[:, ::-1]))
    }
    seen = {np.ascontiguousarray(m).tobytes() for m in many}
    assert seen <= known and len(seen) > 40


def test_augmentation_is_a_function_of_seed_epoch_and_place():
    data = Dataset(np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8, 1), np.arange(8))

    def run(number, start=0):
        stream = batches.epoch(
            data,
            2,
            seed=[5],
            number=number,
            drop=False,
            start=start,
            augment=crop_and_flip(),
        )
        return [b.x.tobytes() for b in stream]

    assert run(1) == run(1) != run(2)
    assert run(1, start=2) == run(1)[2:]


def paint(path, color, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_a_folder_of_classes_and_groups(tmp_path):
    for name in ("cat/indoor/1.png", "cat/outdoor/2.png", "dog/indoor/3.jpg"):
        paint(tmp_path / name, (10, 20, 30))
    found = folder(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert found.group_names == ("indoor", "outdoor")
    assert found.data.y.tolist() == [0, 0, 1]
    assert found.groups.tolist() == [0, 1, 0]
    pixels = found.data.x[:]
    chex.assert_shape(pixels, (3, 6, 6, 3))
    assert pixels[0, 0, 0].tolist() == [10, 20, 30]
    one = found.data.only(np.array([2]))
    assert len(one.x) == 1 and one.y.tolist() == [1]  # the jpg: nearly its color
    assert np.abs(one.x[:].astype(int) - (10, 20, 30)).max() <= 2


def test_a_folder_of_classes_only_and_of_many_sizes(tmp_path):
    paint(tmp_path / "a" / "1.png", (0, 0, 0))
    paint(tmp_path / "b" / "2.png", (0, 0, 0), (8, 8))
    with pytest.raises(InputError, match="differ in size .2 sizes.: give a size"):
        folder(tmp_path)
    found = folder(tmp_path, size=4)
    chex.assert_shape(found.data.x[:], (2, 4, 4, 3))
    assert found.groups.tolist() == [0, 0]


def test_a_file_that_is_no_image_is_named(tmp_path):
    paint(tmp_path / "a" / "1.png", (0, 0, 0))
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="a/2.png is not a readable image"):
        folder(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no images: expected them as CLASS/FILE"):
        folder(tmp_path)
    paint(tmp_path / "1.png", (0, 0, 0))
    with pytest.raises(InputError, match="must be as CLASS/FILE.*move or remove .*/1"):
        folder(tmp_path)
    with pytest.raises(InputError, match="nowhere does not exist: expected a folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="1.png is a file: expected a folder"):
        folder(tmp_path / "1.png")


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/1.png",
        "@eaDir/1.png",
        "__MACOSX/cat/1.png",
        "cat/.thumbnails/1.png",
        "cat/._1.png",
        "cat/Thumbs.db",
        "cat/.DS_Store",
    ],
)
def test_what_systems_leave_beside_images_is_left_out(tmp_path, recwarn, name):
    for one in ("cat/1.png", "dog/1.png"):
        paint(tmp_path / one, (0, 0, 0))
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\0\5\x16\7")
    read = folder(tmp_path)
    assert read.class_names == ("cat", "dog") and read.data.y.tolist() == [0, 1]
    assert not recwarn


def three_classes(root, suffix="png"):
    for name in ("ant", "bee", "cat"):
        paint(root / name / f"1.{suffix if name == 'bee' else 'png'}", (0, 0, 0))


@pytest.mark.parametrize("suffix", ["tif", "gif", "ppm", "jfif", "TIFF", "jp2"])
def test_every_suffix_of_pillow_is_read(tmp_path, suffix):
    (tmp_path / "bee").mkdir()
    paint(tmp_path / "bee" / f"1.{suffix.lower()}", (0, 0, 0))
    (tmp_path / "bee" / f"1.{suffix.lower()}").rename(tmp_path / "bee" / f"a.{suffix}")
    assert folder(tmp_path).class_names == ("bee",)


@pytest.mark.parametrize("name", ["bee/1.heic", "bee/2.svg", "bee/3.eps", "bee/4.DNG"])
def test_pictures_that_are_not_read_are_named(tmp_path, name):
    three_classes(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"kind that is not read.*remove .*{name}"):
        folder(tmp_path)


def test_other_files_are_left_out_with_a_word(tmp_path):
    three_classes(tmp_path)
    (tmp_path / "labels.csv").write_text("a list")  # beside the classes: none of them
    for name in ("bee/boxes.json", "bee/1.txt", "cat/IMG_0001"):
        (tmp_path / name).write_text("")
    with pytest.warns(UserWarning, match="left out: .*1.txt, .*boxes.json, .*IMG_0001"):
        assert len(folder(tmp_path).data.y) == 3


def test_a_part_without_a_class_keeps_the_numbers_of_the_others(tmp_path):
    three_classes(tmp_path / "train")
    three_classes(tmp_path / "test")
    (tmp_path / "test" / "bee" / "1.png").unlink()
    names = folder(tmp_path / "train").class_names
    with pytest.raises(InputError, match="classes without images: bee; remove"):
        folder(tmp_path / "test")
    for _ in range(2):  # the empty folder, then none
        read = folder(tmp_path / "test", class_names=names)
        assert read.class_names == names and read.data.y.tolist() == [0, 2]
        if (tmp_path / "test" / "bee").exists():
            (tmp_path / "test" / "bee").rmdir()
    assert folder(tmp_path / "test").data.y.tolist() == [0, 1]  # its own numbers
    with pytest.raises(InputError, match="unknown class 'cat': expected.*ant, bee"):
        folder(tmp_path / "test", class_names=names[:2])


def test_groups_keep_their_numbers_too(tmp_path):
    paint(tmp_path / "cat" / "outdoor" / "1.png", (0, 0, 0))
    read = folder(tmp_path, group_names=("indoor", "outdoor"))
    assert read.groups.tolist() == [1] and read.group_names == ("indoor", "outdoor")


@pytest.mark.parametrize(
    "parts",
    [
        ("train", "test"),
        ("Train", "Val"),
        ("train",),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("train-images", "tests", "val_data"),
    ],
)
def test_a_root_of_parts_is_said_to_be_one(tmp_path, parts):
    for part in parts:
        three_classes(tmp_path / part)
    with pytest.raises(InputError, match=f"has the parts .*as .*{parts[0]}, with"):
        folder(tmp_path)


def test_what_stands_at_another_depth_is_named(tmp_path):
    three_classes(tmp_path)
    paint(tmp_path / "preview.png", (0, 0, 0))
    with pytest.raises(InputError, match="move or remove .*preview.png"):
        folder(tmp_path)
    (tmp_path / "preview.png").unlink()
    paint(tmp_path / "ant" / "old" / "1.png", (0, 0, 0))
    with pytest.raises(InputError, match="move or remove .*ant/old/1.png"):
        folder(tmp_path)
    paint(tmp_path / "ant" / "old" / "older" / "1.png", (0, 0, 0))
    with pytest.raises(InputError, match="older is a folder in a group"):
        folder(tmp_path)


def test_classes_and_files_may_be_links(tmp_path):
    paint(tmp_path / "pool" / "1.png", (1, 2, 3))
    root = tmp_path / "set"
    (root / "bee").mkdir(parents=True)
    (root / "ant").symlink_to(tmp_path / "pool")
    (root / "bee" / "2.png").symlink_to(tmp_path / "pool" / "1.png")
    (tmp_path / "link").symlink_to(root)
    read = folder(tmp_path / "link")
    assert read.class_names == ("ant", "bee") and len(read.data.x[:]) == 2
    (root / "bee" / "3.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match="bee/3.png is not a readable image"):
        folder(root)
    (root / "bee" / "3.png").unlink()
    (root / "bee" / "loop").symlink_to(root)
    with pytest.raises(InputError, match="is a folder in a group"):
        folder(root)


def test_all_files_that_cannot_be_read_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    names = ("ant/1.png", "cat/1.png")
    for name in names:
        (tmp_path / name).parent.mkdir()
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])  # the header is whole
    read = folder(tmp_path)
    with pytest.raises(InputError, match="2 images cannot be read: .*ant/1.*cat/1"):
        read.data.x[:]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="2 images cannot be read: .*ant/1.*cat/1"):
        folder(tmp_path)


def test_turned_photos_of_one_camera_have_one_size(tmp_path):
    paint(tmp_path / "a" / "1.jpg", (0, 0, 0), (20, 30))
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a" / "2.jpg", exif=exif)
    chex.assert_shape(folder(tmp_path).data.x[:], (2, 30, 20, 3))


def test_accents_are_one_name_on_every_system(tmp_path):
    paint(tmp_path / "cafe\u0301" / "1.png", (0, 0, 0))  # as macOS writes it
    assert folder(tmp_path, class_names=("caf\u00e9",)).data.y.tolist() == [0]


def test_every_second_image_is_flipped():
    image = np.zeros((1, 8, 8, 1), np.uint8)
    image[:, :, :4] = 255  # bright on the left, whatever the crop
    many = crop_and_flip(2)(np.repeat(image, 1000, 0), np.random.default_rng(0))
    left, right = many[:, 3, 2, 0] > 0, many[:, 3, 5, 0] > 0
    told = left != right
    assert told.mean() > 0.5
    assert right[told].mean() == pytest.approx(0.5, abs=0.06)


def test_resizing_is_bilinear():
    stripes = np.repeat([[0, 0, 200, 200]], 4, axis=0).astype(np.uint8)[..., None]
    assert resized(stripes, 3)[1, :, 0].tolist() == [
        pytest.approx(0, abs=15),
        100,
        pytest.approx(200, abs=15),
    ]


def test_the_newest_version_is_the_highest_number(tmp_path):
    for version in ("2.0.0", "10.0.0", "9.1.0"):
        home = tmp_path / "set" / version
        home.mkdir(parents=True)
        (home / "dataset_info.json").write_text("{}")
    assert find("set", tmp_path).name == "10.0.0"


@pytest.mark.parametrize("names", [[0, 1], ["a", "b", "a"], "ab", 5])
def test_names_of_classes_are_different_texts(tmp_path, names):
    paint(tmp_path / "a" / "1.png", (0, 0, 0))
    with pytest.raises(
        InputError, match="class_names must be a list of different names"
    ):
        folder(tmp_path, class_names=names)


def test_other_channels_are_refused(tmp_path):
    paint(tmp_path / "1.png", (0, 0, 0))
    with pytest.raises(InputError, match="read with 1 or 3 channels, got 4"):
        read_image(tmp_path / "1.png", 4)

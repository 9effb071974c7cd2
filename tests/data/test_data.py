import chex
import numpy as np
import pytest

from subtune_jax.data import batches
from subtune_jax.data.batches import Dataset
from subtune_jax.data.digits import digits
from subtune_jax.data.shifts import SHIFTS, shift
from subtune_jax.data.splits import split_balanced
from subtune_jax.errors import InputError


def numbered(examples=30, classes=3):
    index = np.arange(examples)
    return Dataset(
        np.stack([index, index], 1).astype(np.float32),
        (index % classes).astype(np.int32),
    )


def test_an_epoch_has_every_example_once_in_an_order_of_its_own():
    data = numbered(10)
    passes = [
        [b for b in batches.epoch(data, 4, seed=[1], number=n, drop=False)]
        for n in (0, 0, 1)
    ]
    orders = [[int(i) for b in p for i in b.x[b.weight > 0][:, 0]] for p in passes]
    assert sorted(orders[0]) == list(range(10))
    assert orders[0] == orders[1] != orders[2]
    assert [b.weight.sum() for b in passes[0]] == [4, 4, 2]
    assert all(b.x.shape == (4, 2) for b in passes[0])
    assert len(list(batches.epoch(data, 4, seed=[1], number=0, drop=True))) == 2


def test_parts_are_disjoint_balanced_and_seeded():
    data = numbered(90)
    parts, again, other = (
        split_balanced(
            data, {"train": 30, "validation": 9, "test": None}, np.random.default_rng(s)
        )
        for s in (0, 0, 1)
    )
    ids = {name: set(part.x[:, 0].astype(int)) for name, part in parts.items()}
    assert {name: len(i) for name, i in ids.items()} == {
        "train": 30,
        "validation": 9,
        "test": 51,
    }
    assert set.union(*ids.values()) == set(range(90))
    assert np.bincount(parts["train"].y).tolist() == [10, 10, 10]
    np.testing.assert_array_equal(parts["train"].x, again["train"].x)
    assert np.any(parts["train"].x != other["train"].x)


def test_a_size_that_classes_do_not_divide_is_as_even_as_it_can_be():
    parts = split_balanced(numbered(), {"train": 10}, np.random.default_rng(0))
    assert sorted(np.bincount(parts["train"].y).tolist()) == [3, 3, 4]


def test_more_examples_than_there_are_is_refused():
    with pytest.raises(
        InputError, match="60 train examples are more than there are: class 0 has 10"
    ):
        split_balanced(numbered(), {"train": 60}, np.random.default_rng(0))
    with pytest.raises(InputError, match="train examples must be a positive number"):
        split_balanced(numbered(), {"train": 0}, np.random.default_rng(0))


def test_parts_that_leave_nothing_for_the_rest_are_refused():
    with pytest.raises(InputError, match="no test examples are left"):
        split_balanced(numbered(), {"train": 30, "test": None}, 0)


def test_digits_are_the_real_ones():
    data = digits()
    chex.assert_shape(data.x, (1797, 8, 8, 1))
    assert data.x.dtype == np.uint8
    assert (data.x.min(), data.x.max(), len(np.unique(data.x))) == (0, 255, 17)
    assert np.bincount(data.y).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_changes_what_its_level_says(name):
    data = digits()
    made = shift(name)
    source = made.source(data)
    target = made.target(data, np.random.default_rng(0))
    if made.level == "input":
        np.testing.assert_array_equal(source.x, data.x)
        np.testing.assert_array_equal(target.y, data.y)
        chex.assert_shape(target.x, data.x.shape)
        assert target.x.dtype == np.uint8
        assert np.abs(target.x.astype(float) - data.x).mean() > 0.05 * 255
    if made.level == "output":
        np.testing.assert_array_equal(target.x, data.x)
        assert not np.any(target.y == data.y)
        assert len(set(zip(data.y.tolist(), target.y.tolist(), strict=True))) == 10


def test_subpopulations_share_superclasses_and_no_image():
    data = digits()
    made = shift("subpopulation")
    source, target = made.source(data), made.target(data, np.random.default_rng(0))
    assert len(source.y) + len(target.y) == 1797
    assert set(source.y) == set(target.y) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(target.x[target.y == 2], data.x[data.y == 7])


def test_contrast_and_flip_of_a_literal_image():
    x = np.array([0, 200, 100, 100], np.uint8).reshape(1, 2, 2, 1)
    made = shift("contrast").target(Dataset(x, np.array([3])), np.random.default_rng(0))
    assert made.x.ravel().tolist() == [85, 115, 100, 100]
    flipped = shift("label_flip").target(
        Dataset(x, np.arange(10)), np.random.default_rng(0)
    )
    assert flipped.y.tolist() == list(range(9, -1, -1))


def test_an_unknown_shift_shows_the_nearest():
    with pytest.raises(
        InputError, match="unknown shift 'gausian_noise'.*mean 'gaussian_noise'"
    ):
        shift("gausian_noise")


def test_every_class_may_get_the_example_that_is_left_over():
    more = set()
    for seed in range(20):
        part = split_balanced(numbered(), {"train": 10}, np.random.default_rng(seed))
        more.add(int(np.argmax(np.bincount(part["train"].y))))
    assert more == {0, 1, 2}


def test_contrast_keeps_the_mean_of_every_image():
    x = np.stack([np.full((2, 2, 1), 40), np.full((2, 2, 1), 200)]).astype(np.uint8)
    made = shift("contrast").target(Dataset(x, np.arange(2)), np.random.default_rng(0))
    np.testing.assert_array_equal(made.x, x)


def test_blur_is_a_gaussian_of_one_pixel_in_each_channel():
    x = np.zeros((1, 9, 9, 2), np.uint8)
    x[0, 4, 4, 0] = 250
    made = shift("blur").target(Dataset(x, np.arange(1)), np.random.default_rng(0)).x
    taps = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    taps /= taps.sum()
    expected = np.round(250 * np.outer(taps, taps))
    np.testing.assert_allclose(made[0, :, :, 0], expected, atol=1)
    assert made[0, 4, 4, 0] == 40 and not made[..., 1].any()


def test_noise_has_a_deviation_of_102_levels():
    x = np.full((50, 20, 20, 1), 128, np.uint8)
    made = shift("gaussian_noise").target(
        Dataset(x, np.arange(50)), np.random.default_rng(0)
    )
    inside = np.mean((made.x > 128 - 102) & (made.x < 128 + 102))
    assert inside == pytest.approx(0.683, abs=0.01)


def test_every_batch_is_augmented_by_numbers_of_its_own():
    drawn = []

    def augment(x, rng):
        drawn.append(rng.random())
        return x

    settings = {"seed": [3], "drop": False, "augment": augment}
    for number in (1, 2):
        list(batches.epoch(numbered(12), 4, number=number, **settings))
    assert len(set(drawn)) == len(drawn) == 6

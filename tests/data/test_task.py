"""Parts of a task: disjoint, balanced, seeded, and the test part sealed."""

import numpy as np
import pytest

from subtune_jax.data.batches import Dataset
from subtune_jax.data.folders import LazyImages
from subtune_jax.data.splits import balanced_folds
from subtune_jax.data.task import Sealed, fold_tasks, split_task, test_once
from subtune_jax.errors import InputError
from subtune_jax.metrics import accuracy
from tests import toy

SIZES = {"train": 12, "validation": 6, "test": None}


def numbered(count=30, classes=3):
    x = np.arange(count, dtype=np.float32)[:, None]
    return Dataset(x, (np.arange(count) % classes).astype(np.int32))


def seen(data):
    return set(np.ravel(data.x).tolist())


def test_parts_are_disjoint_balanced_and_seeded():
    one, again, other = (split_task(toy.mlp(), numbered(), SIZES, s) for s in (0, 0, 1))
    parts = [seen(p) for p in (one.train, one.validation, one.test._data)]
    assert [len(p) for p in parts] == [12, 6, 12]
    assert set.union(*parts) == set(range(30))
    assert np.bincount(one.train.y).tolist() == [4, 4, 4]
    np.testing.assert_array_equal(one.train.x, again.train.x)
    assert seen(one.train) != seen(other.train)


def test_a_sealed_part_shows_its_size_and_nothing_else():
    sealed = split_task(toy.mlp(), numbered(), SIZES, 0).test
    assert len(sealed) == 12 and "12 examples" in repr(sealed)
    assert not hasattr(sealed, "x") and not hasattr(sealed, "y")


def test_every_test_part_is_scored_by_its_metric():
    task = split_task(toy.mlp(), numbered(), SIZES, 0)
    third = Dataset(np.zeros((2, 1), np.float32), np.array([1, 0], np.int32))
    task = task._replace(also={"third": (Sealed(third), accuracy)})
    scores = test_once(lambda data: np.eye(3)[np.zeros_like(data.y)], task)
    share = 100 * float(np.mean(task.test._data.y == 0))
    assert scores == {"accuracy": share, "third": 50.0}


def test_groups_are_balanced_by_pairs_and_the_worst_pair_counts():
    data, groups = numbered(40, 2), np.repeat([0, 1], 20)
    task = split_task(
        toy.mlp(), data, {"train": 8, "validation": 8, "test": None}, 0, groups
    )
    assert task.metric == "worst-group accuracy"
    pairs = [
        (int(y), int(x >= 20))
        for x, y in zip(task.train.x[:, 0], task.train.y, strict=True)
    ]
    assert {pair: pairs.count(pair) for pair in pairs} == {
        (y, g): 2 for y in (0, 1) for g in (0, 1)
    }
    right = np.eye(2)[task.validation.y]
    assert task.metrics["validation"](right, task.validation.y) == 100
    with pytest.raises(InputError, match="the test part has no image of"):
        sizes = {"train": 8, "validation": 28, "test": 1}
        split_task(toy.mlp(), data, sizes, 0, groups)


def test_folds_share_out_the_training_part_and_keep_the_test_sealed():
    task = split_task(toy.mlp(), numbered(), SIZES, 0)
    folds = fold_tasks(task, 4, 0)
    assert [len(f.validation.y) for f in folds] == [3, 3, 3, 3]
    for fold in folds:
        assert seen(fold.train) | seen(fold.validation) == seen(task.train)
        assert not seen(fold.train) & seen(fold.validation)
        assert np.bincount(fold.validation.y).tolist() == [1, 1, 1]
        assert fold.test is task.test
    again = fold_tasks(task, 4, 0)[0].validation.x
    np.testing.assert_array_equal(folds[0].validation.x, again)


@pytest.mark.parametrize("count", [1, 31])
def test_folds_that_cannot_be_are_said(count):
    with pytest.raises(InputError, match="folds must be from 2 to 30 here"):
        balanced_folds(numbered().y, count, 0)


def test_every_fold_has_every_class_or_is_refused():
    y = np.array([0] * 9 + [1] * 3)
    folds = balanced_folds(y, 3, 0)
    assert [np.bincount(y[fold]).tolist() for fold in folds] == [[3, 1]] * 3
    with pytest.raises(
        InputError, match="4 folds need 4 examples of every class: class 1"
    ):
        balanced_folds(y, 4, 0)


def test_images_that_are_read_lazily_are_read_once():
    reads = []

    def read(i):
        reads.append(i)
        return np.full((2, 2, 1), i, np.uint8)

    data = Dataset(LazyImages(read, np.arange(30)), numbered().y)
    task = split_task(toy.mlp(), data, SIZES, 0)
    assert sorted(reads) == list(range(30))
    assert task.train.x.shape == (12, 2, 2, 1) and len(reads) == 30


def test_a_network_is_no_predictor_and_other_parts_are_said():
    task = split_task(toy.mlp(), numbered(), SIZES, 0)
    with pytest.raises(InputError, match="lambda data: predict.network, data."):
        test_once(task.network, task)
    for sizes in ({"train": 9, "validation": 9}, SIZES | {"valid": 3}):
        with pytest.raises(InputError, match="parts train, validation and test, got"):
            split_task(toy.mlp(), numbered(), sizes, 0)

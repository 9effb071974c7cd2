"""A task: a pretrained network, and disjoint parts of the data it is to learn."""

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.classes import match_classes, named_outputs
from subtune_jax.data.folders import LazyImages
from subtune_jax.data.inputs import require_pairs, require_rows, require_targets
from subtune_jax.data.splits import balanced_folds, balanced_indices
from subtune_jax.errors import InputError, require_function, require_type, require_whole
from subtune_jax.metrics import Metric, accuracy, worst_group_accuracy
from subtune_jax.network import Network, require_network


class Sealed:
    """Data that nothing may see before the choice is made; only `test_once` opens it."""

    def __init__(self, data: Dataset):
        self._data = data

    def __len__(self) -> int:
        return len(self._data.y)

    def __repr__(self) -> str:
        return f"Sealed({len(self):,} examples, see test_once)"


class Task(NamedTuple):
    """A network pretrained on the source, and the target's disjoint parts.

    `metrics` score the validation and the test part; both are called `metric`. `also`
    is what else the chosen network is tested on, `{name: (sealed data, metric)}`.
    """

    network: Network
    train: Dataset
    validation: Dataset
    test: Sealed
    metrics: Mapping[str, Metric] = {"validation": accuracy, "test": accuracy}
    metric: str = "accuracy"
    also: Mapping[str, tuple[Sealed, Metric]] = {}

    def __repr__(self) -> str:
        parts = (
            f"{len(self.train.y):,} to train, {len(self.validation.y):,} to validate"
        )
        return f"Task({self.network}, {parts}, {self.test})"


def test_once(predictor: Callable[[Dataset], Any], task: Task) -> dict[str, Any]:
    """Returns the scores of a chosen predictor on the test parts, `{metric: score}`.

    predictor(data) -> outputs of all examples. Choose by `task.validation` first: a score
    that was looked at twice is not a test score. Raises `InputError` for a network.
    """
    if isinstance(predictor, Network):
        raise InputError(
            "test_once takes a function of a data set: what tune returned, or "
            "lambda data: predict(network, data)"
        )
    require_function(1, predictor=predictor)
    tests = {task.metric: (task.test, task.metrics["test"]), **task.also}
    return {
        name: metric(predictor(sealed._data), sealed._data.y)
        for name, (sealed, metric) in tests.items()
    }


setattr(test_once, "__test__", False)  # noqa: B010  # pytest would collect it by its name


def split_task(
    network: Network,
    data: Dataset,
    sizes: Mapping[str, int | None],
    seed: int | np.random.Generator,
    groups: np.ndarray | None = None,
) -> Task:
    """Returns the task of a labelled set: disjoint, class-balanced, seeded parts.

    sizes: of `train`, `validation` and `test`; `None` as the last takes what is left.
    groups: int[examples]; parts are then balanced over pairs of class and group, and the
    metric is the accuracy of the worst pair. Where labels have names, they become those of
    the network's outputs (`match_classes`), and name the outputs of a fresh head. Raises
    `InputError` for other parts, other names, when a class has too few examples, and where
    a scored part lacks a pair.
    """
    require_network(network)
    require_type(Dataset, data=data)
    require_targets(data.y)
    require_pairs(require_rows(data.x), data.y)
    if data.y.ndim != 1 or data.y.dtype.kind not in "iu":
        raise InputError(
            f"a task is split by class: expected integer labels [examples], got "
            f"{data.y.dtype}{list(data.y.shape)}"
        )
    if not isinstance(sizes, Mapping):
        raise InputError("sizes are a dict of the parts train, validation and test")
    for part, size in sizes.items():
        if size is not None:
            require_whole(**{f"the size of {part}": size})
    if not isinstance(seed, Integral | np.random.Generator):
        raise InputError(f"seed must be a whole number, got {type(seed).__name__}")
    if set(sizes) != {"train", "validation", "test"}:
        raise InputError(
            f"sizes are of the parts train, validation and test, got {', '.join(sizes)}"
        )
    pairs = data.y if groups is None else class_group_pairs(data.y, groups)
    indices = balanced_indices(
        pairs, sizes, seed
    )  # alike for every order of the outputs
    data = match_classes(data, network)
    network = named_outputs(network, data)
    train, validation, test = (
        in_memory(data.only(indices[part])) for part in ("train", "validation", "test")
    )
    task = Task(network, train, validation, Sealed(test))
    if groups is None:
        return task
    scored = {part: pairs[indices[part]] for part in ("validation", "test")}
    for part, seen in scored.items():
        _require_pairs(part, set(pairs.tolist()) - set(seen.tolist()))
    return task._replace(
        metrics={part: worst_group_accuracy(seen) for part, seen in scored.items()},
        metric="worst-group accuracy",
    )


def in_memory(data: Dataset) -> Dataset:
    """Returns the data with its lazily loaded images read: an epoch takes each again."""

    def read(leaf: Any) -> Any:
        return leaf[:] if isinstance(leaf, LazyImages) else leaf

    return data._replace(x=jax.tree.map(read, data.x))


def class_group_pairs(classes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns a number for each pair of class and group, int[examples]."""
    return classes * (int(groups.max()) + 1) + groups


def fold_tasks(task: Task, count: int, seed: int) -> tuple[Task, ...]:
    """Returns `count` tasks whose validation parts are disjoint folds of the training part.

    Each trains on the other folds. The folds are class-balanced and seeded; the test part
    stays sealed and is that of the task. Raises `InputError` for fewer than 2 folds, or
    more than there are examples.
    """
    folds = balanced_folds(task.train.y, count, seed)
    return tuple(
        task._replace(
            train=task.train.only(
                np.concatenate([f for j, f in enumerate(folds) if j != i])
            ),
            validation=task.train.only(fold),
        )
        for i, fold in enumerate(folds)
    )


def _require_pairs(part: str, lost: set[int]) -> None:
    if lost:
        raise InputError(
            f"the {part} part has no image of {len(lost)} of the pairs of class and "
            "group, and the worst may be one of them: choose other sizes"
        )

"""Disjoint, class-balanced, seeded parts of a labelled set."""

from collections.abc import Mapping

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError, require_positive


def split_balanced(
    data: Dataset, sizes: Mapping[str, int | None], seed: int | np.random.Generator
) -> dict[str, Dataset]:
    """Returns disjoint named parts, each with the classes as even as its size allows.

    See `balanced_indices`.
    """
    indices = balanced_indices(data.y, sizes, seed)
    return {name: data.take(index) for name, index in indices.items()}


def balanced_indices(
    y: np.ndarray, sizes: Mapping[str, int | None], seed: int | np.random.Generator
) -> dict[str, np.ndarray]:
    """Returns the examples of disjoint named parts, as even over the values of `y`
    (classes, or pairs of class and group) as their sizes allow.

    `None` as the last size takes what is left. Where a size is no multiple of the
    number of classes, classes drawn at random give one more. Raises `InputError` when
    a class has too few examples, and for values that are no classes.
    """
    _require_classes(y)
    rng, classes = np.random.default_rng(seed), np.unique(y)
    left = {c: rng.permutation(np.flatnonzero(y == c)) for c in classes}
    parts = {}
    for name, size in sizes.items():
        wanted = _per_class(left, size, rng, name)
        chosen = [left[c][: wanted[c]] for c in classes]
        left = {c: left[c][wanted[c] :] for c in classes}
        parts[name] = rng.permutation(np.concatenate(chosen))
    return parts


def balanced_folds(
    y: np.ndarray, count: int, seed: int | np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Returns `count` disjoint folds of all examples, each as even over the values of `y`
    as it can be, int[n] each.

    Raises `InputError` unless there are 2 folds or more, and an example of every class for
    each of them, and for values that are no classes.
    """
    _require_classes(y)
    _require_folds(count, len(y))
    values, counts = np.unique(y, return_counts=True)
    if counts.min() < count:
        fewest = values[counts.argmin()]
        raise InputError(
            f"{count} folds need {count} examples of every class: class {fewest} has "
            f"{counts.min()}"
        )
    rng = np.random.default_rng(seed)
    # Classes one after the other, each shuffled, are dealt out like cards.
    order = [rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y)]
    dealt = np.concatenate(order)
    return tuple(rng.permutation(dealt[fold::count]) for fold in range(count))


def shuffled_folds(
    examples: int, count: int, seed: int | np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Returns `count` disjoint folds of all examples, whatever their classes, int[n] each.

    For sets in which some class has fewer examples than there are folds. Raises
    `InputError` unless there are 2 folds or more, and an example for each of them.
    """
    _require_folds(count, examples)
    return tuple(
        np.array_split(np.random.default_rng(seed).permutation(examples), count)
    )


def _require_folds(count: int, examples: int) -> None:
    if not 2 <= count <= examples:
        raise InputError(f"folds must be from 2 to {examples} here, got {count!r}")


def _per_class(
    left: Mapping[int, np.ndarray],
    size: int | None,
    rng: np.random.Generator,
    name: str,
) -> dict[int, int]:
    if size is None:
        if not any(len(index) for index in left.values()):
            raise InputError(f"no {name} examples are left: the other parts took all")
        return {c: len(index) for c, index in left.items()}
    require_positive(**{f"{name} examples": size})
    base, extra = divmod(size, len(left))
    lucky = set(rng.permutation(list(left))[:extra].tolist())
    wanted = {c: base + (c in lucky) for c in left}
    for c, index in left.items():
        if wanted[c] > len(index):
            raise InputError(
                f"{size} {name} examples are more than there are: class {c} has "
                f"{len(index)} left, {wanted[c]} are needed"
            )
    return wanted


def _require_classes(y: np.ndarray) -> None:
    """Raises `InputError` unless values are whole numbers from 0 up, one an example."""
    y = np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise InputError(
            f"parts are drawn by class: expected integer labels [examples], got "
            f"{y.dtype}{list(y.shape)}"
        )
    if len(y) and y.min() < 0:
        raise InputError(
            f"{(y < 0).sum()} of {len(y)} labels are below 0, as sets have them where the "
            "label is hidden: leave these examples out, data.only(np.flatnonzero(data.y >= "
            "0))"
        )

"""BREEDS: superclasses of ImageNet whose subclasses differ between source and target.

Santurkar, Tsipras and Madry 2021. The construction is that of their code
(github.com/MadryLab/robustness, `tools/breeds_helpers.py`, seed 2); the hierarchy is
three files of github.com/MadryLab/BREEDS-Benchmarks, `imagenet_class_hierarchy/modified`,
which do not come with this project.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError, unknown

FILES = ("class_hierarchy.txt", "node_names.txt", "dataset_class_info.json")
ROOT, SEED = "n00001740", 2
SPLITS = ("rand", "good", "bad")


class Benchmark(NamedTuple):
    """Superclasses at a depth below the root (under an ancestor, if any), each with the
    same number of subclasses, half of them for the source."""

    level: int
    subclasses: int
    ancestor: str | None = None


BENCHMARKS = {
    "entity13": Benchmark(3, 20),
    "entity30": Benchmark(4, 8),
    "living17": Benchmark(5, 4, "n00004258"),
    "nonliving26": Benchmark(5, 4, "n00021939"),
}


class Superclass(NamedTuple):
    """A class of the task, and the ImageNet classes it is made of on either side."""

    name: str
    source: tuple[int, ...]
    target: tuple[int, ...]


class Hierarchy(NamedTuple):
    """Nodes above the classes: their children (sorted), names, and class numbers."""

    children: Mapping[str, tuple[str, ...]]
    names: Mapping[str, str]
    numbers: Mapping[str, int]  # of the leaves


def breeds(name: str, folder: str | Path, split: str = "rand") -> list[Superclass]:
    """Returns the superclasses of a benchmark, in the order of their labels.

    `split`: `rand`, `good` (similar subclasses on both sides) or `bad`. Raises
    `InputError` for an unknown benchmark or split, and for a folder without the files.
    """
    if name not in BENCHMARKS:
        raise unknown("BREEDS benchmark", name, BENCHMARKS)
    return superclasses(read(Path(folder)), BENCHMARKS[name], split)


def read(folder: Path) -> Hierarchy:
    """Returns the hierarchy of a folder, cut down to what lies above a class."""
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{folder} has no {', '.join(missing)}: expected the files of "
            "github.com/MadryLab/BREEDS-Benchmarks, imagenet_class_hierarchy/modified"
        )
    edges, names, classes = ((folder / name).read_text() for name in FILES)
    numbers = {wnid: number for number, wnid, *_ in json.loads(classes)}
    children: dict[str, set[str]] = {}
    for line in edges.splitlines():
        parent, child = line.split()
        children.setdefault(parent, set()).add(child)
    labels = dict(line.strip().split("\t")[:2] for line in names.splitlines())
    return Hierarchy(_above(children, numbers), labels, numbers)


def _above(
    children: Mapping[str, set[str]], leaves: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    @cache
    def leads(node: str) -> bool:
        return node in leaves or any(leads(child) for child in children.get(node, ()))

    kept = {node: sorted(filter(leads, below)) for node, below in children.items()}
    return {node: tuple(below) for node, below in kept.items() if below}


def superclasses(
    hierarchy: Hierarchy, benchmark: Benchmark, split: str = "rand"
) -> list[Superclass]:
    """Returns the superclasses that have enough subclasses; raises `InputError` for an
    unknown split, and where there is none."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    depths, rng = _depths(hierarchy), np.random.RandomState(SEED)
    below = {ROOT} | depths.keys()
    if benchmark.ancestor is not None:
        below = _descendants(hierarchy, benchmark.ancestor)
    nodes = [
        node
        for node in sorted(depths)
        if depths[node] == benchmark.level
        and node in below
        and len(_leaves(hierarchy, node)) >= benchmark.subclasses
    ]
    if not nodes:
        raise InputError(f"the hierarchy has no superclass for {benchmark}")
    classes = []
    for node in nodes:
        parts = _parts(hierarchy, node, benchmark.subclasses // 2, split, rng)
        sides = (tuple(hierarchy.numbers[leaf] for leaf in part) for part in parts)
        classes.append(Superclass(hierarchy.names.get(node, node), *sides))
    return classes


def _depths(hierarchy: Hierarchy) -> dict[str, int]:
    """Returns the longest way from the root to every node."""
    depths, todo = {ROOT: 0}, [ROOT]
    while todo:
        deeper = set()
        for node in todo:
            for child in hierarchy.children.get(node, ()):
                if depths.get(child, -1) < depths[node] + 1:
                    depths[child] = depths[node] + 1
                    deeper.add(child)
        todo = sorted(deeper)
    return depths


def _descendants(hierarchy: Hierarchy, node: str) -> set[str]:
    below, todo = {node}, [node]
    while todo:
        new = set(hierarchy.children.get(todo.pop(), ())) - below
        below |= new
        todo += new
    return below


def _leaves(hierarchy: Hierarchy, node: str) -> list[str]:
    """Returns the classes below a node, sorted; below a class nothing is looked for."""
    if node in hierarchy.numbers:
        return [node]
    children = hierarchy.children.get(node, ())
    return sorted({leaf for child in children for leaf in _leaves(hierarchy, child)})


def _parts(
    hierarchy: Hierarchy, node: str, half: int, split: str, rng: np.random.RandomState
) -> tuple[list[str], list[str]]:
    """Returns `half` subclasses for the source and as many others for the target."""
    while len(hierarchy.children[node]) == 1:
        (node,) = hierarchy.children[node]
    groups = [_leaves(hierarchy, child) for child in hierarchy.children[node]]
    if split == "rand":
        every = sorted(leaf for group in groups for leaf in group)
        drawn = rng.choice(every, 2 * half, replace=False).tolist()
        return drawn[:half], drawn[half:]
    groups = sorted(groups, key=len, reverse=True)
    return (_apart if split == "bad" else _alike)(groups, half)


def _alike(groups: list[list[str]], half: int) -> tuple[list[str], list[str]]:
    """Shares every group between the sides."""
    source: list[str] = []
    target: list[str] = []
    for group in groups:
        cut = min(len(group) // 2, half - len(source))
        if len(group) == 1:
            cut = 1 if len(source) < half else 0
        room = half - len(target)
        source += group[:cut]
        target += group[cut : cut + room]
    return source, target


def _apart(groups: list[list[str]], half: int) -> tuple[list[str], list[str]]:
    """Gives every group to one side, as far as it has room; the rest fills up."""
    source: list[str] = []
    target: list[str] = []
    spare: list[str] = []
    for group in groups:
        if len(source) <= len(target) and len(source) < half:
            side = source
        elif len(target) < half:
            side = target
        else:
            continue
        room = half - len(side)
        side += group[:room]
        spare += group[room:]
    for side in (source, target):
        side += spare[: half - len(side)]
    return source, target


def subpopulations(data: Dataset, classes: list[Superclass], side: str) -> Dataset:
    """Returns the images of the superclasses' `source` or `target` classes, labelled by
    superclass; raises `InputError` for another side or where none of them is there."""
    if side not in ("source", "target"):
        raise unknown("side", side, ("source", "target"))
    label = {
        number: index
        for index, one in enumerate(classes)
        for number in getattr(one, side)
    }
    chosen = np.flatnonzero(np.isin(data.y, list(label)))
    if not len(chosen):
        raise InputError(f"the data have no image of a {side} class")
    part = data.only(chosen)
    y = np.array([label[y] for y in part.y.tolist()], np.int32)
    return part._replace(y=y, classes=tuple(one.name for one in classes))

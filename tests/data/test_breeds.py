"""BREEDS on a hierarchy that a reader can draw.

root - animals - (one, two, three: a level each) - cats  - wild (lion tiger), home (tom)
                                                 - dogs  - dog (rex max fido spot)
                                                 - birds - (robin)
"""

import json

import numpy as np
import pytest

from subtune_jax.data.batches import Dataset
from subtune_jax.data.breeds import (
    BENCHMARKS,
    Benchmark,
    breeds,
    read,
    subpopulations,
    superclasses,
)
from subtune_jax.errors import InputError

EDGES = """
n00001740 n00004258
n00004258 one
one two
two three
three cats
three dogs
three birds
cats wild
cats home
wild lion
wild tiger
home tom
home kitty
dogs dog
dog rex
dog max
dog fido
dog spot
birds robin
one nothing
"""
LEAVES = ("lion", "tiger", "tom", "kitty", "rex", "max", "fido", "spot", "robin")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "class_hierarchy.txt").write_text(EDGES.strip() + "\n")
    (tmp_path / "node_names.txt").write_text("cats\tcat family\ndogs\tdog family\n")
    classes = [[i, name, name] for i, name in enumerate(LEAVES)]
    (tmp_path / "dataset_class_info.json").write_text(json.dumps(classes))
    return tmp_path


def test_superclasses_have_enough_subclasses_half_on_each_side(folder):
    cats, dogs = breeds("living17", folder)
    assert (cats.name, dogs.name) == ("cat family", "dog family")
    assert sorted(cats.source + cats.target) == [0, 1, 2, 3]
    assert sorted(dogs.source + dogs.target) == [4, 5, 6, 7]
    assert len(cats.source) == len(dogs.source) == 2


def test_good_splits_mix_groups_and_bad_ones_keep_them_apart(folder):
    good, bad = (breeds("living17", folder, split)[0] for split in ("good", "bad"))
    assert {len({0, 1} & set(side)) for side in good[1:]} == {1}
    assert {frozenset(side) for side in bad[1:]} == {
        frozenset({0, 1}),
        frozenset({2, 3}),
    }


def test_a_node_is_as_deep_as_its_longest_way_and_leads_to_a_class(folder):
    (folder / "class_hierarchy.txt").write_text(EDGES.strip() + "\nn00001740 cats\n")
    hierarchy = read(folder)
    assert "nothing" not in hierarchy.children["one"]
    found = superclasses(hierarchy, Benchmark(5, 4))
    assert [one.name for one in found] == ["cat family", "dog family"]


def test_images_are_relabelled_by_superclass(folder):
    classes = breeds("living17", folder, "bad")
    data = Dataset(np.arange(9), np.arange(9, dtype=np.int32))
    parts = {side: subpopulations(data, classes, side) for side in ("source", "target")}
    for side, part in parts.items():
        want = {
            i: label for label, one in enumerate(classes) for i in getattr(one, side)
        }
        assert dict(zip(part.x.tolist(), part.y.tolist(), strict=True)) == want
    together = {*parts["source"].x.tolist(), *parts["target"].x.tolist()}
    assert together == set(range(8))


def test_the_benchmarks_are_those_of_the_paper():
    assert BENCHMARKS["living17"] == (5, 4, "n00004258")
    assert BENCHMARKS["entity30"] == (4, 8, None)


def test_what_cannot_be_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="unknown BREEDS benchmark 'living18'"):
        breeds("living18", folder)
    with pytest.raises(InputError, match="unknown split 'random'"):
        breeds("living17", folder, "random")
    with pytest.raises(InputError, match="no class_hierarchy.txt, node_names.txt"):
        breeds("living17", tmp_path / "nowhere")
    with pytest.raises(InputError, match="the hierarchy has no superclass"):
        breeds("entity13", folder)
    with pytest.raises(InputError, match="no image of a target class"):
        data = Dataset(np.zeros(1), np.array([8], np.int32))
        subpopulations(data, breeds("living17", folder), "target")

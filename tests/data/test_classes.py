"""Names of classes travel with data, and labels are numbered as a kept head's outputs."""

import jax
import numpy as np
import pytest

from subtune_jax.data.classes import match_classes
from subtune_jax.data.task import split_task
from subtune_jax.data.text import glue
from subtune_jax.data.tfds import images
from subtune_jax.data.tokenizer_files import tokenizer
from subtune_jax.deltas.extract import extract
from subtune_jax.errors import InputError
from subtune_jax.head import replace_head
from subtune_jax.models.load import class_names, load_pretrained
from subtune_jax.network import Source
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate
from tests import toy
from tests.data.test_inputs import refused

NLI = ("contradiction", "entailment", "neutral")  # as many checkpoints have it
GLUE = ("entailment", "neutral", "contradiction")


def named(network, *classes):
    return network._replace(source=Source(classes=classes))


def test_labels_become_the_outputs_of_their_names():
    network = named(toy.mlp(), *NLI)
    data = toy.points(6)._replace(y=np.array([0, 1, 2, 2, 1, 0]), classes=GLUE)
    assert match_classes(data, network).y.tolist() == [1, 2, 0, 0, 2, 1]
    assert match_classes(data, network).classes == NLI
    assert match_classes(match_classes(data, network), network).y.tolist() == [
        *(1, 2, 0, 0, 2, 1)
    ]


@pytest.mark.parametrize(
    ("names", "outputs", "labels"),
    [
        (("no", "yes"), ("YES", "NO"), [1, 0]),
        (("entailment", "not_entailment"), ("Not entailment", "Entailment"), [1, 0]),
        (("cat", "ant"), ("ant", "bee", "cat"), [2, 0]),  # a part without a class
        (("a", "b"), (), [0, 1]),
        ((), ("a", "b"), [0, 1]),
    ],
)
def test_names_are_compared_without_case_and_punctuation(names, outputs, labels):
    data = toy.points(2)._replace(y=np.array([0, 1]), classes=names)
    assert match_classes(data, named(toy.mlp(), *outputs)).y.tolist() == labels


@pytest.mark.parametrize("names", [("cat", "dog"), ("ant", "bee", "cow"), ("a", "a")])
def test_names_that_do_not_fit_are_shown_beside_the_outputs(names):
    data = toy.points(8)._replace(y=np.zeros(8, int), classes=names)
    network = named(toy.mlp(), "ant", "bee", "a", "A")
    with pytest.raises(InputError, match=f"classes {', '.join(names)}, and.*ant, bee"):
        match_classes(data, network)


def test_other_orders_are_refused_wherever_data_are_taken():
    data = toy.points(64)._replace(classes=GLUE)
    names = ("fit", "sweep", "evaluate")
    refused(named(toy.mlp(), *NLI), data, "entailment, neutral, cont.*match_cla", names)
    assert evaluate(named(toy.mlp(), *GLUE), data) == evaluate(toy.mlp(), data)
    fresh = replace_head(named(toy.mlp(), *NLI), 3, jax.random.key(0))
    evaluate(fresh, data)  # a fresh head's outputs have no names yet


def test_a_task_numbers_its_labels_by_the_head_and_names_a_fresh_one():
    data = toy.points(60)._replace(classes=GLUE)
    sizes = {"train": 30, "validation": 15, "test": None}
    plain = split_task(toy.mlp(), data, sizes, 0)
    task = split_task(named(toy.mlp(), *NLI), data, sizes, 0)
    assert task.train.y.tolist() == [(1, 2, 0)[y] for y in plain.train.y]
    fresh = replace_head(named(toy.mlp(), *NLI), 3, jax.random.key(0))
    assert split_task(fresh, data, sizes, 0).network.source.classes == GLUE
    with pytest.raises(InputError, match="the network's head has ant, bee"):
        split_task(named(toy.mlp(), "ant", "bee"), data, sizes, 0)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"1": "yes", "0": "no"}}, ("no", "yes")),
        ({"id2label": {"10": "k", **{str(i): "ab"[i % 2] for i in range(10)}}}, None),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ()),
        ({"label_names": ["a", "b"]}, ("a", "b")),
        ({"class_names": ["a", "b"]}, ("a", "b")),
        ({}, ()),
    ],
)
def test_a_configuration_names_the_outputs(config, names):
    read = class_names(config)
    assert read == (tuple("ababababab") + ("k",) if names is None else names)


def test_glue_has_its_names(real_data, minilm):
    words = tokenizer(minilm)
    data = glue("rte", "validation", real_data / "tfds", words, 32)
    assert data.classes == ("entailment", "not_entailment")
    matched = match_classes(data, named(toy.mlp(), "NOT_ENTAILMENT", "ENTAILMENT"))
    np.testing.assert_array_equal(matched.y, 1 - data.y)
    assert not glue("stsb", "validation", real_data / "tfds", words, 32).classes


def test_images_have_their_names(real_data):
    for name in ("cifar10", "cifar10_corrupted/contrast_5"):
        data = images(name, "test[:50]", real_data / "tfds")
        assert data.classes[3] == "cat" and data.take(np.arange(3)).classes[3] == "cat"
    network = load_pretrained(real_data / "weights" / "resnet20_cifar10")
    turned = network._replace(
        source=network.source._replace(classes=network.source.classes[::-1])
    )
    np.testing.assert_array_equal(match_classes(data, turned).y, 9 - data.y)


@pytest.mark.parametrize(
    ("names", "outputs", "labels"),
    [
        (("-", "+"), ("+", "-"), [1, 0]),
        (("-1", "1"), ("1", "-1"), [1, 0]),
        (("C", "C++"), ("C++", "C"), [1, 0]),
        (("crane", "cat", "crane"), ("crane", "cat", "crane"), [0, 1]),
        (("0", "1"), ("NEGATIVE", "POSITIVE"), [0, 1]),  # numbers are no names
        (("Cat", "cat"), ("cat", "Cat"), [1, 0]),
    ],
)
def test_signs_count_and_numbers_are_no_names(names, outputs, labels):
    data = toy.points(2)._replace(y=np.array([0, 1]), classes=names)
    assert match_classes(data, named(toy.mlp(), *outputs)).y.tolist() == labels


@pytest.mark.parametrize(
    "y", [np.array([0, -1]), np.array([0, 7]), np.eye(2, dtype=int), np.zeros(2)]
)
def test_labels_that_are_not_the_numbers_of_names_are_refused(y):
    data = toy.points(2)._replace(y=y, classes=("b", "a"))
    with pytest.raises(InputError, match="labels must be the numbers of their 2 names"):
        match_classes(data, named(toy.mlp(), "a", "b"))


def test_a_part_that_lacks_a_class_is_refused_by_an_unnamed_head():
    data = toy.points(64)._replace(y=np.arange(64) % 2, classes=("ant", "cat"))
    names = ("fit", "sweep", "evaluate")
    refused(toy.mlp(), data, r"have 2 classes \(ant, cat\), and the network 3 o", names)
    evaluate(toy.mlp(), data._replace(classes=()))


def test_fit_names_the_outputs_of_a_fresh_head():
    data = toy.points(64)._replace(classes=GLUE)
    fresh = replace_head(named(toy.mlp(), *NLI), 3, jax.random.key(0))
    labels = select(fresh, {"head": ["head"]})
    result = fit(fresh, Phase(labels, adam(1e-2), 2), data, key=jax.random.key(1))
    assert result.network.source.classes == GLUE
    with pytest.raises(InputError, match="leave classes= out"):
        extract(fresh, result.network, classes=NLI)
    assert extract(fresh, result.network).about["classes"] == list(GLUE)

"""Passages as windows, answers as text, and their scores, worked out by hand."""

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tokenizers

from experiments.common import texts
from experiments.common.flags import Common
from experiments.common.modules import loss_of
from subtune_jax.data import tfds as sets
from subtune_jax.data.squad import (
    Question,
    answered,
    exact_match,
    f1,
    plain,
    squad,
    windows,
)
from subtune_jax.errors import InputError
from subtune_jax.losses import span_cross_entropy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.network import Source, Tokens

WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] how tall the tower is 330 metres who built it
eiffel ? ."""
PASSAGE = "the tower is 330 metres tall"
TALL = Question("how tall", PASSAGE, ("330 metres", "330 metres tall"), (13, 13))


def reads():
    vocabulary = {word: i for i, word in enumerate(WORDS.split())}
    return tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)


def test_an_answer_is_the_tokens_that_hold_its_characters():
    held = windows(reads(), [TALL], max_length=11)
    ids = held.data.x["input_ids"][np.arange(1)][0]
    words = [WORDS.split()[i] for i in ids]
    assert words[:4] == ["[CLS]", "how", "tall", "[SEP]"] and words[7] == "330"
    assert held.data.y.tolist() == [[7, 8]]
    assert held.characters[0][7:9].tolist() == [[13, 16], [17, 23]]
    assert held.characters[0][1].tolist() == [-1, -1]  # of the question


def test_a_long_passage_is_cut_into_windows_that_overlap():
    """Three tokens of passage fit, and each window begins two after the one before."""
    held = windows(reads(), [TALL, TALL], max_length=8, stride=2)
    assert held.owner.tolist() == [0, 0, 0, 1, 1, 1]
    passages = [
        [PASSAGE[a:b] for a, b in places if a >= 0] for places in held.characters[:3]
    ]
    assert passages == [
        ["the", "tower", "is"],
        ["is", "330", "metres"],
        ["metres", "tall"],
    ]
    assert held.data.y[:3].tolist() == [[0, 0], [5, 6], [0, 0]]
    with pytest.raises(InputError, match="no room for its passage"):
        windows(reads(), [TALL], max_length=5)
    with pytest.raises(InputError, match="no questions"):
        windows(reads(), [])


def logits_of(held, *marks):
    """Returns logits of 0, but for the values at (window, token, start or end)."""
    logits = np.zeros((len(held.owner), 8, 2), np.float32)
    for window, token, which, value in marks:
        logits[window, token, which] = value
    return logits


def test_the_best_span_of_all_windows_answers():
    held = windows(reads(), [TALL], max_length=8, stride=2)
    best = logits_of(held, (1, 5, 0, 3), (1, 6, 1, 3))
    assert answered(held, best) == ["330 metres"]
    # Tokens of the question count for nothing, and no span ends before it begins.
    question = logits_of(held, (0, 1, 0, 9), (0, 2, 1, 9), (1, 6, 0, 3), (1, 5, 1, 3))
    assert answered(held, question) == ["330"]  # of equals the shortest, then the first
    assert exact_match(held)(best, held.data.y) == f1(held)(best, held.data.y) == 100
    with pytest.raises(InputError, match="outputs for 2 windows, .* have 3"):
        f1(held)(best[:2], held.data.y[:2])
    best[0, 0, 0] = np.nan
    assert np.isnan(f1(held)(best, held.data.y))


def test_scores_are_of_plain_words_and_of_the_best_accepted_answer():
    assert plain("The 330,  Metres!") == "330 metres"
    one = TALL._replace(answers=("330 metres",), starts=(13,))
    held = windows(reads(), [one], max_length=11)
    long = logits_of(held)
    long = np.concatenate([long, np.zeros((1, 3, 2), np.float32)], axis=1)
    long[0, 7, 0], long[0, 9, 1] = 5, 5  # 330 metres tall
    assert exact_match(held)(long, held.data.y) == 0
    assert f1(held)(long, held.data.y) == pytest.approx(80)  # 2/3 right, all of it said
    both = windows(reads(), [TALL], max_length=11)
    assert exact_match(both)(long, both.data.y) == 100


class Squad(tfds.core.GeneratorBasedBuilder):
    """A few records, as TFDS prepares the set."""

    code_path = None  # it is asked for by a package that nothing else needs
    VERSION = tfds.core.Version("3.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="v1.1", version=VERSION)]

    def _info(self):
        answers = {"text": tfds.features.Text(), "answer_start": np.int32}
        features = {"id": np.str_, "context": tfds.features.Text()}
        features |= {"question": tfds.features.Text(), "title": tfds.features.Text()}
        features |= {"answers": tfds.features.Sequence(answers)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, manager):
        return {name: self._generate_examples(name) for name in ("train", "validation")}

    def _generate_examples(self, name):
        answers = {"text": list(TALL.answers), "answer_start": list(TALL.starts)}
        for i in range(6):
            row = {
                "id": f"{i}",
                "title": "",
                "context": PASSAGE,
                "question": "how tall",
            }
            yield f"{name}-{i}", row | {"answers": answers}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    home = tmp_path_factory.mktemp("tfds")
    Squad(
        data_dir=home, config="v1.1", file_format="array_record"
    ).download_and_prepare()
    return home


def test_a_prepared_set_is_read_and_is_a_task_of_the_studies(prepared, monkeypatch):
    assert sets.split_sizes("squad/v1.1", prepared) == {"train": 6, "validation": 6}
    held = squad("train", prepared, reads(), 8, 2, chosen=lambda count: [count - 1, 0])
    assert held.questions == (TALL, TALL) and len(held.owner) == 6
    config = BertConfig(len(WORDS.split()), 8, 1, 2, 16, 32, head="span", num_classes=2)
    source = Source(reads=Tokens(len(WORDS.split()), 2, 32), folder="there")
    network = bert(config, jax.random.key(0))._replace(source=source)
    monkeypatch.setattr(texts, "encoder", lambda *given, head: network)
    monkeypatch.setattr(texts, "tokenizer", lambda *given: reads())
    target = texts.TextTarget(
        "squad", train_examples=3, validation_examples=2, max_length=8, stride=2
    )
    task = target.task(Common(data_dir=prepared), None, 0)
    assert [len(part.y) for part in (task.train, task.validation)] == [9, 6]
    assert (task.metric, list(task.also)) == ("f1", ["exact_match"])
    assert loss_of(task) is span_cross_entropy
    texts.TextTarget.check(target, _Settings(Common(weights="minilm")))


class _Settings:
    def __init__(self, common):
        self.common = common

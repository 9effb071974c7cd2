"""Orders, ends and constants of data, worked out by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from subtune_jax.data.folders import folder
from subtune_jax.data.splits import balanced_folds
from subtune_jax.data.squad import (
    LONGEST_ANSWER,
    LONGEST_QUESTION,
    Question,
    answered,
    plain,
    windows,
)
from subtune_jax.data.tables import read_table
from subtune_jax.data.text import labelled
from subtune_jax.data.tokenizer_files import tokenizer
from subtune_jax.errors import InputError
from tests.data.test_squad import PASSAGE, TALL, reads


def test_the_constants_of_squad_are_those_of_its_sources():
    """BERT's code: 64 tokens of a question, 30 of an answer; the paper's windows."""
    assert (LONGEST_QUESTION, LONGEST_ANSWER) == (64, 30)
    assert windows.__defaults__ == (384, 128)


def test_no_answer_has_more_than_thirty_tokens():
    """The best start is the first token of 40, the best end the last: 39 apart."""
    held = windows(reads(), [Question("how", "is " * 40, ("is",), (0,))])
    logits = np.zeros((1, 64, 2), np.float32)
    first = int(np.flatnonzero(held.characters[0][:, 0] == 0)[0])
    logits[0, first, 0], logits[0, first + 39, 1] = 5, 5
    logits[0, first + 29, 1] = 1
    assert answered(held, logits) == [" ".join(["is"] * 30)]
    logits[0, first + 29, 1], logits[0, first + 30, 1] = 0, 1
    assert answered(held, logits) == [
        "is"
    ]  # 31 tokens are too many: of equals the first


def test_of_windows_that_score_alike_the_first_answers():
    held = windows(reads(), [TALL], max_length=8, stride=2)
    logits = np.zeros((len(held.owner), 8, 2), np.float32)
    for window, token in ((0, 5), (1, 5), (2, 4)):  # tower, 330, metres
        logits[window, token] = 3
    assert answered(held, logits) == ["tower"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("An answer, a word and the end.", "answer word and end"),
        ("Theatre and analysis", "theatre and analysis"),
        ("it's the-end", "its theend"),
    ],
)
def test_articles_and_punctuation_are_left_out(text, words):
    assert plain(text) == words


def test_a_token_that_begins_where_the_answer_ends_is_not_of_it():
    """`?` stands right behind `tall`, without a space."""
    passage = f"{PASSAGE}?"
    begin = passage.index("tall")
    held = windows(reads(), [Question("how", passage, ("tall",), (begin,))])
    (start, end) = held.data.y[0]
    assert start == end
    assert held.characters[0][end].tolist() == [begin, begin + 4]
    assert held.characters[0][end + 1].tolist() == [begin + 4, begin + 5]


def test_classes_of_a_folder_have_the_order_that_is_asked_for(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name / "0.png")
    read = folder(tmp_path, class_names=("cat", "ant", "dog", "bee"))
    assert read.class_names == ("cat", "ant", "dog", "bee")
    assert sorted(read.data.y.tolist()) == [0, 1, 3]
    assert folder(tmp_path).class_names == ("ant", "bee", "cat")


def test_an_accent_is_one_letter_however_a_system_writes_it(tmp_path):
    """`é` is one character here, and `e` with an accent after it there."""
    one, two = "caf\u00e9", "cafe\u0301"
    (tmp_path / one).mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / one / "0.png")
    for names in ((one, "tea"), (two, "tea")):
        read = folder(tmp_path, class_names=names)
        assert read.class_names == (one, "tea") and read.data.y.tolist() == [0]


def test_a_line_of_spaces_is_no_row(tmp_path):
    row = '{"text": "a", "label": "up"}\n'
    (tmp_path / "texts.jsonl").write_text(f"{row}  \n\t\n{row}")
    assert len(read_table(tmp_path / "texts.jsonl", "text", "label").texts) == 2


def test_classes_of_a_table_have_the_order_that_is_asked_for(tmp_path):
    (tmp_path / "texts.csv").write_text("text,label\na,up\nb,down\nc,up\n")
    for given in (["up", "left", "down"], ("up", "left", "down")):
        read = read_table(tmp_path / "texts.csv", "text", "label", classes=given)
        assert read.classes == ("up", "left", "down")
        assert read.labels.tolist() == [0, 2, 0]
    (tmp_path / "numbers.csv").write_text("text,label\na,10\nb,2\n")
    read = read_table(tmp_path / "numbers.csv", "text", "label", classes=[10, 2])
    assert read.classes == ("10", "2") and read.labels.tolist() == [0, 1]


def test_folds_are_drawn_and_not_dealt_in_order():
    """Of 20 examples of one class the first fold would else be every fourth."""
    y = np.zeros(20, int)
    folds = [balanced_folds(y, 4, seed) for seed in (0, 1)]
    members = [frozenset(parts[0].tolist()) for parts in folds]
    assert len({*members, frozenset(range(0, 20, 4))}) == 3
    for parts in folds:
        assert sorted(np.concatenate(parts).tolist()) == list(range(20))


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_an_added_token_takes_the_spaces_that_it_says(side, tmp_path):
    """`<x>` is one token with the space before, or behind it; a second space stays."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    token = {"content": "<x>", "lstrip": False, "rstrip": False, "normalized": False}
    token |= {"single_word": False, "special": True, side: True}
    config = {"added_tokens_decoder": {"7": token}, "do_lower_case": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    encoding = tokenizer(tmp_path).encode("a <x> b")
    place = encoding.ids.index(7)
    expected = {"lstrip": (1, 5), "rstrip": (2, 6)}[side]
    assert encoding.offsets[place] == expected


def test_a_label_has_an_output():
    assert labelled([0, 1, 1], 2, "train").tolist() == [0, 1, 1]
    assert labelled([0.5, 4.5], 1, "train").tolist() == [[0.5], [4.5]]
    for labels in ([0, 2], [-1, 0]):
        with pytest.raises(InputError, match=f"labels {min(labels)} to {max(labels)}"):
            labelled(labels, 2, "test")

"""What the files of a tokenizer say is done, or refused by name and value."""

import json

import pytest
import tokenizers

from subtune_jax.data.text import encode
from subtune_jax.data.tokenizer_files import tokenizer
from subtune_jax.errors import InputError

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] paris is [ ] e ##1".split()


def folder_of(root, words=WORDS, **files):
    (root / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    for name, value in files.items():
        (root / f"{name}.json").write_text(json.dumps(value))
    return root


def tokens(root, text, max_length=16, vocabulary=None):
    words = tokenizer(root, vocabulary)
    ids = encode(words, [(text,)], max_length)["input_ids"][:][0]
    names = [words.id_to_token(int(i)) for i in ids]
    return [name for name in names if name != words.id_to_token(0)]


E1 = len(WORDS)
DECODER = {str(E1): {"content": "[E1]", "special": True}}


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"[E1]": E1}},
        {"tokenizer_config": {"added_tokens_decoder": DECODER}},
        {"added_tokens": {"[E1]": E1}, "tokenizer_config": {"additional_special_to"
         "kens": ["[E1]"]}},
        {"tokenizer_config": {"additional_special_tokens": ["[E1]"]}},
        {"special_tokens_map": {"additional_special_tokens": [{"content": "[E1]"}]}},
        {"tokenizer_config": {"extra_special_tokens": {"entity": "[E1]"}}},
    ],
)  # fmt: skip
def test_added_tokens_are_one_token(tmp_path, files):
    folder_of(tmp_path, **files)
    words = tokenizer(tmp_path, vocabulary=E1 + 1)
    ids = encode(words, [("[E1] paris is",)], 16)["input_ids"][:][0, :5]
    assert ids.tolist() == [2, E1, 5, 6, 3]
    with pytest.raises(InputError, match=f"ids up to {E1}, the network {E1} words"):
        tokenizer(tmp_path, vocabulary=E1)


def test_added_tokens_may_stand_in_any_order(tmp_path):
    """Each takes the next number, so they are added by their numbers."""
    folder_of(tmp_path, added_tokens={"[E2]": E1 + 1, "[E1]": E1})
    words = tokenizer(tmp_path)
    assert [words.token_to_id(name) for name in ("[E1]", "[E2]")] == [E1, E1 + 1]


def test_added_tokens_of_another_tokenizer_are_said(tmp_path):
    folder_of(tmp_path, added_tokens={"[E1]": E1 + 5})
    with pytest.raises(
        InputError, match=r"'\[E1\]' the number 16, and its vocabulary 1"
    ):
        tokenizer(tmp_path)
    folder_of(tmp_path, added_tokens={"paris": 9})
    with pytest.raises(InputError, match="'paris' the number 9, and its vocabulary 5"):
        tokenizer(tmp_path)
    folder_of(tmp_path, added_tokens={"x": "y"})
    with pytest.raises(InputError, match="lists its added tokens wrongly"):
        tokenizer(tmp_path)


@pytest.mark.parametrize("where", ["tokenizer_config", "special_tokens_map"])
def test_special_tokens_may_have_other_names(tmp_path, where):
    names = {"cls_token": "<s>", "sep_token": {"content": "</s>"}, "pad_token": "<pad>"}
    names |= {"unk_token": "<unk>", "mask_token": "<mask>"}
    words = "<pad> <unk> <s> </s> <mask> paris is".split()
    folder_of(tmp_path, words, **{where: names})
    assert tokens(tmp_path, "paris is it") == ["<s>", "paris", "is", "<unk>", "</s>"]
    folder_of(tmp_path, words, **{where: {}})
    with pytest.raises(InputError, match=r"has no \[UNK\], \[SEP\], \[CLS\], \[PAD\]"):
        tokenizer(tmp_path)


def test_a_byte_order_mark_and_line_ends_are_no_words(tmp_path):
    for text in ("\ufeff" + "\n".join(WORDS), "\r\n".join(WORDS) + "\r\n"):
        (tmp_path / "vocab.txt").write_bytes(text.encode())
        words = tokenizer(tmp_path)
        assert words.token_to_id("[PAD]") == 0 and words.get_vocab_size() == E1
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe")
    with pytest.raises(InputError, match="vocab.txt is not a text in UTF-8"):
        tokenizer(tmp_path)


@pytest.mark.parametrize("files", [{}, {"tokenizer_config": {"cls_token": "[CLS]"}}])
def test_a_vocabulary_in_capitals_asks_for_its_case(tmp_path, files):
    words = [*WORDS, "Paris", "France"]
    folder_of(tmp_path, words, **files)
    with pytest.raises(InputError, match=r"capitals \(Paris, France\) and no .*false}"):
        tokenizer(tmp_path)
    folder_of(tmp_path, words, tokenizer_config={"do_lower_case": False})
    assert tokens(tmp_path, "Paris is") == ["[CLS]", "Paris", "is", "[SEP]"]
    folder_of(tmp_path, words, tokenizer_config={"do_lower_case": True})
    assert tokens(tmp_path, "Paris is") == ["[CLS]", "paris", "is", "[SEP]"]
    folder_of(tmp_path, [*WORDS, "[UNUSED1]", "<S>"])  # no words of a text
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer(tmp_path)


def whole(root, side=None, lowercase=True):
    """Writes tokenizer.json."""
    words = [*"[PAD] [UNK] [CLS] [SEP] [MASK] one two three four five Six six".split()]
    inner = tokenizers.BertWordPieceTokenizer(
        {w: i for i, w in enumerate(words)}, lowercase=lowercase
    )
    made = tokenizers.Tokenizer.from_str(inner.to_str())
    if side:
        made.enable_truncation(5, direction=side)
    made.save(str(root / "tokenizer.json"))


TEXT = "one two three four five Six"
LEFT, RIGHT = ["four", "five", "six"], ["one", "two", "three"]


@pytest.mark.parametrize(
    ("stored", "said", "kept"),
    [
        (None, None, RIGHT),
        ("left", None, LEFT),
        ("left", "right", RIGHT),
        (None, "left", LEFT),
        ("right", "left", LEFT),
    ],
)
def test_texts_are_cut_on_the_side_that_is_said(tmp_path, stored, said, kept):
    whole(tmp_path, stored)
    config = {} if said is None else {"truncation_side": said}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokens(tmp_path, TEXT, 5)[1:-1] == kept
    words = tokenizer(tmp_path)
    for most, count in ((4, 2), (5, 3), (4, 2)):  # as often as it is asked
        ids = encode(words, [(TEXT,)], most)["input_ids"][:][0, 1 : count + 1]
        cut = kept[-count:] if kept is LEFT else kept[:count]
        assert [words.id_to_token(int(i)) for i in ids] == cut


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({}, "six"),
        ({"do_lower_case": False, "tokenizer_class": "BertTokenizer"}, "Six"),
        ({"do_lower_case": False}, "Six"),
        ({"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}, "six"),
    ],
)
def test_case_beside_a_whole_tokenizer_is_transformers(tmp_path, config, word):
    whole(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokens(tmp_path, "one Six") == ["[CLS]", "one", word, "[SEP]"]


def test_a_whole_tokenizer_alone_keeps_the_case_that_it_has(tmp_path):
    whole(tmp_path, lowercase=False)
    assert tokens(tmp_path, "one Six") == ["[CLS]", "one", "Six", "[SEP]"]


def test_tokens_around_texts_are_of_the_vocabulary(tmp_path):
    whole(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    assert data["post_processor"]["sep"] == ["[SEP]", 3]
    data["post_processor"]["sep"] = ["[SEP]", 99]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="tokens with the numbers 99 around texts"):
        tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"padding_side": "left"}, "not known: padding_side='left'; remove"),
        (
            {"truncation_side": "middle"},
            "cuts texts at 'middle': expected left or right",
        ),
        ({"word_tokenizer_type": "mecab"}, "word_tokenizer_type='mecab'"),
        (
            {"tokenizer_class": "BertJapaneseTokenizer"},
            "BertJapaneseTokenizer, which sp",
        ),
        ({"auto_map": {"AutoTokenizer": "mine"}}, "auto_map={'AutoTokenizer': 'mine'}"),
        ({"added_tokens_decoder": {"x": 1}}, "lists its added tokens wrongly"),
    ],
)
def test_what_is_not_known_is_refused_by_name_and_value(tmp_path, config, said):
    folder_of(tmp_path, tokenizer_config=config)
    with pytest.raises(InputError, match=said):
        tokenizer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"model_max_length": 512, "clean_up_tokenization_spaces": True},
        {"padding_side": "right", "never_split": None, "do_basic_tokenize": True},
        {"new_entry": None, "another": False, "tokenizer_class": "DistilBertTokenizer"},
        {"vocab_size": 11, "padding": True, "truncation": True, "chat_template": "x"},
    ],
)
def test_what_changes_no_token_is_passed_over(tmp_path, config):
    folder_of(tmp_path, tokenizer_config=config)
    assert tokens(tmp_path, "paris") == ["[CLS]", "paris", "[SEP]"]


@pytest.mark.parametrize(
    "text", ["[", "[]", '"words"', b"\xff", '{"version": 3}', '{"model": {}}']
)
def test_files_that_are_damaged_are_said(tmp_path, text):
    folder_of(tmp_path)
    text = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "tokenizer.json").write_bytes(text)
    with pytest.raises(InputError, match="tokenizer.json is|no readable tokenizer"):
        tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_bytes(text)
    if text[:1] != b"{":
        with pytest.raises(InputError, match="tokenizer_config.json is"):
            tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (None, "example 1 is no text: None"),
        (float("nan"), "example 1 is no text: nan"),
        (5, "example 1 is no text: 5"),
        (b"bytes", "example 1 is no text: b'bytes'"),
        ("half \ud800", "example 1 has half of a surrogate pair"),
        (["my", "dog"], r"example 1 has a text in parts, \['my', 'dog'\]: join"),
    ],
)
def test_what_is_no_text_is_said_with_its_number(tmp_path, bad, said):
    words = tokenizer(folder_of(tmp_path))
    with pytest.raises(InputError, match=said):
        encode(words, [("paris",), (bad,)], 16)
    with pytest.raises(InputError, match=said):
        encode(words, [("paris", "is"), ("paris", bad)], 16)
    if not isinstance(bad, str | list):
        with pytest.raises(InputError, match=said):
            encode(words, ["paris", bad], 16)


def test_strings_are_texts(tmp_path):
    words = tokenizer(folder_of(tmp_path))
    ones, strings = (
        encode(words, examples, 16)["input_ids"][:].tolist()
        for examples in ([("paris is",), ("is",)], ["paris is", "is"])
    )
    assert ones == strings
    with pytest.raises(InputError, match="must be a list of texts, got one text"):
        encode(words, "paris is", 16)
    for sentences in (None, (s for s in "ab"), 5):
        with pytest.raises(InputError, match="sentences must be a list of texts, got"):
            encode(words, sentences, 16)
    with pytest.raises(InputError, match="max_length must be a positive whole number"):
        encode(words, ["paris"], 16.5)
    with pytest.raises(InputError, match="folder must be a path, got NoneType"):
        tokenizer(None)
    with pytest.raises(InputError, match="tokenizer must be one.*got PosixPath"):
        encode(tmp_path, ["paris"], 16)


def test_short_texts_are_padded_to_a_power_of_two(tmp_path):
    """From 16 up to the longest that there may be."""
    words = tokenizer(folder_of(tmp_path))
    for max_length, buckets in ((16, (16,)), (40, (16, 32, 40)), (64, (16, 32, 64))):
        ids = encode(words, [("paris is",)], max_length)["input_ids"]
        assert ids.buckets == buckets and ids[:].shape == (1, 16)

"""Token ids, buckets and GLUE's tasks."""

import json

import chex
import numpy as np
import pytest

from subtune_jax.data import batches
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import Ragged, by_length, lengths, ragged
from subtune_jax.data.text import GLUE, encode, glue, labelled, texts
from subtune_jax.data.tokenizer_files import tokenizer
from subtune_jax.errors import InputError
from subtune_jax.metrics import METRICS, f1, matthews, spearman
from subtune_jax.models.load import load_pretrained
from subtune_jax.training.predict import predict

WORDS = "[PAD] [UNK] [CLS] [SEP] a cat sat on the mat".split()


@pytest.fixture
def words(tmp_path):
    """A tokenizer of ten words."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return tokenizer(tmp_path)


def rows(*sizes):
    return ragged([np.full(n, n, np.int32) for n in sizes], buckets=(2, 4, 8))


def test_rows_are_padded_to_the_smallest_bucket_that_holds_them():
    x = rows(1, 3, 2, 9)
    assert x.lengths.tolist() == [1, 3, 2, 9] and len(x) == 4
    assert x[np.array([0, 2])].tolist() == [[1, 0], [2, 2]]
    assert x[np.array([1, 0])].tolist() == [[3, 3, 3, 0], [1, 0, 0, 0]]
    chex.assert_shape(x[3:], (1, 9))  # no bucket is large enough
    part = x.only(np.array([2, 0]))
    assert isinstance(part, Ragged) and part[:].tolist() == [[2, 2], [1, 0]]


def test_rows_of_vectors_are_padded_with_zeros():
    x = ragged([np.ones((1, 3)), 2 * np.ones((2, 3))], buckets=(4,))
    chex.assert_shape(x[:], (2, 4, 3))
    assert x[:].sum() == 3 + 12
    assert np.all(x[:][0, 1:] == 0)


def test_like_lengths_come_together_and_nothing_is_lost():
    sizes = np.random.default_rng(0).integers(1, 50, 203)
    order = np.random.default_rng(1).permutation(203)
    found = by_length(order, sizes, 10, np.random.default_rng(2))
    assert sorted(found.tolist()) == list(range(203))
    spread = np.ptp(sizes[found[:200]].reshape(-1, 10), axis=1).mean()
    assert spread < 6 < np.ptp(sizes[order[:200]].reshape(-1, 10), axis=1).mean()
    firsts = sizes[found[:200]].reshape(-1, 10)[:, 0]
    assert np.any(np.diff(firsts) < 0)  # batches are shuffled


def test_the_rows_of_a_ragged_last_batch_are_drawn_at_random():
    """Each of 13 rows, the longest among them, is one of the last 3 as often as any other:
    3 of 13 of 2,600 epochs, 600 with a standard error of 21."""
    sizes, rng, counts = np.arange(1, 14), np.random.default_rng(0), np.zeros(13)
    for _ in range(2600):
        order = rng.permutation(13)
        last = by_length(order, sizes, 5, rng)[10:]
        assert last.tolist() == order[10:].tolist()
        counts[last] += 1
    assert np.all(np.abs(counts - 600) < 5 * 21)


def test_batches_of_an_epoch_are_buckets_and_functions_of_the_seed():
    data = Dataset({"ids": rows(*[1, 2, 3, 4, 5, 6, 7, 8] * 4)}, np.arange(32))

    def epoch(number):
        stream = batches.epoch(data, 4, seed=(0,), number=number, drop=False)
        return [(batch.x["ids"].shape, batch.y.tolist()) for batch in stream]

    shapes = {shape for shape, _ in epoch(1)}
    assert shapes <= {(4, 2), (4, 4), (4, 8)} and len(shapes) > 1
    assert sorted(sum((y for _, y in epoch(1)), [])) == list(range(32))
    assert epoch(1) == epoch(1) != epoch(2)


def test_a_sentence_is_its_words(words):
    found = encode(words, [["The cat"], ["a mat sat on the zebra"], [""]], 6)
    ids = found["input_ids"]
    assert lengths(found).tolist() == [4, 6, 2]
    assert ids[:1][0, :4].tolist() == [2, 8, 5, 3]
    assert ids[1:2][0, :6].tolist() == [2, 4, 9, 6, 7, 3]  # cut to six tokens
    assert ids[2:][0, :2].tolist() == [2, 3]  # the empty sentence
    assert found["attention_mask"][2:][0].tolist() == [1, 1, 0, 0, 0, 0]
    assert ids.buckets == (6,)  # never wider than the network's positions


def test_a_pair_has_two_types(words):
    found = encode(words, [["the cat", "a mat"]], 16)
    assert found["input_ids"][:][0, :7].tolist() == [2, 8, 5, 3, 4, 9, 3]
    assert found["token_type_ids"][:][0, :7].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_unknown_words_are_the_unknown_word(words):
    assert encode(words, [["zebra"]], 8)["input_ids"][:][0, 1] == 1


@pytest.mark.parametrize(
    ("sentences", "max_length", "message"),
    [
        ([["a"], ["a", "b"]], 8, "examples have 1 and 2 texts: expected one or two"),
        ([["a", "b", "c"]], 8, "examples have 3 texts"),
        ([], 8, "examples must be a positive number, got 0"),
        ([["a"]], 0, "max_length must be a positive whole number, got 0"),
        ([["a"]], 2, "max_length is 2: 2 are special tokens, so expected 3 or more"),
        (
            [["a", "b"]],
            3,
            "max_length is 3: 3 are special tokens, so expected 4 or more",
        ),
    ],
)
def test_what_cannot_be_encoded_is_said(words, sentences, max_length, message):
    with pytest.raises(InputError, match=message):
        encode(words, sentences, max_length)


def test_a_tokenizer_that_does_not_fit_is_said(tmp_path, words):
    for size in (9, 10 + 1024):
        with pytest.raises(
            InputError, match=f"ids up to 9, the network {size} words: expec"
        ):
            tokenizer(tmp_path, vocabulary=size)
    assert tokenizer(tmp_path, vocabulary=10 + 1023).get_vocab_size() == 10
    with pytest.raises(InputError, match="has no tokenizer.json and no vocab.txt"):
        tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer.json is not a JSON file"):
        tokenizer(tmp_path)


def test_case_follows_the_folders_settings(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "Cat"]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False})
    )
    assert encode(tokenizer(tmp_path), [["Cat"]], 8)["input_ids"][:][0, 1] == 10


def test_accents_follow_the_folders_settings(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "chât", "chat"]))

    def read(**settings):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return encode(tokenizer(tmp_path), [["Chât"]], 8)["input_ids"][:][0, 1]

    assert read(do_lower_case=True) == 11
    assert read(do_lower_case=True, strip_accents=False) == 10


def test_ids_that_the_network_does_not_know_are_said(tmp_path):
    from tokenizers import Tokenizer, models

    words = models.WordLevel({"a": 0, "b": 100}, unk_token="a")
    Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="has ids up to 100, the network 40 words"):
        tokenizer(tmp_path, vocabulary=40)


@pytest.mark.parametrize("name", ["cola", "sst2", "rte", "stsb"])
def test_glue_is_read(real_data, minilm, name):
    data = glue(name, "train[:20]", real_data / "tfds", tokenizer(minilm))
    assert len(data.y) == len(lengths(data.x)) == 20
    regression = GLUE[name].outputs == 1
    assert data.y.dtype == (np.float32 if regression else np.int32)
    chex.assert_shape(data.y, (20, 1) if regression else (20,))
    pairs = data.x["token_type_ids"][:].max()
    assert pairs == len(GLUE[name].fields) - 1


def test_a_split_without_labels_is_said(real_data, minilm):
    with pytest.raises(InputError, match="split 'test' has labels -1 to -1"):
        glue("rte", "test", real_data / "tfds", tokenizer(minilm))
    with pytest.raises(InputError, match="unknown GLUE task 'ret'.*mean 'rte'"):
        glue("ret", "train", real_data / "tfds", None)


def test_a_pair_task_given_one_sentence_is_said():
    with pytest.raises(InputError, match="a task of sentence1 and sentence2: a record"):
        texts({"sentence1": b"a", "idx": 0}, GLUE["rte"].fields, "glue/rte")
    with pytest.raises(InputError, match="labels 0 to 3: expected 0 to 1"):
        labelled([0, 3], 2, "train")


@pytest.mark.slow
def test_similar_sentences_are_near_in_minilm(real_data, minilm):
    """Mean-pooled cosine similarity on STS-B's validation split."""
    network = load_pretrained(minilm, num_classes=1, pooling="mean")
    body, words = network._replace(stages=network.stages[:-1]), tokenizer(minilm)
    from subtune_jax.data.tfds import records

    found = records("glue/stsb", "validation", real_data / "tfds")
    pairs = [found[i] for i in range(len(found))]

    def vectors(field):
        x = encode(words, [texts(row, [field], "stsb") for row in pairs], 128)
        made = predict(body, Dataset(x, np.zeros(len(pairs))))
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    cosine = (vectors("sentence1") * vectors("sentence2")).sum(axis=1)
    assert spearman(cosine, np.array([row["label"] for row in pairs])) > 86


def test_metrics_on_literal_predictions():
    labels = np.array([0, 0, 0, 1, 1, 1])
    logits = np.eye(2)[[0, 0, 1, 1, 1, 0]]
    assert f1(logits, labels) == pytest.approx(100 * 2 / 3)
    assert matthews(logits, labels) == pytest.approx(100 / 3)
    assert matthews(np.eye(2)[[0] * 6], labels) == 0
    outputs, targets = np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [3.0], [9.0]])
    assert spearman(outputs, targets) == pytest.approx(100)
    assert METRICS["pearson"](outputs, targets) == pytest.approx(
        100 * np.corrcoef(outputs[:, 0], targets[:, 0])[0, 1]
    )
    assert METRICS["pearson"](np.ones((3, 1)), targets) == 0


def test_every_task_has_its_metrics():
    assert len(GLUE) == 9
    assert {name for task in GLUE.values() for name in task.metrics} <= set(METRICS)


def test_only_a_pool_of_batches_is_sorted():
    sizes = np.arange(1000)
    order = np.random.default_rng(0).permutation(1000)
    found = by_length(order, sizes, 10, np.random.default_rng(1)).reshape(-1, 10)
    longest = [row for row in found if 999 in row][0]
    assert set(sizes[longest]) != set(
        range(990, 1000)
    )  # other pools have some of these
    assert np.ptp(sizes[longest]) < 60


def test_texts_of_a_pair_keep_their_order():
    row = {"hypothesis": b"second", "premise": "first", "label": 0}
    assert texts(row, ("premise", "hypothesis"), "pairs") == ["first", "second"]

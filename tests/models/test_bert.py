"""Encoders: counts of the paper, parity with real weights, padding, heads, errors."""

import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from subtune_jax import tree
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import ragged
from subtune_jax.errors import InputError
from subtune_jax.losses import span_cross_entropy
from subtune_jax.metrics import span_accuracy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.load import load_pretrained
from subtune_jax.models.vit import ViTConfig, vit
from subtune_jax.network import Network, forward
from subtune_jax.selection.select import count_trainable, select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.training.settings import Settings
from tests import toy

SMALL = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=24,
    max_positions=12,
)


def texts(lengths=(5, 3), tokens=5, seed=0):
    """Returns ids of 5 to 39, padded with 0."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(tokens)[None] < np.array(lengths)[:, None]).astype(np.int32)
    ids = rng.integers(5, 40, mask.shape).astype(np.int32) * mask
    types = (np.arange(tokens)[None] > 2).astype(np.int32) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@pytest.fixture(scope="module")
def base():
    """BERT-base, uncased, as shapes alone."""
    shapes = jax.eval_shape(
        lambda key: bert(BertConfig(), key).params, jax.random.key(0)
    )
    small = bert(SMALL._replace(num_layers=12), jax.random.key(0))
    return Network(small.stages, shapes, small.stats, small.units)


@pytest.mark.parametrize(
    ("entry", "one", "every"),
    [
        ("query", 590_592, 7_087_104),
        ("key", 590_592, 7_087_104),
        ("value", 590_592, 7_087_104),
        ("attention_output", 590_592, 7_087_104),
        ("intermediate", 2_362_368, 28_348_416),
        ("output", 2_360_064, 28_320_768),
        ("attention_norm", 1_536, 18_432),
        ("output_norm", 1_536, 18_432),
        ("layer_norms", 3_072, 36_864),
        ("biases", 8_448, 101_376),
        ("attention", 4 * 590_592, 4 * 7_087_104),
        ("feed_forward", 2_362_368 + 2_360_064, 28_348_416 + 28_320_768),
    ],
)
def test_counts_are_the_papers(base, entry, one, every):
    for scope, count in ((f"layer_5:{entry}", one), (f"kinds:{entry}", every)):
        assert count_trainable(base, select(base, {"g": [scope]})) == count


def test_embeddings_pooler_and_shares_are_the_papers(base):
    def count(entry):
        return count_trainable(base, select(base, {"g": [entry]}))

    assert count("word_embeddings") == 23_440_896
    assert count("position_embeddings") == 393_216
    assert count("token_type_embeddings") == count("embedding_norm") == 1_536
    assert count("pooler") == 590_592
    whole = tree.count(base.params) - count("head")
    assert whole == 109_482_240
    assert round(100 * count("layer_11:layer_norms") / whole, 4) == 0.0028


def test_fine_units_hold_every_leaf_once():
    network = bert(SMALL, jax.random.key(0))
    labels = select(network, {unit: [f"fine:{unit}"] for unit in network.units["fine"]})
    found = tree.flatten(labels)
    assert "frozen" not in found.values()
    assert all(name.startswith(unit) for name, unit in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["dense", "cls", "mean"])
def test_padding_changes_nothing(pooling):
    network = bert(SMALL._replace(pooling=pooling), jax.random.key(0))
    short, long = texts((3,), 3), texts((3,), 9)
    for name in short:
        long[name][:, :3] = short[name]
    np.testing.assert_allclose(network(short), network(long), atol=1e-6)
    long["input_ids"][:, 3:] = 7  # whatever stands under the mask
    np.testing.assert_allclose(network(short), network(long), atol=1e-6)


def test_roberta_counts_positions_from_the_padding_id():
    network = bert(
        SMALL._replace(roberta=True, pad_token_id=1, type_vocab_size=1),
        jax.random.key(0),
    )
    x = texts((3,), 5)
    x["token_type_ids"][:] = 0
    x["input_ids"][0, 3:] = 1
    table = network.params["embeddings"]["position"]["embedding"]
    moved = network._replace(
        params={
            **network.params,
            "embeddings": {
                **network.params["embeddings"],
                "position": {"embedding": table.at[jnp.array([0, 6, 7])].add(9.0)},
            },
        }
    )
    np.testing.assert_array_equal(network(x), moved(x))  # 2, 3, 4 and 1 are used


def test_texts_longer_than_the_positions_are_said():
    with pytest.raises(InputError, match="texts have 13 tokens: .* has 12 positions"):
        bert(SMALL, jax.random.key(0))(texts((13,), 13))
    roberta = bert(SMALL._replace(roberta=True, pad_token_id=1), jax.random.key(0))
    with pytest.raises(InputError, match="texts have 11 tokens"):
        roberta(texts((11,), 11))
    chex.assert_shape(roberta(texts((10,), 10)), (1, 2))


def test_dropout_is_drawn_with_a_key_alone():
    network, x = bert(SMALL, jax.random.key(0)), texts()

    def outputs(key):
        found = forward(network.stages, network.params, network.stats, x, key=key)
        return np.asarray(found[0])

    one, other = (outputs(jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(one, outputs(jax.random.key(0)))
    np.testing.assert_array_equal(outputs(None), network(x))


def test_a_span_head_scores_tokens_and_never_padding():
    network = bert(SMALL._replace(head="span"), jax.random.key(0))
    logits = np.asarray(network(texts()))
    chex.assert_shape(logits, (2, 5, 2))
    assert "pooler" not in network.params
    assert np.all(logits[1, 3:] == np.finfo(np.float32).min)
    assert np.all(np.abs(logits[1, :3]) < 100)


@pytest.mark.slow
def test_a_span_is_learnt_from_texts_of_different_lengths():
    rng = np.random.default_rng(0)
    sizes = rng.integers(4, 30, 24)
    ids = [rng.integers(5, 38, size, dtype=np.int32) for size in sizes]
    spans = np.array([rng.choice(size, 2, replace=False) for size in sizes])
    for row, span in zip(ids, spans, strict=True):
        row[span] = 38, 39  # where they start and end
    x = {"input_ids": ragged(ids), "attention_mask": ragged([r * 0 + 1 for r in ids])}
    data = Dataset(x, spans.astype(np.int32))
    config = SMALL._replace(head="span", max_positions=32, dropout=0.0)
    network = bert(config, jax.random.key(0))
    logits = predict(network, data, batch_size=5)
    chex.assert_shape(logits, (24, 32, 2))
    assert all(np.all(row[n:] < -1e38) for row, n in zip(logits, sizes, strict=True))
    phase = Phase(select(network, {"g": [".*"]}), adam(1e-2), 60)
    loss = span_cross_entropy
    made = fit(
        network,
        phase,
        data,
        key=jax.random.key(1),
        settings=Settings(batch_size=8, loss=loss),
    )
    before, after = (evaluate(n, data, span_accuracy) for n in (network, made.network))
    assert before < 20 < 80 < after


def test_the_loss_of_a_span_is_the_mean_of_its_two_ends():
    logits = np.log(np.array([[[0.5, 0.1], [0.25, 0.1], [0.25, 0.8]]]))
    found = span_cross_entropy(logits, np.array([[0, 2]]))
    np.testing.assert_allclose(found, [-(np.log(0.5) + np.log(0.8)) / 2], rtol=1e-6)
    assert span_accuracy(logits, np.array([[0, 2]])) == 100
    assert span_accuracy(logits, np.array([[0, 1]])) == 0


def test_without_token_types_there_is_one_text():
    network, x = bert(SMALL, jax.random.key(0)), texts()
    zeros = x | {"token_type_ids": x["token_type_ids"] * 0}
    del x["token_type_ids"]
    np.testing.assert_array_equal(network(x), network(zeros))


def test_all_norms_are_those_of_the_layers_and_of_the_embeddings(base):
    labels = select(base, {"g": ["norms"]})
    assert count_trainable(base, labels) == 36_864 + 1_536


def test_bfloat16_is_near_and_parameters_stay_float32():
    full, half = (
        bert(SMALL._replace(dtype=dtype), jax.random.key(0))
        for dtype in ("float32", "bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {
        jnp.dtype("float32")
    }
    hidden, _ = forward(half.stages, half.params, half.stats, texts(), stop=2)
    assert hidden["hidden"].dtype == jnp.bfloat16
    logits = half(texts())
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, full(texts()), atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "width 16 does not divide into 3 attention heads"),
        ({"pooling": "max"}, "unknown pooling 'max': expected one of dense, cls, mean"),
        ({"head": "token"}, "unknown head 'token'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"activation": "gelo"}, "unknown activation 'gelo'.*mean 'gelu'"),
        ({"num_layers": 0}, "num_layers must be a positive whole number, got 0"),
        ({"dropout": 1.0}, "dropout must be from 0 up to 1, got 1.0"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        bert(SMALL._replace(**change), jax.random.key(0))


@pytest.mark.slow
def test_minilm_gives_the_hidden_states_of_pytorch(real_data, minilm):
    known = np.load(real_data / "fixtures" / "all_minilm_l6_v2.npz")
    x = {name: known[name] for name in texts()}
    network = load_pretrained(minilm, num_classes=2, pooling="dense")

    def after(net, stop):
        return forward(net.stages, net.params, net.stats, x, stop=stop)[0]

    real = known["attention_mask"][..., None] > 0
    difference = (
        np.abs(after(network, -2)["hidden"] - known["last_hidden_state"]) * real
    )
    assert difference.max() <= 1e-4
    assert np.abs(after(network, -1) - known["pooler_output"]).max() <= 1e-4
    mean = load_pretrained(minilm, num_classes=2, pooling="mean")
    assert np.abs(after(mean, -1) - known["mean_pooled"]).max() <= 1e-4


NAMES = {  # our path, Hugging Face's name
    "attention/output": "attention.output.dense",
    "attention/norm": "attention.output.LayerNorm",
    "attention/": "attention.self.",
    "intermediate": "intermediate.dense",
    "norm": "output.LayerNorm",
    "output": "output.dense",
}
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def hugging_face(path):
    """Returns the name of a leaf in a RoBERTa file for classification."""
    stage, *inner, leaf = path.split("/")
    rest, leaf = "/".join(inner), LEAVES[leaf]
    if stage == "embeddings":
        part = "LayerNorm" if rest == "norm" else f"{rest}_embeddings"
        return f"roberta.embeddings.{part}.{leaf}"
    if stage.startswith("layer_"):
        theirs = next(
            v + rest[len(k) :] for k, v in NAMES.items() if rest.startswith(k)
        )
        return f"roberta.encoder.layer.{stage[6:]}.{theirs}.{leaf}"
    return {"pooler": "classifier.dense", "head": "classifier.out_proj"}[
        stage
    ] + f".{leaf}"


@pytest.fixture
def folder(tmp_path):
    """A RoBERTa folder made from a small network, and that network."""
    config = SMALL._replace(
        roberta=True, pad_token_id=1, type_vocab_size=1, num_classes=3
    )
    network, tensors = bert(config, jax.random.key(3)), {}
    for path, leaf in tree.flatten(network.params).items():
        turned = np.asarray(leaf).T if path.endswith("kernel") else np.asarray(leaf)
        tensors[hugging_face(path)] = np.ascontiguousarray(turned)
    save_file(tensors, tmp_path / "model.safetensors")
    described = {
        "model_type": "roberta",
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 12,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "pad_token_id": 1,
        "id2label": {"0": "a", "1": "b", "2": "c"},
    }
    (tmp_path / "config.json").write_text(json.dumps(described))
    return tmp_path, network


def test_a_roberta_folder_is_read_with_its_head(folder):
    home, network = folder
    found = load_pretrained(home)
    assert found.source.reads.max_length == 10 and found.source.folder == str(home)
    for path, leaf in tree.flatten(found.params).items():
        np.testing.assert_array_equal(leaf, tree.flatten(network.params)[path])
    other = load_pretrained(home, num_classes=5, pooling="mean")
    chex.assert_shape(other.params["head"]["kernel"], (16, 5))
    assert "pooler" not in other.params or not other.params["pooler"]
    assert other.source.fingerprint == found.source.fingerprint


def changed(home, **changes):
    config = json.loads((home / "config.json").read_text())
    config = {k: v for k, v in (config | changes).items() if v is not None}
    (home / "config.json").write_text(json.dumps(config))


def with_tensors(home, change):
    """Rewrites the tensors of a folder."""
    tensors = load_file(home / "model.safetensors")
    save_file(change(tensors), home / "model.safetensors")


def test_the_padding_id_that_is_not_said_is_that_of_the_family(folder):
    home, network = folder
    x = texts((3,), 5)
    for written in ({"pad_token_id": None}, {"model_type": "xlm-roberta"}):
        changed(home, **written)
        found = load_pretrained(home)
        assert found.source.reads.max_length == 10
        np.testing.assert_array_equal(found(x), network(x))


def test_a_pooler_that_a_classifier_does_not_use_is_passed_over(folder):
    home, network = folder

    def older(tensors):
        extra = {f"roberta.pooler.dense.{n}": np.ones(16) for n in ("weight", "bias")}
        return tensors | extra

    with_tensors(home, older)
    for found in (load_pretrained(home), load_pretrained(home, num_classes=3)):
        kernel = found.params["pooler"]["dense"]["kernel"]
        np.testing.assert_array_equal(
            kernel, network.params["pooler"]["dense"]["kernel"]
        )


def test_what_a_file_lacks_is_said_with_the_way_out(folder):
    home, _ = folder
    with_tensors(home, lambda t: {n: v for n, v in t.items() if "classifier" not in n})
    with pytest.raises(
        InputError, match="missing: .*num_classes=N gives .*pooling='mean'"
    ):
        load_pretrained(home)
    assert load_pretrained(home, num_classes=2, pooling="mean").params["head"]


def test_shards_are_read_through_their_index(folder):
    home, network = folder
    tensors = load_file(home / "model.safetensors")
    (home / "model.safetensors").unlink()
    files = {name: f"model-0000{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n, f in files.items() if f == file}, home / file)
    index = home / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    for path, leaf in tree.flatten(load_pretrained(home).params).items():
        np.testing.assert_array_equal(leaf, tree.flatten(network.params)[path])
    index.write_text("{}")
    with pytest.raises(InputError, match="has no weight_map of tensors to files"):
        load_pretrained(home)
    for shard in ("../model.safetensors", "model-00007.safetensors"):
        index.write_text(json.dumps({"weight_map": files | {"x": shard}}))
        with pytest.raises(InputError, match=f"has no '{shard}', which model.safe"):
            load_pretrained(home)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"model_type": None},
            {},
            "config.json has no model_type: expected one of bert",
        ),
        ({}, {"num_classes": -1}, "num_classes must be a positive number, got -1"),
        ({}, {"num_classes": -1}, "num_classes must be a positive number, got -1"),
        (
            {},
            {"num_classes": 5, "head": "span"},
            "a span head has 2 outputs, got num_classes=5",
        ),
        ({"model_type": "bart"}, {}, "unknown model type 'bart': expected one of bert"),
        (
            {"hidden_size": None},
            {},
            "describes no roberta network: 'hidden_size' is missing",
        ),
        ({"num_hidden_layers": 3}, {}, "missing: params/layer_2/attention/key/bias"),
        ({"num_hidden_layers": 1}, {}, "unexpected: roberta.encoder.layer.1"),
        (
            {"vocab_size": 41},
            {},
            r"misshapen: roberta.embeddings.word_embeddings.weight",
        ),
        ({"position_embedding_type": "relative_key"}, {}, "expected absolute ones"),
        ({}, {"pooling": "max"}, "unknown pooling 'max'"),
    ],
)
def test_a_folder_that_does_not_fit_is_said(folder, changes, options, message):
    home, _ = folder
    changed(home, **changes)
    with pytest.raises(InputError, match=message):
        load_pretrained(home, **options)


def zeroed(params, *modules):
    """Returns the parameters with the kernels and biases of modules at 0."""
    if not modules:
        return params
    chosen = re.compile("|".join(f"(^|/){m}/(kernel|bias)$" for m in modules))
    return tree.map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if chosen.search(path) else leaf, params
    )


@pytest.mark.parametrize("family", ["bert", "vit"])
@pytest.mark.parametrize(
    ("stage", "modules"),
    [("embeddings", ()), ("layer_0", ("^output",)), ("layer_0", ("attention/output",))],
)
def test_dropout_acts_after_the_embeddings_and_both_halves_of_a_layer(
    family, stage, modules
):
    """With one half of a layer silent, the other alone can differ under dropout."""
    if family == "bert":
        network, x = bert(SMALL._replace(dropout=0.5), jax.random.key(0)), texts()
    else:
        config = ViTConfig(
            8, 4, 1, 16, num_layers=2, num_heads=4, intermediate_size=24, dropout=0.5
        )
        network, x = vit(config, jax.random.key(0)), toy.images(2).x
    names = [s.name for s in network.stages]
    place = names.index(stage)
    before, _ = forward(network.stages, network.params, network.stats, x, stop=place)
    params = zeroed(network.params[stage], *modules)
    apply = network.stages[place].apply

    def run(key):
        made, _ = apply(params, {}, before, batch_stats=False, key=key)
        return np.asarray(made["hidden"] if isinstance(made, dict) else made)

    dropped, whole = run(jax.random.key(1)), run(None)
    assert np.mean(dropped != whole) > 0.2
    silent = zeroed(network.params[stage], "^output", "attention/output")
    if modules:
        made, plain = (
            apply(silent, {}, before, batch_stats=False, key=key)[0]
            for key in (jax.random.key(1), None)
        )
        chex.assert_trees_all_equal(made, plain)


def test_dropout_acts_on_what_the_head_reads():
    network = bert(SMALL._replace(dropout=0.5), jax.random.key(0))
    names = [stage.name for stage in network.stages]
    place = names.index("pooler")
    before, _ = forward(
        network.stages, network.params, network.stats, texts(), stop=place
    )
    apply, params = network.stages[place].apply, network.params["pooler"]
    dropped, _ = apply(params, {}, before, batch_stats=False, key=jax.random.key(1))
    whole, _ = apply(params, {}, before, batch_stats=False, key=None)
    kept = np.asarray(dropped) != 0
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(
        np.asarray(dropped)[kept], 2 * np.asarray(whole)[kept], rtol=1e-5
    )

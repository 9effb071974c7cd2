"""Vision transformers: counts, layouts of files, configurations, errors."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.models.files.vit import hugging_face_config, timm_config
from subtune_jax.models.load import load_pretrained
from subtune_jax.models.vit import ViTConfig, vit
from subtune_jax.network import Network, Pixels, forward
from subtune_jax.selection.select import count_trainable, select

SMALL = ViTConfig(
    image_size=8,
    patch_size=4,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=24,
    num_classes=3,
)
HUGGING_FACE = {
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "id2label": {"0": "a", "1": "b", "2": "c"},
}
CLIP = {
    "model_type": "clip",
    "vision_config": HUGGING_FACE | {"hidden_act": "quick_gelu"},
}
TIMM = {
    "architecture": "vit_tiny_patch4_8",
    "num_classes": 3,
    "model_args": {"embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5},
    "pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0.5], "std": [0.5]},
}
# our leaf of layer 0 without its ending: their module, for each layout
LAYOUTS = {
    "timm": {
        "embeddings/patch": "patch_embed.proj",
        "embeddings/class_token": "cls_token",
        "embeddings/position": "pos_embed",
        "attention/qkv": "blocks.{}.attn.qkv.",
        "attention/output": "blocks.{}.attn.proj",
        "attention/norm": "blocks.{}.norm1",
        "norm": "blocks.{}.norm2",
        "intermediate": "blocks.{}.mlp.fc1",
        "output": "blocks.{}.mlp.fc2",
        "pooler/norm": "norm",
        "head": "head",
    },
    "torchvision": {
        "embeddings/patch": "conv_proj",
        "embeddings/class_token": "class_token",
        "embeddings/position": "encoder.pos_embedding",
        "attention/qkv": "encoder.layers.encoder_layer_{}.self_attention.in_proj_",
        "attention/output": "encoder.layers.encoder_layer_{}.self_attention.out_proj",
        "attention/norm": "encoder.layers.encoder_layer_{}.ln_1",
        "norm": "encoder.layers.encoder_layer_{}.ln_2",
        "intermediate": "encoder.layers.encoder_layer_{}.mlp.0",
        "output": "encoder.layers.encoder_layer_{}.mlp.3",
        "pooler/norm": "encoder.ln",
        "head": "heads.head",
    },
    "hugging_face": {
        "embeddings/patch": "vit.embeddings.patch_embeddings.projection",
        "embeddings/class_token": "vit.embeddings.cls_token",
        "embeddings/position": "vit.embeddings.position_embeddings",
        "attention/query": "vit.encoder.layer.{}.attention.attention.query",
        "attention/key": "vit.encoder.layer.{}.attention.attention.key",
        "attention/value": "vit.encoder.layer.{}.attention.attention.value",
        "attention/output": "vit.encoder.layer.{}.attention.output.dense",
        "attention/norm": "vit.encoder.layer.{}.layernorm_before",
        "norm": "vit.encoder.layer.{}.layernorm_after",
        "intermediate": "vit.encoder.layer.{}.intermediate.dense",
        "output": "vit.encoder.layer.{}.output.dense",
        "pooler/norm": "vit.layernorm",
        "head": "classifier",
    },
    "clip": {
        "embeddings/patch": "vision_model.embeddings.patch_embedding",
        "embeddings/class_token": "vision_model.embeddings.class_embedding",
        "embeddings/position": "vision_model.embeddings.position_embedding.weight",
        "embeddings/norm": "vision_model.pre_layrnorm",
        "attention/query": "vision_model.encoder.layers.{}.self_attn.q_proj",
        "attention/key": "vision_model.encoder.layers.{}.self_attn.k_proj",
        "attention/value": "vision_model.encoder.layers.{}.self_attn.v_proj",
        "attention/output": "vision_model.encoder.layers.{}.self_attn.out_proj",
        "attention/norm": "vision_model.encoder.layers.{}.layer_norm1",
        "norm": "vision_model.encoder.layers.{}.layer_norm2",
        "intermediate": "vision_model.encoder.layers.{}.mlp.fc1",
        "output": "vision_model.encoder.layers.{}.mlp.fc2",
        "pooler/norm": "vision_model.post_layernorm",
    },
}
CONFIGS = {
    "timm": TIMM,
    "torchvision": HUGGING_FACE,
    "hugging_face": HUGGING_FACE,
    "clip": CLIP,
}


def as_file(params, layout):
    """Returns a network's parameters as the layout's tensors (PyTorch's axis orders)."""
    names, made = LAYOUTS[layout], {}
    fused = {}
    for path, leaf in tree.flatten(params).items():
        owner, _, ending = path.rpartition("/")
        layer = owner.split("/")[0].removeprefix("layer_")
        inside = owner.partition("/")[2] if layer.isdigit() else owner
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,))
        value = np.asarray(leaf)
        if path in names:  # class token and positions
            lead = [1, 1] if path.endswith("token") else [1]
            lead = [] if layout == "clip" else lead
            made[names[path]] = value.reshape(*lead, *value.shape)
            continue
        value = np.ascontiguousarray(value.transpose(axes))
        ending = "bias" if ending == "bias" else "weight"
        if inside in names:
            made[f"{names[inside].format(layer)}.{ending}"] = value
        elif "attention/qkv" in names and inside.startswith("attention/"):
            key = f"{names['attention/qkv'].format(layer)}{ending}"
            fused.setdefault(key, {})[inside] = value
    parts = ("attention/query", "attention/key", "attention/value")
    joined = {k: np.concatenate([v[p] for p in parts]) for k, v in fused.items()}
    return made | joined


def shaken(network, seed=0):
    """Returns the network with every leaf moved, so that none is like another."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda v: v + 0.3 * rng.standard_normal(v.shape).astype("float32"),
        network.params,
    )
    return network._replace(params=params)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_every_layout_are_read(layout, tmp_path):
    clip = {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu"}
    config = SMALL._replace(**clip) if layout == "clip" else SMALL
    network = shaken(vit(config, jax.random.key(0)))
    tensors = as_file(network.params, layout)
    if layout == "clip":
        tensors["text_model.final_layer_norm.weight"] = np.ones(3, "float32")
        tensors["visual_projection.weight"] = np.ones((3, 16), "float32")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[layout]))
    found = load_pretrained(tmp_path, num_classes=3 if layout == "clip" else None)
    assert found.source.reads[:2] == Pixels(3, (8, 8))[:2]
    for name in network.params.keys() - ({"head"} if layout == "clip" else set()):
        jax.tree.map(
            np.testing.assert_array_equal,
            found.params[name],
            network.params[name],
        )
    tensors.pop(LAYOUTS[layout]["embeddings/class_token"])
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        InputError, match="does not fit the network: missing: .*class_token"
    ):
        load_pretrained(tmp_path, num_classes=3 if layout == "clip" else None)


def test_pixels_are_normalized_as_the_files_say(tmp_path):
    save_file(
        as_file(vit(SMALL, jax.random.key(0)).params, "hugging_face"),
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps(HUGGING_FACE))
    images = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.5, 1.0]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    network = load_pretrained(tmp_path)
    pixels = np.full((1, 8, 8, 3), 255, np.uint8)
    found, _ = forward(network.stages, network.params, network.stats, pixels, stop=1)
    np.testing.assert_allclose(found[0, 0, 0], [4.5, 1.6, 0.7], rtol=1e-6)


def test_counts_of_vit_base():
    """86,567,656 with 1,000 classes, as timm and torchvision have it; kinds as BERT's."""
    shapes = jax.eval_shape(lambda key: vit(ViTConfig(), key).params, jax.random.key(0))
    assert tree.count(shapes) == 86_567_656
    small = vit(SMALL._replace(num_layers=12), jax.random.key(0))
    base = Network(small.stages, shapes, small.stats, small.units)
    counts = {
        "query": 7_087_104,
        "intermediate": 28_348_416,
        "output": 28_320_768,
        "layer_norms": 36_864,
        "layer_5:layer_norms": 3_072,
        "biases": 101_376,
        "patch_embeddings": 590_592,
        "class_token": 768,
        "position_embeddings": 151_296,
        "final_norm": 1_536,
        "surgical:first3": 3 * 7_087_872,
    }
    for entry, count in counts.items():
        assert count_trainable(base, select(base, {"g": [entry]})) == count, entry


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_reads_what_it_says(pooling):
    network = vit(SMALL._replace(pooling=pooling), jax.random.key(0))
    pooler = next(stage for stage in network.stages if stage.name == "pooler")
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((2, 5, 16)).astype("float32")
    mean = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(1)
    normed = (mean - mean.mean(-1, keepdims=True)) / mean.std(-1, keepdims=True)
    found, _ = pooler.apply(
        network.params["pooler"], {}, jnp.asarray(tokens), batch_stats=False, key=None
    )
    np.testing.assert_allclose(found, normed, atol=1e-4)


def test_no_class_token():
    config = SMALL._replace(class_token=False, pooling="mean")
    network = vit(config, jax.random.key(0))
    chex.assert_shape(network.params["embeddings"]["position"], (4, 16))
    assert "class_token" not in network.units["kinds"]
    chex.assert_shape(network(np.zeros((2, 8, 8, 3), np.uint8)), (2, 3))


def test_dropout_and_bfloat16():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    network = vit(SMALL._replace(dropout=0.5), jax.random.key(0))

    def outputs(key):
        found = forward(network.stages, network.params, network.stats, pixels, key=key)
        return np.asarray(found[0])

    assert np.abs(outputs(jax.random.key(0)) - outputs(jax.random.key(1))).max() > 1e-4
    np.testing.assert_array_equal(outputs(None), network(pixels))
    half = vit(SMALL._replace(dtype="bfloat16"), jax.random.key(0))
    assert {v.dtype for v in jax.tree.leaves(half.params)} == {jnp.dtype("float32")}
    inside, _ = forward(half.stages, half.params, half.stats, pixels, stop=3)
    assert inside.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        half(pixels), vit(SMALL, jax.random.key(0))(pixels), atol=0.02
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": 3}, "images of 8 pixels do not divide into patches of 3"),
        ({"num_heads": 3}, "width 16 does not divide into 3 attention heads"),
        ({"class_token": False}, "pooling 'cls' needs a class token"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dropout": 1.0}, "dropout must be from 0 up to 1, got 1.0"),
        ({"num_layers": 0}, "num_layers"),
        ({"activation": "gleu"}, "unknown activation 'gleu'"),
    ],
)
def test_bad_configurations_end_in_one_sentence(change, said):
    with pytest.raises(InputError, match=said):
        vit(SMALL._replace(**change), jax.random.key(0))


def test_other_image_sizes_are_said():
    network = vit(SMALL, jax.random.key(0))
    with pytest.raises(InputError, match="images are 12 x 8 x 3: .* takes 8 x 8 x 3"):
        network(np.zeros((1, 12, 8, 3), np.uint8))
    with pytest.raises(InputError, match="images are 8 x 8 x 1: the network takes"):
        network(np.zeros((1, 8, 8, 1), np.uint8))


def test_timm_architectures():
    made = timm_config({"architecture": "vit_small_patch32_384", "num_classes": 7})
    assert made[:7] == (384, 32, 3, 384, 12, 6, 1536) and made.num_classes == 7
    made = timm_config(TIMM | {"global_pool": "avg"})
    assert made.pooling == "mean" and made.intermediate_size == 24
    assert (
        timm_config(TIMM | {"num_classes": 0}).num_classes == 2
    )  # no head in the file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "convnext_tiny"}, "not an architecture that is known"),
        ({"architecture": "vit_smal_patch16_224"}, "unknown size of ViT 'smal'"),
        ({"global_pool": "max"}, "unknown timm pooling 'max'"),
        (
            {"model_args": {"act_layer": "relu"}},
            "model arguments that are not known: act_layer='relu'",
        ),
    ],
)
def test_what_timm_has_and_we_have_not_is_said(change, said):
    with pytest.raises(InputError, match=said):
        timm_config(TIMM | change)


def test_what_hugging_face_writes_in_other_ways(tmp_path):
    made = hugging_face_config(HUGGING_FACE | {"image_size": [8, 8]}, {})
    assert made.image_size == 8
    with pytest.raises(InputError, match=r"must be square, got \[8, 4\]"):
        hugging_face_config(HUGGING_FACE | {"image_size": [8, 4]}, {})
    made = hugging_face_config(HUGGING_FACE, {"do_normalize": False})
    assert (made.mean, made.std) == ((0.0,), (1.0,))


def test_a_classifier_beside_clip_is_not_read(tmp_path):
    config = SMALL._replace(pre_norm=True, patch_bias=False, activation="quick_gelu")
    tensors = as_file(vit(config, jax.random.key(0)).params, "clip")
    tensors["classifier.weight"] = np.ones((2, 16), "float32")
    tensors["classifier.bias"] = np.ones(2, "float32")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CLIP))
    with pytest.raises(InputError, match="missing: params/head/bias"):
        load_pretrained(tmp_path)
    chex.assert_shape(
        load_pretrained(tmp_path, num_classes=5).params["head"]["bias"], (5,)
    )

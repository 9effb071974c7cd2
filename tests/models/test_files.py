"""What the files of a network say is honoured, known not to matter, or refused by name."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from subtune_jax import deltas, tree
from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError
from subtune_jax.head import replace_head
from subtune_jax.models.files.family import described
from subtune_jax.models.files.folder import wrapper
from subtune_jax.models.load import load_pretrained
from tests.data.test_inputs import refused
from tests.models.test_reference import CASES, inputs, loaded

BERT = {
    "model_type": "bert",
    **{"vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "intermediate_size": 16, "type_vocab_size": 2},
    **{"max_position_embeddings": 24, "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    "hidden_dropout_prob": 0.1,
}
VIT = {
    "model_type": "vit",
    **{"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "intermediate_size": 16, "layer_norm_eps": 1e-12},
    "hidden_act": "gelu",
}
TIMM = {
    "architecture": "vit_tiny_patch4_8",
    "num_classes": 3,
    "model_args": {"embed_dim": 8, "depth": 1, "num_heads": 2},
    "pretrained_cfg": {"input_size": [3, 8, 8]},
}


def network_of(config, images, tmp_path):
    return described(config, images, tmp_path, {}).network


@pytest.mark.parametrize(
    ("said", "factor"),
    [
        ({}, 1 / 255),
        ({"do_rescale": False}, 1),
        ({"rescale_factor": 1 / 127.5}, 1 / 127.5),
        ({"do_rescale": True, "rescale_factor": 0.00392156862745098}, 1 / 255),
        ({"do_rescale": False, "rescale_factor": 1 / 127.5}, 1),
        ({"do_rescale": False, "do_normalize": False}, 1),
        ({"rescale_factor": 2.0, "do_normalize": False}, 2),
    ],
)
@pytest.mark.parametrize("kind", ["vit", "clip_vision_model"])
def test_pixels_are_scaled_as_the_processor_says(tmp_path, kind, said, factor):
    images = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3} | said
    config = VIT | {"model_type": kind}
    stage = network_of(config, images, tmp_path).stages[0]
    pixels = np.full((1, 8, 8, 3), 200, np.uint8)
    x, _ = stage.apply({}, {}, pixels, batch_stats=False, key=None)
    mean, std = (0.5, 0.25) if images.get("do_normalize", True) else (0, 1)
    np.testing.assert_allclose(x, (200 * factor - mean) / std, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "images", "said"),
    [
        (BERT | {"quantization_config": {"bits": 4}}, {}, "quantization_config={'bits"),
        (BERT | {"is_decoder": True}, {}, "not known: is_decoder=True; remove from a"),
        (BERT | {"embedding_size": 4, "a": 1}, {}, "embedding_size=4, a=1; remove"),
        (BERT | {"position_embedding_type": "relative_key"}, {}, "are 'relative_key'"),
        (VIT | {"auto_map": {"AutoModel": "mine.Model"}}, {}, "auto_map={'AutoM"),
        (VIT, {"do_pad": True}, "preprocessor_config.json has.*do_pad=True"),
        (VIT, {"do_flip_channel_order": True}, "do_flip_channel_order=True"),
        (VIT, {"image_mean": [0.5, 0.5]}, "mean has 2 numbers: expected 1, or one for"),
        (
            {
                "model_type": "clip",
                "vision_config": {"use_rope": True, "hidden_size": 8},
            },
            {},
            "vision_config of config.json has.*use_rope=True",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name_and_value(tmp_path, config, images, said):
    with pytest.raises(InputError, match=said):
        network_of(config, images, tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {"use_cache": True, "torch_dtype": "float16", "classifier_dropout": 0.3},
        {"is_decoder": False, "pruned_heads": {}, "new_entry": None, "another": []},
        {"pooler_type": "first_token_transform", "directionality": "bidi"},
        {"sbert_ce_default_activation_function": "torch.nn.Sigmoid"},
    ],
)
def test_what_does_not_matter_is_passed_over(tmp_path, more):
    plain, told = (network_of(c, {}, tmp_path) for c in (BERT, BERT | more))
    assert tree.fingerprint(plain.params) == tree.fingerprint(told.params)


@pytest.mark.parametrize(
    "more",
    [
        {"num_classes": 3, "in_chans": 3, "img_size": 8, "global_pool": "token"},
        {"img_size": [8, 8], "drop_path_rate": 0.1, "dynamic_img_size": True},
        {"fc_norm": None, "qk_norm": False, "init_values": None, "reg_tokens": 0},
        {"fc_norm": True, "final_norm": True, "pos_embed": "learn"},
    ],
)
def test_what_timm_writes_of_the_same_network(tmp_path, more):
    told = TIMM | {"model_args": TIMM["model_args"] | more}
    a, b = (network_of(c, {}, tmp_path) for c in (TIMM, told))
    assert a.source == b.source
    assert tree.fingerprint(a.params) == tree.fingerprint(b.params)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"reg_tokens": 4}, "argument reg_tokens=4 is not known here: expected 0"),
        ({"init_values": 1e-5}, "init_values=1e-05"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"pre_norm": True}, "pre_norm=True"),
        ({"final_norm": False}, "final_norm=False is not known here: expected True"),
        ({"pos_embed": ""}, "pos_embed='' is not known here: expected 'learn'"),
        ({"global_pool": "avg", "fc_norm": False}, "fc_norm=False is not known"),
        ({"global_pool": "map"}, "unknown timm pooling 'map'"),
        ({"img_size": [8, 16]}, "images and patches must be square"),
        ({"act_layer": "quick_gelu"}, "not known: act_layer='quick_gelu'"),
    ],
)
def test_what_makes_another_network_of_timms_is_refused(tmp_path, more, said):
    config = TIMM | {"model_args": TIMM["model_args"] | more}
    with pytest.raises(InputError, match=said):
        network_of(config, {}, tmp_path)


def test_timms_arguments_are_read(tmp_path):
    more = {"in_chans": 1, "img_size": 16, "global_pool": "avg", "qkv_bias": False}
    config = TIMM | {"model_args": TIMM["model_args"] | more}
    network = network_of(config, {}, tmp_path)
    assert network.source.reads[:2] == (1, (16, 16))
    assert "bias" not in network.params["layer_0"]["attention"]["query"]
    grey = TIMM | {"architecture": "resnet18", "pretrained_cfg": {}}
    grey["model_args"] = {"in_chans": 1, "num_classes": 3, "global_pool": "avg"}
    assert network_of(grey, {}, tmp_path).source.reads.channels == 1
    with pytest.raises(InputError, match="resnet18 pools by 'max': expected avg"):
        network_of(grey | {"model_args": {"global_pool": "max"}}, {}, tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A BERT of the reference cases, and the case."""
    case = CASES["bert, gelu"]
    loaded(case, tmp_path)
    return tmp_path


def renamed(folder, rename):
    file = folder / "model.safetensors"
    save_file({rename(n): t for n, t in load_file(file).items()}, file)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."]
)
def test_a_prefix_of_all_names_is_left_off_and_said(folder, tmp_path, prefix):
    plain = load_pretrained(folder)
    renamed(folder, lambda name: prefix + name)
    with pytest.warns(UserWarning, match=f"begin with {prefix!r}, which is left off"):
        network = load_pretrained(folder)
    assert tree.fingerprint(network.params) == tree.fingerprint(plain.params)
    assert network.source.fingerprint == plain.source.fingerprint
    params = tree.map_with_path(
        lambda p, x: x + (p == "layer_1/norm/bias"), network.params
    )
    merged = deltas.merge(network._replace(params=params), tmp_path / "merged")
    assert merged.changed == (f"{prefix}bert.encoder.layer.1.output.LayerNorm.bias",)
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == (
        load_file(folder / "model.safetensors").keys()
    )


def test_a_prefix_of_some_names_is_no_prefix(folder):
    assert wrapper(["module.a", "module.b"]) == "module."
    assert wrapper(["module.a", "b"]) == wrapper([]) == ""
    renamed(folder, lambda name: "module." + name if "layer.0" in name else name)
    with pytest.raises(
        InputError, match="missing: params/layer_0/.*unexpected: module"
    ):
        load_pretrained(folder)


def test_long_lists_end_after_ten(folder):
    renamed(folder, lambda name: f"net.{name}")
    with pytest.raises(InputError, match="missing: .* and 31 more; unexp.*and 31 more"):
        load_pretrained(folder)


def test_an_index_beside_a_whole_file_is_refused(folder):
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="has both model.safetensors and model.saf"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["vit of masked images", "vit_mae", "vit, no bias"])
def test_vits_pretrained_by_masked_images_and_those_without_bias(tmp_path, name):
    case = CASES["vit"]
    network = loaded(case, tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors = {n: t for n, t in load_file(file).items() if "classifier" not in n}
    text = json.loads(config.read_text())
    if name == "vit, no bias":
        text["qkv_bias"] = False
        bias = ("query.bias", "key.bias", "value.bias")
        tensors = {n: t for n, t in tensors.items() if not n.endswith(bias)}
    else:
        tensors["vit.embeddings.mask_token"] = np.ones((1, 1, 32), np.float32)
        tensors["decoder.0.weight"] = np.ones((4, 4, 1, 1), np.float32)
    if name == "vit_mae":
        text |= {"model_type": "vit_mae", "mask_ratio": 0.75, "decoder_hidden_size": 8}
    save_file(tensors, file)
    config.write_text(json.dumps(text))
    read = load_pretrained(tmp_path, 2)
    assert read.params["head"]["kernel"].shape[1] == 2
    query = read.params["layer_0"]["attention"]["query"]
    np.testing.assert_array_equal(
        query["kernel"], network.params["layer_0"]["attention"]["query"]["kernel"]
    )
    assert ("bias" in query) == (name != "vit, no bias")
    with pytest.raises(InputError, match="num_classes=N gives a fresh head, 0 the fea"):
        load_pretrained(tmp_path)


def test_features_are_what_the_head_gets(folder):
    x = inputs(CASES["bert, gelu"])
    network, encoder = load_pretrained(folder), load_pretrained(folder, 0)
    features = encoder(x)
    assert features.shape == (3, 32)
    head = network.params["head"]
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"][None], network(x), atol=1e-5
    )
    data = Dataset(x, np.array([0, 1, 0]))
    refused(encoder, data, "gives features and has no head: replace_head", ("fit",))
    fresh = replace_head(encoder, 5, jax.random.key(0))
    delta = deltas.from_bytes(deltas.to_bytes(deltas.extract(encoder, fresh)))
    np.testing.assert_array_equal(deltas.apply(encoder, delta)[0](x), fresh(x))


def sentence_encoder(folder, pooling, modules=("Transformer", "Pooling", "Normalize")):
    """Makes the folder one of sentence-transformers."""
    listed = [
        {
            "idx": i,
            "path": f"{i}_{m}" if i else "",
            "type": f"sentence_transformers.{m}",
        }
        for i, m in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("pooling", "option"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls", "word_embedding_dimension": 32}, "cls"),
    ],
)
def test_a_sentence_encoder_pools_as_its_folder_says(folder, pooling, option):
    x = inputs(CASES["bert, gelu"])
    expected = load_pretrained(folder, 0, pooling=option)(x)
    sentence_encoder(folder, pooling)
    renamed(folder, lambda name: name.removeprefix("bert."))
    tensors = load_file(folder / "model.safetensors")
    body = {n: t for n, t in tensors.items() if "classifier" not in n}
    save_file(body, folder / "model.safetensors")
    np.testing.assert_array_equal(load_pretrained(folder)(x), expected)
    other = "cls" if option == "mean" else "mean"
    assert np.abs(load_pretrained(folder, pooling=other)(x) - expected).max() > 0.01


@pytest.mark.parametrize(
    ("pooling", "modules", "said"),
    [
        (
            {"pooling_mode_max_tokens": True},
            ("Transformer", "Pooling"),
            "max_tokens: exp",
        ),
        ({}, ("Transformer", "Pooling"), "pools by nothing"),
        ({}, ("Transformer", "Pooling", "Dense"), "modules that are not known: Dense"),
    ],
)
def test_a_sentence_encoder_of_other_modules_is_refused(folder, pooling, modules, said):
    sentence_encoder(folder, pooling, modules)
    with pytest.raises(InputError, match=said):
        load_pretrained(folder, 2)


def test_another_pooling_leaves_modules_out(folder):
    sentence_encoder(
        folder, {"pooling_mode_max_tokens": True}, ("Transformer", "Dense")
    )
    load_pretrained(folder, 2, pooling="cls")


@pytest.mark.parametrize("kind", [["bert"], {}, 5])
def test_a_model_type_that_is_no_text(tmp_path, kind):
    with pytest.raises(InputError, match="unknown model type|has no model_type"):
        network_of(BERT | {"model_type": kind}, {}, tmp_path)


def test_minilm_in_python(minilm, real_data, tmp_path):
    encoder = load_pretrained("minilm")
    x = {
        "input_ids": np.array([[101, 7592, 102]]),
        "attention_mask": np.ones((1, 3), int),
    }
    mean = load_pretrained("minilm", 0, pooling="mean")
    np.testing.assert_array_equal(encoder(x), mean(x))
    assert encoder(x).shape == (1, 384)
    shutil.copytree(minilm, tmp_path / "copy", dirs_exist_ok=True)
    (tmp_path / "copy" / "modules.json").unlink()
    dense = load_pretrained(tmp_path / "copy", 0)  # a BERT with a pooler
    assert np.abs(dense(x) - encoder(x)).max() > 0.01

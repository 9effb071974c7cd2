"""Files of weights whose parts disagree, and defaults from outside, written down."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import subtune_jax as st
from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.models.files.folder import stored, stored_by_file
from subtune_jax.models.files.vit import clip_config
from tests import toy


def test_a_tensor_is_read_from_the_shard_that_the_index_names(tmp_path):
    """Both shards have `a`; the second one's is out of date."""
    one, two = (np.full(3, value, np.float32) for value in (1, 2))
    save_file({"a": one, "b": one}, tmp_path / "1.safetensors")
    save_file({"a": two, "c": two}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}
    index["weight_map"]["c"] = "2.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = stored(tmp_path)
    assert {name: float(t[0]) for name, t in tensors.items()} == {
        "a": 1,
        "b": 1,
        "c": 2,
    }
    files = {file: sorted(here) for file, here in stored_by_file(tmp_path).items()}
    assert files == {"1.safetensors": ["a", "b"], "2.safetensors": ["c"]}


def test_what_a_clip_configuration_leaves_out_is_that_of_vit_b_32():
    config = clip_config({"model_type": "clip"}, {})
    found = config._asdict()
    expected = {
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 32,
        "epsilon": 1e-5,
        "activation": "quick_gelu",
        "pre_norm": True,
        "patch_bias": False,
    }
    assert {name: found[name] for name in expected} == expected
    # OpenAI's, on the scale of pixels.
    np.testing.assert_allclose(
        config.mean, (0.48145466, 0.4578275, 0.40821073), rtol=1e-6
    )
    np.testing.assert_allclose(
        config.std, (0.26862954, 0.26130258, 0.27577711), rtol=1e-6
    )


def test_statistics_come_back_from_a_checkpoint_too(tmp_path):
    written = toy.small_resnet("batch")
    moved = jax.tree.map(lambda x: x + 3, written.stats)
    st.models.to_orbax(written._replace(stats=moved), tmp_path / "all")
    back = st.models.from_orbax(written, tmp_path / "all")
    assert tree.fingerprint(back.stats) == tree.fingerprint(moved)
    assert tree.fingerprint(back.stats) != tree.fingerprint(written.stats)


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.attention(x[:, None])[:, 0])


def test_kernels_of_three_axes_have_the_axes_of_their_module():
    """M3: query [8, 2, 4] is a map of 8 to 8, the output's kernel [2, 4, 8] too."""
    module = Attention(nnx.Rngs(0))
    network = st.from_nnx(module)
    labels = st.select(network, {"g": [".*"]})
    with pytest.raises(
        InputError, match=r"key/kernel' has shape \[8, 2, 4\], and wheth"
    ):
        st.tuning.lora(2).init(network.params, labels)
    axes = st.models.output_axes(module)
    parts = st.tuning.lora(2, axes=axes).init(network.params, labels)
    shapes = {path: leaf.shape for path, leaf in tree.flatten(parts.trainable).items()}
    inside = "model/attention"
    assert shapes == {
        **{f"{inside}/{n}/kernel/a": (8, 2) for n in ("key", "query", "value", "out")},
        **{f"{inside}/{n}/kernel/b": (2, 8) for n in ("key", "query", "value", "out")},
        "model/out/kernel/a": (8, 2),
        "model/out/kernel/b": (2, 3),
    }
    with pytest.raises(InputError, match="whether one or two of its axes are outputs"):
        st.tuning.diff_pruning(1e-3, structure="neuron").init(network.params, labels)
    gates = st.tuning.diff_pruning(1e-3, structure="neuron", axes=axes)
    groups = {
        path.rpartition("/")[0].removeprefix("model/"): leaf.shape
        for path, leaf in tree.flatten(
            gates.init(network.params, labels).trainable
        ).items()
        if path.endswith("group_log_alpha")
    }
    assert groups["attention/query/kernel"] == (1, 2, 4)
    assert groups["attention/out/kernel"] == (1, 1, 8)
    assert groups["attention/query/bias"] == (2, 4)
    assert groups["out/kernel"] == (1, 3) and groups["out/bias"] == (3,)

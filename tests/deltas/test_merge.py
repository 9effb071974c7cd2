"""A full checkpoint in the layout of its source: only what was tuned differs there."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from subtune_jax import deltas, tree
from subtune_jax.errors import InputError
from subtune_jax.head import replace_head
from subtune_jax.models.load import load_pretrained
from tests import toy
from tests.models.test_reference import CASES, inputs, loaded

DRAW = jax.nn.initializers.lecun_normal()
# One leaf of each case's network, and the one tensor of its file that holds it.
TUNED = {
    "bert": (
        "layer_1/attention/query/kernel",
        "encoder.layer.1.attention.self.query.weight",
    ),
    "roberta": (
        "layer_1/norm/scale",
        "roberta.encoder.layer.1.output.LayerNorm.weight",
    ),
    "clip": ("layer_0/intermediate/bias", "encoder.layers.0.mlp.fc1.bias"),
    "vit of timm": ("layer_1/attention/key/kernel", "blocks.1.attn.qkv.weight"),
    "vit of torchvision": ("embeddings/position", "encoder.pos_embedding"),
    "vit": (
        "embeddings/patch/kernel",
        "vit.embeddings.patch_embeddings.projection.weight",
    ),
    "resnet": ("block2_0/conv1/kernel", "layer2.0.conv1.weight"),
    "wide resnet": ("block2_0/shortcut/kernel", "block2.layer.0.convShortcut.weight"),
}


def tuned(network, path):
    """Returns the network with one leaf and the head changed."""
    change = {path: 0.25, "head/kernel": -0.5}
    params = tree.map_with_path(lambda p, x: x + change.get(p, 0), network.params)
    return network._replace(params=params)


def bytes_of(folder):
    tensors = load_file(folder / "model.safetensors")
    return {name: (t.shape, str(t.dtype), t.tobytes()) for name, t in tensors.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_layout_is_written_as_it_was_read(name, tmp_path):
    case, source = CASES[name], tmp_path / "source"
    source.mkdir()
    network = loaded(case, source)
    path, stored = next(pair for start, pair in TUNED.items() if name.startswith(start))
    after = tuned(network, path)
    merged = deltas.merge(after, tmp_path / "merged")
    theirs, ours = bytes_of(source), bytes_of(merged.folder)
    differing = {n for n in theirs if theirs[n] != ours[n]}
    heads = {n for n in differing if n.split(".")[0] in ("classifier", "head", "heads")}
    heads |= {n for n in differing if n.split(".")[0] in ("fc", "linear", "qa_outputs")}
    (only,) = differing - heads
    assert only.endswith(stored) and set(merged.changed) == differing
    assert theirs.keys() == ours.keys()
    headless = name.startswith("clip") or "features" in case
    inside = "pooling" not in case.get("options", {}) and not headless
    assert inside == bool(heads) == (merged.head.name == "model.safetensors")
    if inside:
        again = load_pretrained(merged.folder, **case.get("options", {}))
        np.testing.assert_array_equal(again(inputs(case)), after(inputs(case)))
    else:
        head = load_file(merged.head)
        np.testing.assert_array_equal(head["weight"].T, after.params["head"]["kernel"])
        np.testing.assert_array_equal(head["bias"], after.params["head"]["bias"])
    deltas.restore(merged.folder, tmp_path / "restored")
    assert bytes_of(tmp_path / "restored") == theirs
    config = (tmp_path / "restored" / "config.json").read_text()
    assert config == (source / "config.json").read_text()


def test_a_head_of_another_size_brings_its_classes(tmp_path):
    case = CASES["resnet, batch norm"]
    network = loaded(case, tmp_path)
    after = replace_head(network, 5, jax.random.key(0), init=DRAW)
    stats = jax.tree.map(lambda x: x + 1, after.stats)
    names = tuple("abcde")
    after = after._replace(stats=stats, source=after.source._replace(classes=names))
    merged = deltas.merge(after, tmp_path / "merged")
    again = load_pretrained(merged.folder)
    assert again.source.classes == names
    np.testing.assert_array_equal(again(inputs(case)), after(inputs(case)))
    assert all("running" in n or n.startswith("linear") for n in merged.changed)
    deltas.restore(merged.folder, tmp_path / "restored")
    assert bytes_of(tmp_path / "restored") == bytes_of(tmp_path)


def test_stored_types_shards_and_unread_tensors_are_kept(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    network = loaded(CASES["resnet, group norm"], source)
    whole = load_file(source / "model.safetensors")
    whole = {n: t.astype(jnp.bfloat16) for n, t in whole.items()}
    halves = [dict(list(whole.items())[i::2]) for i in range(2)]
    named = {}
    for number, half in enumerate(halves):
        file = f"model-{number}.safetensors"
        save_file(half, source / file, {"format": "pt"})
        named |= dict.fromkeys(half, file)
    (source / "model.safetensors").unlink()
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": named}))
    network = load_pretrained(source)
    merged = deltas.merge(tuned(network, "block2_0/conv1/kernel"), tmp_path / "merged")
    for number, half in enumerate(halves):
        file = merged.folder / f"model-{number}.safetensors"
        assert {n: t.dtype for n, t in load_file(file).items()} == {
            n: jnp.bfloat16 for n in half
        }
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert set(merged.changed) == {"layer2.0.conv1.weight", "fc.weight"}
    assert merged.head.name == named["fc.weight"]
    after = json.loads((merged.folder / "model.safetensors.index.json").read_text())
    assert after["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert after["weight_map"] == named


def test_the_index_of_shards_has_the_bytes_of_what_is_beside_it(tmp_path):
    """A head of five classes in place of three takes more; the base's takes fewer again."""
    source = tmp_path / "source"
    source.mkdir()
    loaded(CASES["resnet, group norm"], source)
    whole = load_file(source / "model.safetensors")
    shard, index = "model-1.safetensors", "model.safetensors.index.json"
    (source / "model.safetensors").rename(source / shard)
    said = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(whole, shard)}
    (source / index).write_text(json.dumps(said))
    network = load_pretrained(source)
    inputs, classes = network.params["head"]["kernel"].shape
    after = replace_head(network, classes + 2, jax.random.key(0), init=DRAW)
    merged = deltas.merge(after, tmp_path / "merged").folder
    restored = deltas.restore(merged, tmp_path / "restored")
    sizes = [
        json.loads((folder / index).read_text())["metadata"]["total_size"]
        for folder in (merged, restored)
    ]
    before = sum(tensor.nbytes for tensor in whole.values())
    assert sizes == [before + 2 * (inputs + 1) * 4, before]


def test_scalars_and_other_merges_and_modules_beside_them(tmp_path):
    network = loaded(CASES["resnet, batch norm"], tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"bn1.num_batches_tracked": np.array(7)}, file)
    (tmp_path / "2_Dense").mkdir()
    save_file({"w": np.ones(2)}, tmp_path / "2_Dense" / "model.safetensors")
    network = load_pretrained(tmp_path)
    one = deltas.merge(network, tmp_path / "one").folder
    two = deltas.merge(network, tmp_path / "two").folder
    assert bytes_of(two) == bytes_of(tmp_path)
    assert (two / "2_Dense" / "model.safetensors").exists()
    assert (one / "overwritten.delta").exists()
    assert sorted(file.name for file in two.iterdir()) == [
        "2_Dense",
        "config.json",
        "model.safetensors",
        "overwritten.delta",
        "preprocessor_config.json",
    ]


def test_values_classes_and_stages_that_do_not_fit(tmp_path):
    network = loaded(CASES["resnet, group norm"], tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({n: t.astype(np.float16) for n, t in load_file(file).items()}, file)
    network = load_pretrained(tmp_path)
    params = tree.map_with_path(
        lambda p, x: x + 1e5 * (p == "block2_0/conv1/kernel"), network.params
    )
    with pytest.raises(
        InputError, match="layer2.0.conv1.weight has values beyond float16"
    ):
        deltas.merge(network._replace(params=params), tmp_path / "merged")
    source = network.source._replace(classes=("a", "b"))
    with pytest.raises(InputError, match="the network has 3 outputs and 2 class names"):
        deltas.merge(network._replace(source=source), tmp_path / "merged")
    params = {n: v for n, v in network.params.items() if n != "block2_0"}
    with pytest.raises(InputError, match="give the whole network, not a suffix of it"):
        deltas.merge(network._replace(params=params), tmp_path / "merged")
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="cannot read .*config.json: No such file"):
        deltas.merge(network, tmp_path / "merged")


def test_a_normalized_head_goes_into_its_own_file(tmp_path):
    network = loaded(CASES["resnet, group norm"], tmp_path)
    after = replace_head(network, 3, normalize="batch_affine")
    merged = deltas.merge(after, tmp_path / "merged")
    assert merged.changed == () and merged.head.name == "head.safetensors"
    assert load_file(merged.head).keys() == {
        "weight",
        "bias",
        *(f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
    }
    assert bytes_of(merged.folder) == bytes_of(tmp_path)


def test_what_cannot_be_merged_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="this one was not: write it with models.save"):
        deltas.merge(toy.mlp(), tmp_path / "merged")
    network = loaded(CASES["resnet, group norm"], tmp_path)
    with pytest.raises(InputError, match="exists: give a new folder"):
        deltas.merge(network, tmp_path)
    merged = deltas.merge(tuned(network, "block2_0/conv1/kernel"), tmp_path / "merged")
    file = tmp_path / "model.safetensors"
    save_file({n: t + 1 for n, t in load_file(file).items()}, file)
    with pytest.raises(InputError, match="have changed since they were loaded"):
        deltas.merge(network, tmp_path / "other")
    merged_file = merged.folder / "model.safetensors"
    save_file({n: t + 1 for n, t in load_file(merged_file).items()}, merged_file)
    with pytest.raises(InputError, match="are not those that were merged"):
        deltas.restore(merged.folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not [p for p in Path(tmp_path).iterdir() if p.name.startswith(".")]
    assert network.source.reads[:2] == (3, (16, 16))

"""Real weights: parity with PyTorch, and every way a folder can be wrong."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from subtune_jax import tree
from subtune_jax.data.tfds import images
from subtune_jax.errors import InputError
from subtune_jax.models.load import load_pretrained
from subtune_jax.models.save import restore, save
from subtune_jax.network import Pixels
from subtune_jax.training.predict import evaluate
from tests.models.test_reference import CASES, loaded

pytestmark = pytest.mark.slow

# Stated in the data's README, in percent: of all 10,000 test images, or the first 2,000.
ACCURACY = {
    "resnet26_gn_cifar10": ("test[:2000]", 91.15),
    "resnet20_cifar10": ("test", 91.73),
    "resnet32_cifar10": ("test[:2000]", 92.70),
}


def test_every_set_of_weights_is_tested(real_data):
    assert {p.name for p in (real_data / "weights").iterdir()} == set(ACCURACY)


@pytest.mark.parametrize("name", ACCURACY)
def test_logits_are_pytorchs(real_data, name):
    expected = np.load(real_data / "fixtures" / f"{name}.npz")
    made = load_pretrained(real_data / "weights" / name)
    assert made.source.reads[:2] == Pixels(3, (32, 32))[:2]
    difference = np.abs(np.asarray(made(expected["images"])) - expected["logits"])
    assert difference.max() <= 1e-4


@pytest.mark.parametrize("name", ACCURACY)
def test_accuracy_is_the_stated_one(real_data, name):
    network = load_pretrained(real_data / "weights" / name)
    split, stated = ACCURACY[name]
    found = evaluate(network, images("cifar10", split, real_data / "tfds"))
    assert found == pytest.approx(stated, abs=0.05)


def test_a_new_head(real_data):
    folder = real_data / "weights" / "resnet20_cifar10"
    network = load_pretrained(folder, num_classes=3)
    chex.assert_shape(network.params["head"]["kernel"], (64, 3))
    assert not np.any(network.params["head"]["kernel"])
    drawn = load_pretrained(folder, num_classes=3, key=jax.random.key(0))
    assert np.all(drawn.params["head"]["kernel"])
    assert network.stages == load_pretrained(folder).stages


def test_the_fingerprint_is_of_the_stored_tensors_without_the_head(folder):
    before = load_pretrained(folder).source.fingerprint

    def other_head(tensors):
        tensors["linear.bias"] = tensors["linear.bias"] + 1

    def other_body(tensors):
        tensors["bn1.bias"] = tensors["bn1.bias"] + 1

    def narrower(tensors):
        tensors["bn1.bias"] = tensors["bn1.bias"].astype(np.float16)

    respoil(folder, other_head)
    assert load_pretrained(folder).source.fingerprint == before
    respoil(folder, narrower)
    after = load_pretrained(folder).source.fingerprint
    respoil(folder, other_body)
    assert len({before, after, load_pretrained(folder).source.fingerprint}) == 3


@pytest.fixture
def folder(real_data, tmp_path):
    """A copy of real weights to spoil."""
    made = tmp_path / "weights"
    shutil.copytree(real_data / "weights" / "resnet20_cifar10", made)
    return made


def respoil(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_missing_unexpected_and_misshapen_tensors_are_listed_at_once(folder):
    def change(tensors):
        del tensors["layer1.0.conv1.weight"], tensors["linear.bias"]
        tensors["layer9.0.conv1.weight"] = np.zeros((1, 1, 3, 3), np.float32)
        tensors["conv1.weight"] = np.zeros((16, 1, 3, 3), np.float32)

    respoil(folder, change)
    with pytest.raises(InputError) as error:
        load_pretrained(folder)
    said = str(error.value)
    assert "missing: params/block1_0/conv1/kernel, params/head/bias;" in said
    assert "unexpected: layer9.0.conv1.weight;" in said
    assert (
        "misshapen: conv1.weight float32[3, 3, 1, 16] (expected float[3, 3, 3, 16]"
        in said
    )
    assert "\n" not in said


def test_what_would_be_overwritten_or_has_no_norm_is_unexpected(folder):
    def change(tensors):
        tensors["fc.bias"] = tensors["linear.bias"]
        tensors["layer9.9.bn9.num_batches_tracked"] = np.zeros((), np.int64)
        tensors["bn1.num_batches_tracked"] = np.zeros(
            (), np.int64
        )  # stands beside a norm

    respoil(folder, change)
    with pytest.raises(InputError, match="unexpected: ") as error:
        load_pretrained(folder)
    said = str(error.value)
    assert "layer9.9.bn9.num_batches_tracked" in said and " bn1.num" not in said
    assert "linear.bias" in said or "fc.bias" in said


def spoil_config(**changes):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return spoil


def drop(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder"),
        (
            lambda folder: [p.unlink() for p in folder.iterdir()],
            "has no model.safetensors",
        ),
        (drop("config.json"), "has no config.json"),
        (write("config.json", b"{"), "is not a JSON file"),
        (write("config.json", b"[]"), "is a JSON list: expected an object"),
        (
            write("config.json", b"{}"),
            "has no model_type: expected one of bert, roberta",
        ),
        (
            write("config.json", b'{"blocks_per_stage": [1]}'),
            "describes no residual network: 'norm' is missing",
        ),
        (spoil_config(norm={"type": "layer"}), "unknown norm type 'layer'"),
        (spoil_config(block={"type": "bottleneck"}), "unknown block type 'bottleneck'"),
        (spoil_config(widths=[16, 32]), "3 stages of blocks and 2 widths"),
        (spoil_config(blocks_per_stage=4), "describes no residual network"),
        (
            spoil_config(norm={"type": "group_norm", "num_groups": 7}),
            "do not divide into 7 groups",
        ),
        (write("model.safetensors", b"x" * 100), "is not a readable safetensors file"),
    ],
)
def test_a_folder_that_cannot_be_used_is_said_in_a_sentence(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "resnet20-12fca82f.th", "ckpt.pth"]
)
def test_a_pickle_is_refused_and_how_to_convert_it_is_said(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(
        InputError, match=f"a pickle \\({name}\\).*safetensors.torch.save_file"
    ):
        load_pretrained(folder)


def test_a_hub_id_without_network_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError,
        match="nobody/nothing is not a folder here and could not be downloaded",
    ):
        load_pretrained("nobody/nothing")


def test_a_hub_repository_without_safetensors_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path)
    )
    with pytest.raises(InputError, match="has no model.safetensors"):
        load_pretrained("somebody/pickles")


def test_values_are_the_files(real_data):
    folder = real_data / "weights" / "resnet32_cifar10"
    tensors, network = load_file(folder / "model.safetensors"), load_pretrained(folder)
    flat = tree.flatten({"params": network.params, "stats": network.stats})
    conv = tensors["layer2.3.conv2.weight"]
    np.testing.assert_array_equal(
        flat["params/block2_3/conv2/kernel"], conv.transpose(2, 3, 1, 0)
    )
    mean = tensors["layer3.0.bn1.running_mean"]
    np.testing.assert_array_equal(flat["stats/block3_0/norm1/mean"], mean)
    assert len(flat) == len([n for n in tensors if "num_batches" not in n])


def test_a_loaded_network_is_saved_and_comes_back(tmp_path):
    (tmp_path / "source").mkdir()
    network = loaded(CASES["resnet, batch norm"], tmp_path / "source")
    save(network, tmp_path / "ours.safetensors")
    zeros = jax.tree.map(np.zeros_like, network.params)
    back = restore(network._replace(params=zeros), tmp_path / "ours.safetensors")
    jax.tree.map(np.testing.assert_array_equal, back.params, network.params)
    jax.tree.map(np.testing.assert_array_equal, back.stats, network.stats)

"""Networks against stored outputs of PyTorch's (tests/fixtures/make.py), without torch."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from subtune_jax import tree
from subtune_jax.models.load import load_pretrained
from subtune_jax.network import forward
from tests.fixtures.weights import pixels, texts, weights

CASES = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "reference.json").read_text()
)


def loaded(case, folder):
    save_file(weights(case["tensors"], "deep" in case), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case["config"]))
    if "images" in case:
        (folder / "preprocessor_config.json").write_text(json.dumps(case["images"]))
    clip = case["config"].get("model_type") == "clip_vision_model"
    head = 0 if clip or case.get("features") else None  # no head in the file
    return load_pretrained(folder, num_classes=head, **case.get("options", {}))


def inputs(case):
    if "size" in case:
        return pixels(case["size"])
    x = texts(case["pad"])
    if case["config"]["type_vocab_size"] == 1:
        x["token_type_ids"][:] = 0
    return x


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_pytorch(name, tmp_path):
    case, x = CASES[name], inputs(CASES[name])
    network, theirs = loaded(case, tmp_path), np.array(case["outputs"])
    ours = np.asarray(network(x))
    if name == "bert, spans":
        real = x["attention_mask"] == 1
        ours, theirs = ours[real], theirs[real]
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)


def test_running_statistics_move_as_pytorchs_do(tmp_path):
    case = CASES["resnet, batch norm"]
    network, x = loaded(case, tmp_path), inputs(case)
    every = frozenset(stage.name for stage in network.stages)
    _, stats = forward(
        network.stages, network.params, network.stats, x, batch_stats=every
    )
    moved = sorted(float(np.sum(leaf)) for leaf in jax.tree.leaves(stats))
    theirs = sorted(float(np.sum(values)) for values in case["running"].values())
    assert len(moved) == len(theirs) == len(tree.flatten(network.stats))
    np.testing.assert_allclose(moved, theirs, rtol=0.02)
    # Theirs has the unbiased variance of the batch, ours the biased one: the means are equal.
    means = [
        leaf for path, leaf in tree.flatten(stats).items() if path.endswith("mean")
    ]
    their_means = [v for name, v in case["running"].items() if name.endswith("mean")]
    total = [
        np.sort(np.concatenate([np.ravel(v) for v in part]))
        for part in (means, their_means)
    ]
    np.testing.assert_allclose(*total, atol=1e-5)

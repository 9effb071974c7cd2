"""Residual networks of ImageNet and wide ones: counts, costs, units, files."""

import json

import jax
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.cost import stage_flops
from subtune_jax.errors import InputError
from subtune_jax.models.imagenet_resnet import imagenet_resnet, sized
from subtune_jax.models.load import load_pretrained
from subtune_jax.models.resnet import WIDE_28_10, resnet
from subtune_jax.network import Network
from subtune_jax.selection.select import match


def shaped(build, config):
    """Returns the network with shapes in the place of its weights: nothing is drawn."""
    stages = []

    def parts(key):
        network = build(config, key)
        stages.append(network)
        return network.params, network.stats

    params, stats = jax.eval_shape(parts, jax.random.key(0))
    network = stages[0]
    return Network(network.stages, params, stats, network.units)


RESNET50 = shaped(imagenet_resnet, sized("resnet50"))
WIDE = shaped(resnet, WIDE_28_10)


@pytest.mark.parametrize(
    ("network", "parameters", "blocks"),
    [
        # torchvision's counts with 1,000 classes; without fc, 11,176,512 and 23,508,032.
        (shaped(imagenet_resnet, sized("resnet18")), 11_689_512, 8),
        (shaped(imagenet_resnet, sized("resnet34")), 21_797_672, 16),
        (RESNET50, 25_557_032, 16),
        (shaped(imagenet_resnet, sized("resnet101")), 44_549_160, 33),
        (WIDE, 36_479_194, 12),  # Zagoruyko and Komodakis: 36.5 million
    ],
)
def test_counts_and_units_that_cover_every_leaf_once(network, parameters, blocks):
    assert tree.count(network.params) == parameters
    for table in ("coarse", "fine"):
        units = network.units[table]
        owned = [name for unit in units for name in match(network, f"{table}:{unit}")]
        assert sorted(owned) == sorted(tree.flatten(network.params))
    assert sum(unit.startswith("block") for unit in network.units["fine"]) == blocks


def test_blocks_of_resnet50_have_the_sizes_and_costs_of_the_paper():
    """Parameters of a block and its multiply-adds at 224 x 224, in millions, by
    papers/subtuning.md 1.7, which counts the positions of padding."""
    image = np.zeros((1, 224, 224, 3), np.uint8)
    flops = stage_flops(RESNET50, image, padding=True)
    blocks = [name for name in flops if name.startswith("block")]
    adds = [flops[name] / 2e6 for name in blocks]
    strided, plain = 372.5, 218.4
    paper = [231.2, plain, plain, strided, plain, plain, plain, strided]
    paper += [plain] * 5 + [strided, plain, plain]
    np.testing.assert_allclose(adds, paper, rtol=0.01)
    body = sum(flops.values()) - flops["head"]
    np.testing.assert_allclose(body / 2e6, 4_087, rtol=0.01)
    sizes = [tree.count(RESNET50.params[name]) for name in blocks]
    assert sizes[:4] == [75_008, 70_400, 70_400, 379_392]
    assert sizes[13:] == [6_039_552, 4_462_592, 4_462_592]


def test_a_file_of_another_network_is_refused(tmp_path):
    def described(**change):
        config = {"architecture": "resnet50", "num_classes": 3, "pretrained_cfg": {}}
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        (tmp_path / "model.safetensors").write_bytes(b"")
        return load_pretrained(tmp_path)

    with pytest.raises(
        InputError, match="unknown residual network 'resnet26': expected"
    ):
        described(architecture="resnet26")
    with pytest.raises(InputError, match="timm model arguments.*: stem_type='deep'"):
        described(model_args={"stem_type": "deep"})


def test_a_projection_needs_what_it_projects():
    with pytest.raises(InputError, match="a projection needs pre-activated blocks"):
        resnet(WIDE_28_10._replace(preactivation=False), jax.random.key(0))
    with pytest.raises(InputError, match="a stem of another width .* projection=True"):
        resnet(WIDE_28_10._replace(projection=False), jax.random.key(0))

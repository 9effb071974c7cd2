import chex
import jax
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.models.resnet import (
    ResNetConfig,
    pooled_shortcut,
    resnet,
    subsampled_shortcut,
)
from subtune_jax.models.save import restore, save
from subtune_jax.selection.select import match
from tests import toy


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ResNetConfig(channels=1), 75_002),
        (ResNetConfig(blocks=(4, 4, 4)), 366_938),
        (ResNetConfig(blocks=(3, 3, 3), norm="batch", preactivation=False), 269_722),
        (ResNetConfig(blocks=(5, 5, 5), norm="batch", preactivation=False), 464_154),
        (ResNetConfig(blocks=(7, 7, 7), norm="batch", preactivation=False), 658_586),
        (ResNetConfig(blocks=(9, 9, 9), norm="batch", preactivation=False), 853_018),
    ],
)
def test_parameter_counts_and_units_that_cover_every_leaf_once(config, parameters):
    shapes = jax.eval_shape(lambda key: resnet(config, key).params, jax.random.key(0))
    assert tree.count(shapes) == parameters
    network = resnet(config, jax.random.key(0))
    for table in ("coarse", "fine"):
        found = [
            name
            for unit in network.units[table]
            for name in match(network, f"{table}:{unit}")
        ]
        assert sorted(found) == sorted(tree.flatten(network.params))


def test_the_surgical_mapping_of_resnet26():
    network = resnet(ResNetConfig(blocks=(4, 4, 4)), jax.random.key(0))
    sizes = {
        unit: sum(
            tree.flatten(network.params)[n].size
            for n in match(network, f"surgical:{unit}")
        )
        for unit in network.units["surgical"]
    }
    # Of the paper's network: conv1 432, stages 18,688 / 69,600 / 277,440, norm 128, fc 650
    assert sizes == {
        "block1": 432 + 18_688,
        "block2": 69_600,
        "block3": 277_440,
        "last": 650,
    }


def test_stages_have_the_names_and_shapes_they_should():
    network = toy.small_resnet()
    names = ["input", "stem", "block1_0", "block2_0", "block3_0", "pool", "head"]
    assert [stage.name for stage in network.stages] == names
    chex.assert_shape(network(np.zeros((2, 8, 8, 1), np.uint8)), (2, 3))
    assert list(tree.flatten(network.params["block2_0"])) == [
        "conv1/kernel",
        "conv2/kernel",
        "norm1/bias",
        "norm1/scale",
        "norm2/bias",
        "norm2/scale",
    ]


def test_equal_blocks_share_one_apply_so_equal_configs_share_traces():
    config = ResNetConfig(blocks=(2, 2, 2))
    one, two = (resnet(config, jax.random.key(seed)) for seed in (0, 1))
    assert one.stages == two.stages
    assert one.stages[2].apply is one.stages[3].apply is not one.stages[4].apply


def test_shortcuts_of_a_literal_image():
    x = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    assert pooled_shortcut(x, 3).ravel().tolist() == [1.5, 0, 0]
    assert subsampled_shortcut(x + 1, 3).ravel().tolist() == [0, 1, 0]
    assert pooled_shortcut(x, 1) is x


def test_an_unknown_norm_is_refused():
    with pytest.raises(
        InputError, match="unknown norm 'layer': expected one of group, batch"
    ):
        resnet(ResNetConfig(norm="layer"), jax.random.key(0))


def test_a_saved_network_is_restored_bit_for_bit_and_another_is_refused(tmp_path):
    network, file = toy.small_resnet(), tmp_path / "deep" / "n.safetensors"
    save(network, file)
    back = restore(
        toy.small_resnet()._replace(
            params=jax.tree.map(lambda a: a * 0, network.params)
        ),
        file,
    )
    assert tree.fingerprint(back.params) == tree.fingerprint(network.params)
    assert tree.fingerprint(back.stats) == tree.fingerprint(network.stats)
    assert [p.name for p in file.parent.iterdir()] == ["n.safetensors"]
    with pytest.raises(InputError, match="holds another network"):
        restore(toy.mlp(), file)
    file.write_bytes(b"x" * 20)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        restore(network, file)

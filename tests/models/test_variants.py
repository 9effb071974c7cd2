"""Networks made of a pretrained one: fresh units, a frozen copy beside it, fewer channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.head import hidden_head
from subtune_jax.models.prune import prune
from subtune_jax.models.reinit import reinitialized
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.models.siamese import siamese
from subtune_jax.selection.select import match, select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings
from tests import toy

KEY = jax.random.key(0)


def differing(one, other):
    pairs = tree.flatten(one), tree.flatten(other)
    return [name for name in pairs[0] if np.any(pairs[0][name] != pairs[1][name])]


def test_fresh_units_are_as_before_any_training_and_all_else_is_kept():
    network = toy.small_resnet()
    moved = jax.tree.map(lambda leaf: leaf + 3, (network.params, network.stats))
    network = network._replace(params=moved[0], stats=moved[1])
    fresh = reinitialized(network, match(network, "block3_0"), KEY)
    assert {n.partition("/")[0] for n in differing(fresh.params, network.params)} == {
        "block3_0"
    }
    block, stats = fresh.params["block3_0"], fresh.stats["block3_0"]
    assert np.all(block["norm1"]["scale"] == 1) and np.all(block["norm1"]["bias"] == 0)
    assert np.all(stats["norm2"]["var"] == 1) and np.all(stats["norm2"]["mean"] == 0)
    kernel = np.asarray(block["conv2"]["kernel"])  # uniform in +- 1 / 12, of 144 inputs
    bound = (9 * 16) ** -0.5
    assert np.abs(kernel).max() <= bound and np.abs(kernel).max() > 0.95 * bound
    assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    with pytest.raises(InputError, match="no leaf 'block9_0': nearest are"):
        reinitialized(network, ["block9_0"], KEY)


def test_a_siamese_network_reads_both_and_trains_one():
    network, data = toy.small_resnet(), toy.images(16)
    twin = siamese(network, "block3_0", 3)
    names = [stage.name for stage in twin.stages]
    copies = ["frozen_block3_0", "frozen_pool"]
    assert names == ["input", "stem", "block1_0", "block2_0", "fork", *copies,
                     "block3_0", "pool", "join", "head"]  # fmt: skip
    assert twin.params["head"]["kernel"].shape == (32, 3)
    # With the head of the network over one half, its own outputs come back.
    for half in (slice(0, 16), slice(16, 32)):
        kernel = jnp.zeros((32, 3)).at[half].set(network.params["head"]["kernel"])
        head = {"kernel": kernel, "bias": network.params["head"]["bias"]}
        both = twin._replace(params={**twin.params, "head": head})
        np.testing.assert_allclose(both(data.x), network(data.x), rtol=1e-5, atol=1e-6)
    phase = Phase(select(twin, {"g": ["block3_0", "head"]}), adam(1e-2), 4)
    run = fit(
        twin,
        phase,
        data,
        key=KEY,
        settings=Settings(norm="tuned", batch_size=8),
    ).network
    moved = {name.partition("/")[0] for name in differing(run.params, twin.params)}
    assert moved == {"block3_0", "head"}
    assert {n.partition("/")[0] for n in differing(run.stats, twin.stats)} == {
        "block3_0"
    }
    with pytest.raises(InputError, match="fork must be a stage of input, stem"):
        siamese(network, "head", 3)


@pytest.mark.parametrize("preactivation", [True, False])
def test_a_channel_that_gives_nothing_can_be_pruned(preactivation):
    config = ResNetConfig(
        widths=(8, 8, 16),
        norm="batch",
        channels=1,
        num_classes=3,
        preactivation=preactivation,
    )
    network = resnet(config, KEY)
    block = dict(network.params["block3_0"])
    silent = np.arange(16) % 2 == 0  # these channels are 0 before and after their norm
    kernel = jnp.where(silent, 0.0, block["conv1"]["kernel"])
    network = network._replace(
        params={**network.params, "block3_0": block | {"conv1": {"kernel": kernel}}}
    )
    narrow = prune(network, ["block3_0"], 0.5)
    kernels = [narrow.params["block3_0"][f"conv{i}"]["kernel"].shape for i in (1, 2)]
    assert kernels == [(3, 3, 8, 8), (3, 3, 8, 16)]
    images = toy.images(4).x
    np.testing.assert_allclose(narrow(images), network(images), rtol=1e-5, atol=1e-6)
    assert prune(network, ["block3_0"], 0.0).params["block3_0"].keys() == block.keys()


def test_a_global_share_is_of_all_layers_and_leaves_a_tenth():
    network = toy.small_resnet()
    params = dict(network.params)
    params["block1_0"] = jax.tree.map(lambda leaf: leaf * 1e-3, params["block1_0"])
    narrow = prune(
        network._replace(params=params), ["block1_0", "block2_0"], 0.5, "global"
    )
    widths = [narrow.params[f"block{i}_0"]["conv1"]["kernel"].shape[-1] for i in (1, 2)]
    assert widths == [1, 8]  # all 8 of the first are below the line, and 7 may go


def test_what_cannot_be_pruned_is_said():
    network = toy.small_resnet()
    for arguments, problem in [
        ((["stem"], 0.5), "unknown residual block 'stem': expected one of block1_0"),
        ((["block1_0"], 1.0), "share must be from 0 up to 1"),
        ((["block1_0"], 0.5, "both"), "unknown scope 'both'"),
    ]:
        with pytest.raises(InputError, match=problem):
            prune(network, *arguments)
    with pytest.raises(InputError, match="block 'block1_0' has group norms"):
        prune(toy.small_resnet("group"), ["block1_0"], 0.5)


def test_a_hidden_head_begins_at_even_outputs_and_learns():
    network, data = toy.mlp(), toy.points()
    deep = hidden_head(network, 3, KEY, width=5)
    assert np.all(np.asarray(deep(data.x)) == 0)
    shapes = {n: leaf.shape for n, leaf in tree.flatten(deep.params["head"]).items()}
    assert shapes == {"bias": (3,), "hidden/kernel": (6, 5), "kernel": (5, 3)}
    phase = Phase(select(deep, {"head": ["head"]}), adam(1e-2), 60)
    run = fit(deep, phase, data, key=KEY)
    assert run.epochs[-1].loss < 0.7 * np.log(3)

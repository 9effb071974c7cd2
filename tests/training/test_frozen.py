"""Frozen is frozen, and frozen is free."""

import jax
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.cost import cost_table, stage_flops, step_cost
from subtune_jax.data.batches import Batch
from subtune_jax.labels import stages_with_batch_stats
from subtune_jax.losses import cross_entropy
from subtune_jax.selection.select import assert_frozen, select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adamw
from subtune_jax.training.phases import Phase, Settings
from subtune_jax.training.state import start
from tests import toy

SELECTIONS = {
    "head": ["head"],
    "block1": ["block1"],
    "block2": ["block2"],
    "last two": ["block3", "head"],
    "norms": ["norms"],
    "one leaf": ["block2_0/conv2"],
    "all": [".*"],
}
RULE = adamw(1e-2, weight_decay=0.1, clip_norm=0.5)


def phase_of(network, name, steps=20):
    return Phase(select(network, {"g": SELECTIONS[name]}), RULE, steps)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["stored", "tuned", "batch"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_frozen_leaves_and_stored_statistics_are_bit_identical_after_20_steps(
    name, norm
):
    network = toy.small_resnet("batch")
    phase = phase_of(network, name)
    after = fit(
        network,
        phase,
        toy.images(),
        key=jax.random.key(0),
        settings=Settings(batch_size=8, accumulate=2, norm=norm),
    ).network
    assert_frozen(network.params, after.params, phase.labels)
    moving = stages_with_batch_stats(network.stats, phase.labels, norm)
    for stage in network.stats:
        same = tree.fingerprint(network.stats[stage]) == tree.fingerprint(
            after.stats[stage]
        )
        assert same == (stage not in moving)
    for leaf, old in tree.flatten(after.params).items():
        if tree.flatten(phase.labels)[leaf] != "frozen":
            assert np.any(
                np.asarray(old) != np.asarray(tree.flatten(network.params)[leaf])
            ), leaf


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", SELECTIONS)
def test_the_optimizer_state_has_leaves_for_trainable_parameters_only(name, accumulate):
    network = toy.small_resnet()
    phase = phase_of(network, name)
    settings = Settings(cross_entropy, accumulate=accumulate)
    _, state = start(network, phase, settings, jax.random.key(0))
    arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    slots = 2 if accumulate == 1 else 3  # two moments, and the accumulated gradient
    assert sum(leaf.size for leaf in arrays) == slots * tree.count(state.trainable)
    scalars = len(jax.tree.leaves(state.opt_state)) - len(arrays)
    assert (
        scalars <= len(jax.tree.leaves(state.trainable)) + 11
    )  # multipliers; counts, and the numbers of the rule


@pytest.mark.slow
@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_contraction_flops_of_a_step_are_at_the_floor(name, norm):
    network, data = toy.small_resnet(norm), toy.images(16)
    batch = Batch(data.x, data.y, np.ones(16, np.float32))
    found = step_cost(network, phase_of(network, name), batch, loss=cross_entropy)
    assert found.floor <= found.flops <= 1.05 * found.floor
    # XLA counts elementwise work as well: up to 15 % of so narrow a network's.
    assert found.flops <= found.compiled_flops <= 1.15 * found.flops + 1e5


def test_the_floor_of_a_literal_network():
    network, x = toy.mlp(), toy.points(10).x
    one, two, head = 2 * 10 * 4 * 6, 2 * 10 * 6 * 6, 2 * 10 * 6 * 3
    assert stage_flops(network, x) == {"one": one, "two": two, "head": head}

    def floor(*entries):
        return stage_flops(network, x, select(network, {"g": entries}))

    assert floor("head") == {"one": one, "two": two, "head": 2 * head}
    assert floor("two") == {"one": one, "two": 2 * two, "head": 2 * head}
    assert floor("two/bias") == {"one": one, "two": two, "head": 2 * head}
    assert floor(".*") == {"one": 2 * one, "two": 3 * two, "head": 3 * head}


@pytest.mark.slow
def test_the_table_shows_any_selection_beside_full_tuning_and_the_floor():
    network, data = toy.small_resnet(), toy.images(8)
    batch = Batch(data.x, data.y, np.ones(8, np.float32))
    head, every = (
        step_cost(network, phase_of(network, n), batch, loss=cross_entropy)
        for n in ("head", "all")
    )
    assert head.optimizer_bytes < 0.1 * every.optimizer_bytes
    assert head.temp_bytes < every.temp_bytes
    phases = {"head": phase_of(network, "head")}
    lines = cost_table(network, phases, batch, loss=cross_entropy).splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert [row[1] for row in cells] == ["tuned", "---", "head", "all"]
    assert cells[2][3] == f"{head.flops / 1e9:.3f}" and cells[0][4] == "floor"
    assert cells[3][2] == f"{every.trainable:,}"

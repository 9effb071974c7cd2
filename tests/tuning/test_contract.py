"""What every tuning must do. A tuning without a row in TUNINGS fails the last test."""

import ast
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import subtune_jax.tuning
from subtune_jax import programs, tree
from subtune_jax.losses import cross_entropy
from subtune_jax.programs import Traces
from subtune_jax.selection.select import assert_frozen, count_trainable, select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase, Settings
from subtune_jax.training.predict import evaluate
from subtune_jax.training.state import live_params, start
from subtune_jax.training.step import compiled_step, train_step
from subtune_jax.tuning.anchor import l1_sp, l2_sp
from subtune_jax.tuning.diff_pruning import constrained_diff_pruning, diff_pruning
from subtune_jax.tuning.fixed_mask import fixed_mask
from subtune_jax.tuning.lora import lora
from subtune_jax.tuning.rescaled import rescaled
from subtune_jax.tuning.subset import subset
from tests import toy

TUNINGS = {
    "subset": subset(),
    "l2_sp": l2_sp(0.01),
    "l1_sp": l1_sp(0.001),
    "fixed_mask": fixed_mask({"two/kernel": np.arange(0, 36, 2)}),
    "rescaled": rescaled(),
    "lora": lora(2),
    "diff_pruning": diff_pruning(1e-3),
    "constrained_diff_pruning": constrained_diff_pruning(0.5),
}
COUNTS = {
    "fixed_mask": 18 + 6 + 3,  # elements, and the leaves without indices
    "lora": 6 * 2 + 2 * 6 + 3,  # two factors of a 6 x 6 kernel, and a free bias
    "diff_pruning": 2 * 42 + 2 + 3,  # w, a gate for each and for each leaf, a free bias
    "constrained_diff_pruning": 2 * 42 + 2 + 3 + 1,
}
KEY = jax.random.key(5)

every_tuning = pytest.mark.parametrize("name", TUNINGS)


def setup(name, network=None, rate=1e-2):
    network = network or toy.mlp()
    labels = select(network, {"body": ["two"], "head": ["head/bias"]})
    phase = Phase(labels, adam(rate), steps=60, tuning=TUNINGS[name])
    return network, phase


def begin(network, phase):
    return start(network, phase, Settings(cross_entropy), KEY)


def some_batch():
    data = toy.points(16)
    from subtune_jax.data.batches import padded

    return padded(data, 16)


@every_tuning
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_materialized_at_the_start_it_is_the_pretrained_function(name, dtype):
    network, phase = setup(name, toy.mlp(dtype=dtype))
    made = live_params(network.params, *begin(network, phase), (phase,))
    chex.assert_trees_all_equal_structs(made, network.params)
    for old, new in zip(
        jax.tree.leaves(network.params), jax.tree.leaves(made), strict=True
    ):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)


@every_tuning
def test_frozen_leaves_are_bit_identical_the_loss_falls_and_the_base_survives(name):
    network, phase = setup(name)
    before = tree.fingerprint(network.params)
    result = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    )
    assert_frozen(network.params, result.network.params, phase.labels)
    assert tree.fingerprint(network.params) == before
    data = toy.points()
    after = float(cross_entropy(result.network(data.x), data.y).mean())
    assert after < 0.9 * float(cross_entropy(network(data.x), data.y).mean())
    assert evaluate(result.network, data) > evaluate(network, data)


@every_tuning
def test_dtypes_are_kept_through_training_and_moments_are_float32(name):
    network, phase = setup(name, toy.mlp(dtype=jnp.bfloat16))
    result = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    )
    for old, new in zip(
        *map(jax.tree.leaves, (network.params, result.network.params)), strict=True
    ):
        assert old.dtype == new.dtype == jnp.bfloat16
    assert_frozen(network.params, result.network.params, phase.labels)
    _, state = begin(network, phase)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state)} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }


@pytest.mark.slow
@every_tuning
def test_jitted_equals_plain(name):
    network, phase = setup(name)
    running, state = begin(network, phase)
    plain, _ = train_step(running.program, state, network.params, some_batch())
    step = compiled_step(Traces(), running.program)
    jitted, _ = step(begin(network, phase)[1], network.params, some_batch())
    for a, b in zip(
        jax.tree.leaves(plain.trainable), jax.tree.leaves(jitted.trainable), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@every_tuning
def test_one_trace_whatever_the_rate_seed_and_data(name):
    traces: list = []
    counts = []
    network, phase = setup(name, toy.mlp(traces=traces))
    programs.forget()
    for seed, rate in enumerate((1e-2, 1e-3, 0.5)):
        again = phase._replace(rules=adam(rate))
        fit(
            network,
            again,
            toy.points(seed=seed),
            key=jax.random.key(seed),
            settings=Settings(batch_size=16, cache_bytes=0),
        )
        counts.append(len(traces))
    # In each call the step; in the first, the shapes that the network can take.
    assert counts == [2, 3, 4]
    assert len(programs._programs) == 1


@every_tuning
def test_the_same_seed_gives_the_same_result(name):
    network, phase = setup(name)
    run = partial(fit, network, phase, toy.points(), settings=Settings(batch_size=16))
    prints = [tree.fingerprint(run(key=jax.random.key(s)).trainable) for s in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


@every_tuning
def test_what_freezes_and_trains_again_keeps_its_values(name):
    """Frozen meanwhile it is as it was, bit for bit; then it trains on from there."""
    network, phase = setup(name)
    phase = phase._replace(steps=4)
    head = phase._replace(labels=select(network, {"head": ["head/bias"]}))
    ends = [
        fit(
            network,
            [phase, head, phase][:n],
            toy.points(),
            key=KEY,
            settings=Settings(batch_size=16),
        )
        for n in (1, 2, 3)
    ]
    one, two, three = (tree.fingerprint(end.network.params["two"]) for end in ends)
    assert one == two != three
    trained = [tree.fingerprint(end.trainable["two"]) for end in ends]
    assert trained[0] == trained[1] != trained[2]


@every_tuning
def test_the_trained_count_is_the_reported_one(name):
    network, phase = setup(name)
    _, state = begin(network, phase)
    assert count_trainable(network, phase.labels) == 45
    assert tree.count(state.trainable) == COUNTS.get(name, 45)


def test_every_tuning_has_a_row():
    made = set()
    for file in Path(subtune_jax.tuning.__path__[0]).glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if (
                isinstance(node, ast.FunctionDef)
                and ast.unparse(node.returns or ast.Constant(0)) == "Tuning"
            ):
                made |= {node.name} if not node.name.startswith("_") else set()
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(
                "Tuning("
            ):
                made.add(node.targets[0].id)
    # what can only take over has its own tests: tests/training/test_take_over.py
    assert made - {"largest_changes", "fixed_gates"} == set(TUNINGS)

"""A trunk gives what separate networks give, at the cost of what they do not share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import programs
from subtune_jax.deltas.extract import extract
from subtune_jax.errors import InputError
from subtune_jax.flops import contraction_flops
from subtune_jax.network import forward
from subtune_jax.serving.trunk import add, plan, remove, trunk_flops
from subtune_jax.training.predict import predict
from tests.serving import tasks


def assert_equal(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(
            one[name], other[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("family", ["mlp", "vit"])
def test_outputs_are_those_of_separate_networks(family):
    network, deltas, x, expected = tasks.expected(family)
    outputs = plan(network, deltas)(x)
    assert_equal(outputs, expected, 1e-5)
    np.testing.assert_allclose(outputs["source"], predict(network, x), atol=1e-5)
    assert outputs["pair"].shape == (12, 3) and outputs["high"].shape == (12, 5)


@pytest.mark.parametrize("family", ["batch", "group", "bert"])
def test_in_float64_they_are_equal_to_the_last_digits(family):
    with jax.enable_x64(True):
        network, deltas, x, expected = tasks.expected(family, wide=True)
        assert expected["lora"].dtype == jnp.float64
        for stacked in (False, True):
            outputs = plan(network, deltas, stacked=stacked)(x)
            assert_equal(outputs, expected, 1e-12)


def floor(network, deltas, x, streams):
    """Returns the FLOPs of every stage times its streams, and of the heads."""
    total = 0
    for i, (count, stage) in enumerate(zip(streams, network.stages[:-1], strict=True)):
        run = partial(stage.apply, batch_stats=False, key=None)
        own = (network.params[stage.name], network.stats[stage.name])
        y = forward(network.stages, network.params, network.stats, x, stop=i)[0]
        total += count * contraction_flops(run, *own, y)
    features = forward(network.stages, network.params, network.stats, x, stop=-1)[0]
    for delta in deltas.values():
        head = delta.whole["params/head/kernel"]
        total += 2 * len(jax.tree.leaves(features)[0]) * head.size
    return total


def test_streams_part_where_tasks_differ_and_flops_are_the_floor():
    network, data = tasks.network_of("bert")
    deltas = tasks.deltas("bert", network)
    trunk = plan(network, deltas)
    # embeddings: low, pair, vectors and the others; then also lora and elements; then
    # high (which same_body shares).
    assert repr(trunk) == "Trunk(9 tasks, streams by stage [4, 6, 7, 7])"
    x = jax.tree.map(jnp.asarray, data.x)
    expected = floor(network, deltas, x, [4, 6, 7, 7])
    assert trunk_flops(trunk, x) == expected


def test_a_frozen_stage_after_the_fork_runs_once_on_all_streams():
    network, data = tasks.network_of("bert")
    deltas = {n: tasks.deltas("bert", network)[n] for n in ("source", "low", "pair")}
    trunk = plan(network, deltas)
    assert trunk.layout.groups == (
        ((0,), (0,), (0,)),  # three tables of words
        ((0, 1, 2),),  # one layer for all
        ((0, 1), (2,)),  # the pair's own layer
        ((0, 1, 2),),
    )
    assert_equal(trunk(data.x), tasks.separate(network, deltas, data.x), 1e-5)


def test_within_its_capacity_a_trunk_compiles_nothing_new():
    network, data = tasks.network_of("mlp")

    def task(seed, classes):
        tuned = tasks.changed(network, ["two"], 1 + seed / 10)
        return extract(network, tasks.with_head(tuned, classes, seed))

    source = extract(network, network)
    deltas = {"source": source, "a": task(1, 2), "b": task(2, 5)}
    later = {"source": source, "b": task(5, 6), "c": task(3, 3), "d": task(4, 7)}
    separate = tasks.separate(network, later, data.x)
    programs.forget()  # what is kept is bounded: at the bound nothing would be counted
    trunk = plan(network, deltas, capacity=4)
    trunk(data.x)
    compiled = len(programs._programs)
    more = add(add(trunk, "c", task(3, 3)), "d", task(4, 7))
    other = add(remove(more, "a"), "b", task(5, 6))
    assert_equal(other(data.x), separate, 1e-5)
    assert len(programs._programs) == compiled
    assert "a" in trunk(data.x) and "c" not in trunk(data.x)


def test_what_cannot_be_planned_is_one_sentence():
    network, data = tasks.network_of("mlp")
    deltas = tasks.deltas("mlp", network)
    other = tasks.changed(network, ["one"])
    with pytest.raises(InputError, match="^there is no task: give a dict of deltas"):
        plan(network, {})
    with pytest.raises(InputError, match="^the task 'a' must be a Delta, got str$"):
        plan(network, {"a": "a.delta"})
    strange = deltas | {"source": extract(other, other)}
    with pytest.raises(
        InputError, match="^the task 'source': the delta belongs to another base"
    ):
        plan(network, strange)
    with pytest.raises(InputError, match="^capacity must be a positive whole number"):
        plan(network, deltas, capacity=0)
    trunk = plan(network, {"source": deltas["source"], "low": deltas["low"]})
    with pytest.raises(InputError, match="did you mean 'source'"):
        remove(trunk, "sorce")
    with pytest.raises(InputError, match="^'low' is the only task"):
        remove(remove(trunk, "source"), "low")
    with pytest.raises(
        InputError, match="^the task 'other': the delta belongs to another base"
    ):
        add(trunk, "other", tasks.deltas("mlp", other)["low"])
    with pytest.raises(InputError, match="^stage 'one' cannot take its input"):
        trunk(np.zeros((2, 9), np.float32))
    assert set(trunk(data.x)) == {"source", "low"}

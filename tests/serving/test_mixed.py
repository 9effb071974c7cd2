"""A mixed batch gives what each row's own network gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.deltas.extract import extract
from subtune_jax.errors import InputError
from subtune_jax.head import hidden_head
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.network import Network, Stage
from subtune_jax.serving.mixed import Mixed
from subtune_jax.training.predict import predict
from subtune_jax.tuning.lora import Factors
from tests import toy
from tests.serving import tasks


def mixed_of(network, deltas, **options):
    mixed = Mixed(network, **options)
    for name, delta in deltas.items():
        mixed.put(name, delta)
    return mixed


def assert_rows(outputs, alone, names, tolerance=1e-5):
    """Every row is that of its own network, in its own classes."""
    for i, (row, name) in enumerate(zip(outputs, names, strict=True)):
        np.testing.assert_allclose(
            row, alone[name][i], rtol=tolerance, atol=tolerance, err_msg=f"{i} {name}"
        )


def spread(deltas, rows, seed=0):
    return list(np.random.default_rng(seed).choice(list(deltas), rows))


@pytest.mark.parametrize("family", ["mlp", "vit"])
def test_rows_are_those_of_their_own_networks(family):
    network, deltas, x, alone = tasks.expected(family)
    names = [*deltas, *spread(deltas, 3)]
    outputs = mixed_of(network, deltas)(x, names)
    assert_rows(outputs, alone, names)
    np.testing.assert_allclose(outputs[0], predict(network, x)[0], atol=1e-5)


@pytest.mark.parametrize("family", ["batch", "group", "bert"])
def test_in_float64_they_are_equal_to_the_last_digits(family):
    with jax.enable_x64(True):
        network, deltas, x, alone = tasks.expected(family, wide=True)
        names = [*deltas, *spread(deltas, 3)]
        for all_by_row in (False, True):
            mixed = mixed_of(network, deltas, all_by_row=all_by_row)
            outputs = mixed(x, names)
            assert outputs[0].dtype == jnp.float64
            assert_rows(outputs, alone, names, 1e-12)
            assert bool(mixed.bank.apart) != all_by_row


def small(network):
    """Tasks that share all large leaves: heads, vectors, factors of two ranks."""
    every = tasks.deltas("bert", network)
    return {name: every[name] for name in ("source", "vectors", "normalized", "lora")}


def test_small_changes_cost_one_pass():
    network, data = tasks.network_of("bert")
    deltas = small(network)
    mixed = mixed_of(network, deltas)
    names = spread(deltas, 8)
    x = jax.tree.map(lambda leaf: jnp.asarray(leaf[:8]), data.x)
    one = mixed_of(network, {"source": deltas["source"]}).flops(x, ["source"] * 8)
    several = mixed.flops(x, names)
    assert not mixed.bank.apart
    # Beyond one task: two kinds of heads instead of one, and factors of rank 2 at one
    # kernel of 16 x 24: 8 rows of 8 tokens.
    assert several - one == 2 * 8 * 16 * 8 + 2 * 8 * 8 * 2 * (16 + 24)


@pytest.mark.slow
def test_sixteen_tasks_at_minilms_shape_cost_what_one_does():
    """64 texts of 128 tokens, from shapes: nothing is computed but the deltas."""
    config = BertConfig(
        num_layers=6, hidden_size=384, intermediate_size=1536, pooling="mean"
    )
    network, rng = bert(config, jax.random.key(0)), np.random.default_rng(0)
    source = extract(network, network)
    leaves = {f"params/{path}": x for path, x in tree.flatten(network.params).items()}
    head = {path: x for path, x in source.whole.items() if "/head/" in path}
    small = {p: np.asarray(x) + 1 for p, x in leaves.items() if x.ndim == 1}
    kernels = [p for p, x in leaves.items() if x.ndim == 2 and "/layer_" in p]

    def factors(path):
        rows, outputs = leaves[path].shape
        a, b = rng.normal(size=(rows, 8)), rng.normal(size=(8, outputs))
        return Factors(a.astype(np.float32), b.astype(np.float32), 0.125)

    vectors = source._replace(whole=small | head)
    low_rank = source._replace(factors={path: factors(path) for path in kernels})
    ids = jnp.zeros((64, 128), jnp.int32)
    x = {"input_ids": ids, "attention_mask": ids + 1}
    names = [f"task{i % 16}" for i in range(64)]
    one = mixed_of(network, {"task0": source}).flops(x, ["task0"] * 64)
    for delta, most in ((vectors, 1.05), (low_rank, 1.1)):
        mixed = mixed_of(network, {name: delta for name in names})
        assert 1 <= mixed.flops(x, names) / one <= most
        assert mixed.bank.rows.slots == 16 and not mixed.bank.apart


def test_a_task_costs_the_same_whatever_is_there_and_compiles_nothing():
    network, data = tasks.network_of("mlp")
    vectors = tasks.changed(network, ["one/bias", "two/bias"])
    mixed, deltas = Mixed(network), {}
    for seed in range(9):
        tuned = tasks.with_head(vectors, 3 + seed % 2, seed)
        deltas[f"task{seed}"] = extract(network, tuned)
        mixed.put(f"task{seed}", deltas[f"task{seed}"])
    assert mixed.bank.rows.slots == 16 and mixed.bank.rows.used == 9
    names = [f"task{i}" for i in range(8)]
    outputs = mixed(data.x[:8], names)
    assert_rows(outputs, tasks.separate(network, deltas, data.x), names)
    mixed.drop("task3")
    mixed.put("other", deltas["task8"])
    assert mixed.bank.rows.used == 9 and mixed.bank.tasks["other"].slot == 3


def test_a_wider_factor_and_a_large_change_come_later():
    network, data = tasks.network_of("bert")
    mixed, deltas = Mixed(network), small(network)
    for name in ("source", "lora"):
        mixed.put(name, deltas[name])
    x = jax.tree.map(lambda leaf: leaf[:4], data.x)
    before = mixed(x, ["lora", "source", "lora", "source"])
    path = tasks.STAGES["bert"][2]
    deltas["wide"] = tasks.lora_delta(network, path, classes=4, seed=5, rank=3)
    mixed.put("wide", deltas["wide"])
    names = ["lora", "wide", "lora", "wide"]
    assert_rows(mixed(x, names), tasks.separate(network, deltas, x), names)
    # A task that changes the same stage in elements runs it alone.
    deltas["elements"] = tasks.elements_delta(network, path)
    mixed.put("elements", deltas["elements"])
    assert mixed.bank.apart == {"layer_0"}
    names = ["lora", "elements", "wide", "source"]
    outputs = mixed(x, names)
    assert_rows(outputs, tasks.separate(network, deltas, x), names)
    np.testing.assert_allclose(outputs[0], before[0], atol=1e-5)


def test_a_large_task_in_memory_adds_no_flops_to_batches_without_it(monkeypatch):
    network, data = tasks.network_of("mlp")
    mixed, deltas = Mixed(network), tasks.deltas("mlp", network)
    large = [n for n in deltas if mixed.bank.prepare(n, deltas[n]).large]
    names = [name for name in deltas if name not in large]
    for name in names:
        mixed.put(name, deltas[name])
    names = names[:4]
    x = data.x[:4]
    before, flops = mixed(x, names), mixed.flops(x, names)
    for name in large:
        mixed.put(name, deltas[name])
    monkeypatch.setattr(mixed, "_alone", None)  # would be called
    assert large and mixed.flops(x, names) == flops
    np.testing.assert_allclose(mixed(x, names), before, rtol=1e-6)
    with pytest.raises(TypeError, match="must be callable"):
        mixed(x, [*names[1:], large[0]])


def test_a_stage_is_compiled_for_sizes_of_groups_and_not_of_batches():
    traces = []
    network, data = toy.mlp(traces=traces), toy.points(12)
    deltas = {
        name: extract(network, tasks.changed(network, ["one"], factor))
        for name, factor in (("a", 1.1), ("b", 1.2), ("c", 1.3))
    }
    mixed = mixed_of(network, deltas)
    mixed(data.x[:4], list("aabb"))
    # The shapes that the network can take, and two rows of either.
    assert len(traces) == 2
    mixed(data.x[:8], list("aabbbccc"))
    assert len(traces) == 3  # and now four
    for names in ("abababcc", "ccaabbba", "aabbcca", "acacacbb"):
        mixed(data.x[: len(names)], list(names))
    assert len(traces) == 3


def both_ways(params, stats, x, *, batch_stats, key):
    """Uses one kernel in a product, and another one transposed."""
    return x @ params["product"] @ params["turned"].T, stats


def test_a_stage_may_keep_factors_of_one_kernel_apart_and_not_of_another():
    old, data = tasks.network_of("mlp")
    kernels = {"product": jnp.ones((4, 5)), "turned": jnp.ones((6, 5)) / 5}
    params = {"one": kernels, "head": old.params["head"]}
    stages = (Stage("one", both_ways), old.stages[-1])
    network = Network(stages, params, {"one": {}, "head": {}}, {})
    deltas = {
        name: tasks.lora_delta(network, f"one/{name}", classes=3, seed=5, rank=2)
        for name in ("product", "turned")
    }
    deltas["source"] = extract(network, network)
    alone = tasks.separate(network, deltas, data.x)
    for first in ("product", "turned"):
        mixed = mixed_of(network, {n: deltas[n] for n in ("source", first)})
        assert_rows(mixed(data.x[:1], [first]), alone, [first])
        for name in deltas:
            mixed.put(name, deltas[name])
        names = ["product", "turned", "source", "product"]
        assert_rows(mixed(data.x[:4], names), alone, names)
        assert mixed.bank.unfactored == {"one"}
        assert_rows(mixed(data.x[:1], ["source"]), alone, ["source"])


def test_a_vector_may_be_called_a():
    old, data = tasks.network_of("mlp")

    def scaled(params, stats, x, *, batch_stats, key):
        return x * params["a"][None], stats

    params = {"one": {"a": jnp.ones(4)}, "head": {"kernel": jnp.ones((4, 3))}}
    params["head"]["bias"] = jnp.zeros(3)
    stages = (Stage("one", scaled), old.stages[-1])
    network = Network(stages, params, {"one": {}, "head": {}}, {})
    tuned = network._replace(params={**params, "one": {"a": jnp.arange(4.0)}})
    mixed = mixed_of(network, {"tuned": extract(network, tuned)})
    (row,) = mixed(data.x[:1], ["tuned"])
    expected = (data.x[0] * np.arange(4)).sum()
    np.testing.assert_allclose(row, np.full(3, expected), rtol=1e-5)


def test_flops_are_of_the_batch_that_runs():
    network, data = tasks.network_of("mlp")
    mixed = mixed_of(network, {"source": extract(network, network)})
    four = mixed.flops(data.x[:4], ["source"] * 4)
    assert mixed.flops(data.x[:3], ["source"] * 3) == four
    with pytest.raises(InputError, match="unknown task 'sauce'.*mean 'source'"):
        mixed.flops(data.x[:1], ["sauce"])


def test_a_last_stage_that_is_no_head_is_each_tasks_own():
    network, data = tasks.network_of("mlp")
    base = hidden_head(network, 3, jax.random.key(0), width=5)
    base = tasks.changed(base, ["head"])
    deltas = {
        "base": extract(base, base),
        "last": extract(base, tasks.changed(base, ["head"], 0.5)),
        "both": extract(base, tasks.changed(base, ["one", "head"], 2.0)),
    }
    names = ["last", "base", "both", "last"]
    x = data.x[:4]
    for all_by_row in (False, True):
        outputs = mixed_of(base, deltas, all_by_row=all_by_row)(x, names)
        assert_rows(outputs, tasks.separate(base, deltas, x), names)


def test_heads_of_two_types_keep_their_digits():
    network, data = tasks.network_of("mlp")
    wide = tasks.with_head(network, 3, 1)
    narrow = wide._replace(
        params={
            **wide.params,
            "head": jax.tree.map(lambda a: a.astype(jnp.bfloat16), wide.params["head"]),
        }
    )
    deltas = {"narrow": extract(network, narrow), "wide": extract(network, wide)}
    names = ["narrow", "wide"]
    outputs = mixed_of(network, deltas)(data.x[:2], names)
    assert_rows(outputs, tasks.separate(network, deltas, data.x[:2]), names)


def test_what_tasks_took_goes_with_them():
    network, data = tasks.network_of("mlp")
    deltas = tasks.deltas("mlp", network)
    deltas["wider"] = tasks.lora_delta(network, "two/kernel", rank=5)
    mixed = mixed_of(network, {"source": deltas["source"]})
    before = mixed.nbytes()
    sizes = {}
    for name in ("vectors", "low", "lora", "high", "normalized", "wider"):
        prepared = mixed.bank.prepare(name, deltas[name])
        expected = mixed.nbytes() + mixed.bank.growth(prepared)
        mixed.put(name, deltas[name])
        sizes[name] = mixed.nbytes()
        assert sizes[name] == expected, name
    assert mixed.bank.own_bytes
    for name in sizes:
        mixed.drop(name)
    assert not any(one.own for one in mixed.bank.tasks.values())
    assert not mixed.bank.rows.arrays
    assert len(mixed.bank.heads) == 1
    # The kind of head that stays has slots for as many as there were.
    assert (
        mixed.nbytes() - before
        <= 8 * sum(leaf.nbytes for leaf in jax.tree.leaves(network.params["head"])) * 4
    )
    names = ["source"] * 2
    x = data.x[:2]
    assert_rows(mixed(x, names), tasks.separate(network, deltas, x), names)


def test_a_head_that_does_not_fit_is_refused_and_nothing_is_lost():
    network, data = tasks.network_of("mlp")
    delta = tasks.deltas("mlp", network)["source"]
    mixed = mixed_of(network, {"task": delta})
    kernel = delta.whole["params/head/kernel"]
    other = delta._replace(whole={**delta.whole, "params/head/kernel": kernel[:5]})
    with pytest.raises(InputError, match="takes 5 features, and the base gives 6$"):
        mixed.put("task", other)
    renamed = {**delta.about, "head": {**delta.about["head"], "stage": "other"}}
    with pytest.raises(InputError, match="^the head of the task is the stage 'other'"):
        mixed.put("task", delta._replace(about=renamed))
    assert len(mixed(data.x[:1], ["task"])) == 1


def test_what_cannot_be_served_is_one_sentence():
    network, data = tasks.network_of("mlp")
    deltas = tasks.deltas("mlp", network)
    mixed = mixed_of(network, {"source": deltas["source"], "low": deltas["low"]})
    x = data.x[:2]
    with pytest.raises(InputError, match="^unknown task 'lwo': .*did you mean 'low'"):
        mixed(x, ["source", "lwo"])
    with pytest.raises(
        InputError, match="^expected a task for each of 2 inputs, got 'l"
    ):
        mixed(x, "low")
    with pytest.raises(
        InputError, match="^expected a task for each of 2 inputs, got 3"
    ):
        mixed(x, ["low"] * 3)
    with pytest.raises(
        InputError, match="^there are no examples: the inputs are empty"
    ):
        mixed(x[:0], [])
    with pytest.raises(InputError, match="^stage 'one' cannot take its input"):
        mixed(np.zeros((2, 9), np.float32), ["low", "low"])
    other = tasks.changed(network, ["one"])
    with pytest.raises(InputError, match="^the delta belongs to another base"):
        mixed.put("low", tasks.deltas("mlp", other)["low"])
    with pytest.raises(InputError, match="^unknown task 'high'"):
        mixed.drop("high")
    assert_rows(mixed(x, ["low"] * 2), tasks.separate(network, deltas, x), ["low"] * 2)

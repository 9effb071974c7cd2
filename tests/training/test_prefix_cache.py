"""A frozen prefix computed once gives what it gives when computed at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.cost import stage_flops
from subtune_jax.data.batches import Dataset, padded
from subtune_jax.data.buckets import Ragged, ragged
from subtune_jax.errors import InputError
from subtune_jax.flops import contraction_flops
from subtune_jax.head import linear
from subtune_jax.losses import cross_entropy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.network import Network, Stage
from subtune_jax.programs import renew
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam, adamw, sgd
from subtune_jax.training.phases import Phase, Settings, check
from subtune_jax.training.prefix_cache import cached_stages, features
from subtune_jax.training.state import start
from subtune_jax.training.step import train_step
from tests import toy

KEY = jax.random.key(0)
NONE: frozenset = frozenset()


def program_of(network, labels, moving=NONE, dropout="all"):
    settings = Settings(cross_entropy, dropout=dropout)
    (program,) = check(network, [Phase(labels, sgd(0.1), 1)], settings)
    return program._replace(batch_stats=moving)


def cut(network, entry, data=None, budget=2**30, moving=NONE, dropout="all"):
    program = program_of(network, select(network, {"g": [entry]}), moving, dropout)
    return cached_stages(network, program, data or toy.images(), budget)


def test_the_prefix_ends_at_the_lowest_trainable_stage():
    network = toy.small_resnet()
    assert [s.name for s in network.stages[:4]] == [
        "input",
        "stem",
        "block1_0",
        "block2_0",
    ]
    assert cut(network, "stem") == 0  # nothing but pixels below it
    assert cut(network, "block2_0/conv2") == 3
    assert cut(network, "head") == 6


def test_batch_statistics_end_it_and_so_does_the_byte_budget():
    network, data = toy.small_resnet(), toy.images(10)
    assert cut(network, "head", moving=frozenset({"block2_0"})) == 3
    per_image = {1: 64, 2: 8 * 64, 3: 8 * 64, 4: 8 * 64, 5: 16 * 16, 6: 16}  # floats
    assert cut(network, "head", data, budget=16 * 4 * 10) == 6
    assert cut(network, "pool", data, budget=16 * 16 * 4 * 10) == 5
    assert cut(network, "pool", data, budget=16 * 16 * 4 * 10 - 1) == 0
    assert set(per_image) == set(range(1, 7))


def test_dropout_ends_it():
    def dropout(params, stats, x, *, batch_stats, key):
        if key is None:
            return x, stats
        return x * jax.random.bernoulli(key, 0.5, x.shape), stats

    net = toy.mlp()
    stages = (
        net.stages[0],
        Stage("drop", dropout),
        net.stages[1],
        Stage("head", linear),
    )
    empty = {"drop": {}}
    network = Network(stages, net.params | empty, net.stats | empty, {})
    assert cut(network, "head", toy.points()) == 1
    # Its own layer is tuned: it goes with `two`, the next stage with parameters.
    assert cut(network, "head", toy.points(), dropout="tuned") == 3
    assert cut(network, "two", toy.points(), dropout="tuned") == 1
    assert cut(net, "head", toy.points()) == 2


def test_features_are_the_activations_of_all_examples_in_order():
    network, data = toy.small_resnet(), toy.images(10)
    made = features(network, 6, data, batch_size=4)
    head = network.params["head"]
    logits = made.x @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(logits, network(data.x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(made.y, data.y)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["block2", "block3", "head", "pool"])
def test_twenty_steps_in_float64_are_those_without_the_cache(entry):
    with jax.enable_x64(True):
        network = toy.small_resnet("group")
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), network.params)
        network = network._replace(params=wide)
        phase = Phase(
            select(network, {"g": [entry]}),
            adamw(1e-2, weight_decay=0.1, clip_norm=1.0),
            20,
        )
        results = [
            fit(
                network,
                phase,
                toy.images(),
                key=KEY,
                settings=Settings(batch_size=8, cache_bytes=n),
            ).trainable
            for n in (0, 2**30)
        ]
        for plain, cached in zip(*map(jax.tree.leaves, results), strict=True):
            assert plain.dtype == jnp.float64
            np.testing.assert_allclose(plain, cached, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["stored", "tuned"])
def test_a_phase_that_comes_after_another_caches_what_the_first_trained(norm):
    network = toy.small_resnet("batch")
    first, second = (select(network, {"g": [e]}) for e in ("block1", "head"))
    phases = [Phase(first, adam(1e-2), 6), Phase(second, adam(1e-2), 12)]
    settings = Settings(batch_size=8, norm=norm)
    runs = [
        fit(
            network,
            phases,
            toy.images(),
            key=KEY,
            settings=settings._replace(cache_bytes=n),
        ).network
        for n in (0, 2**30)
    ]
    for plain, cached in zip(*(jax.tree.leaves(r.params) for r in runs), strict=True):
        np.testing.assert_allclose(plain, cached, rtol=1e-3, atol=1e-4)


def test_augmented_inputs_are_never_cached():
    calls = []

    def augment(x, rng):
        calls.append(len(x))
        return x

    network = toy.small_resnet("group")
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 9)
    fit(
        network,
        phase,
        toy.images(),
        key=KEY,
        settings=Settings(batch_size=8, augment=augment),
    )
    assert len(calls) >= 9


@pytest.mark.parametrize("entry", ["block2_0", "block3", "head"])
def test_flops_of_a_step_fall_by_the_prefix_it_does_not_run(entry):
    network, data = toy.small_resnet("group"), toy.images(16)
    phase = Phase(select(network, {"g": [entry]}), adam(1e-2), 40)
    running, state = start(network, phase, Settings(cross_entropy), KEY)
    program = running.program
    stages = cut(network, entry)

    def flops(program, data):
        def step(state, params, batch):
            return train_step(program, state, params, batch)

        return contraction_flops(step, state, network.params, padded(data, 16))

    short = flops(program._replace(start=stages), features(network, stages, data))
    prefix = [network.stages[i].name for i in range(stages)]
    saved = sum(stage_flops(network, data.x)[name] for name in prefix)
    assert flops(program, data) - short == saved > 0


def test_the_prefix_is_computed_once(monkeypatch):
    calls = []
    original = features

    def counted(*args):
        calls.append(args[1])
        return original(*args)

    monkeypatch.setattr("subtune_jax.training.loop.features", counted)
    network = toy.small_resnet("group")
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 30)
    fit(network, phase, toy.images(), key=KEY, settings=Settings(batch_size=8))
    assert calls == [6]
    assert tree.count(network.params["head"]) == 51
    assert isinstance(toy.images(), Dataset)


def texts_of(lengths, rng):
    ids = [rng.integers(5, 40, n).astype(np.int32) for n in lengths]
    x = {
        "input_ids": ragged(ids, (8, 16, 30)),
        "attention_mask": ragged([np.ones_like(row) for row in ids], (8, 16, 30)),
        "token_type_ids": ragged([np.zeros_like(row) for row in ids], (8, 16, 30)),
    }
    return Dataset(x, np.array([int(row[0] > 20) for row in ids], np.int32))


def test_what_cannot_be_cut_to_its_texts_is_not_cached():
    def embed(params, stats, x, *, batch_stats, key):
        return params["table"][x["input_ids"]], stats

    def with_class_token(params, stats, x, *, batch_stats, key):
        return jnp.pad(x, [(0, 0), (1, 0), (0, 0)]), stats

    def mean(params, stats, x, *, batch_stats, key):
        return x.mean(axis=1), stats

    rng = np.random.default_rng(0)
    data = texts_of([3, 20, 12], rng)
    head = toy.mlp().params["head"]
    params = {"embed": {"table": jnp.ones((40, head["kernel"].shape[0]))}, "head": head}
    params |= {"token": {}, "mean": {}}
    parts = {"embed": embed, "token": with_class_token, "mean": mean, "head": linear}
    stages = tuple(Stage(name, apply) for name, apply in parts.items())
    network = Network(stages, params, {name: {} for name in params}, {})
    labels = select(network, {"g": ["head"]})
    program = program_of(network, labels)
    assert cached_stages(network, program, data, 2**30) == 3  # the mean can be
    assert features(network, 1, data).x.lengths.tolist() == [3, 20, 12]
    with pytest.raises(InputError, match="after 2 stages cannot be cut to their texts"):
        features(network, 2, data)
    short = network._replace(stages=(*stages[:2], stages[3]))
    assert cached_stages(short, program_of(short, labels), data, 2**30) == 1


@pytest.mark.slow
# The network is as wide as a bucket: what is pooled is no token all the same.
@pytest.mark.parametrize("tuned, stages", [(["layer_2", "head"], 3), (["head"], 5)])
def test_cached_texts_train_as_texts_do_whatever_their_padding(tuned, stages):
    rng = np.random.default_rng(0)
    data = texts_of(rng.integers(2, 30, 24), rng)
    with jax.enable_x64(True):
        config = BertConfig(
            40, 16, 3, 4, 24, 40, dropout=0.0, pooling="dense", dtype="float64"
        )
        network = bert(config, jax.random.key(0))
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), network.params)
        network = network._replace(params=wide)
        labels = select(network, {"g": tuned})
        cut = cached_stages(network, program_of(network, labels), data, 2**30)
        assert cut == stages
        cached = features(network, cut, data).x
        hidden = cached["hidden"] if stages == 3 else cached
        assert isinstance(hidden, Ragged) == (stages == 3)
        assert stages != 3 or hidden.buckets == (8, 16, 30)
        runs = [
            fit(
                network,
                # Not Adam: a key's bias has no gradient, and rounding would be a step
                Phase(labels, sgd(0.1), 20),
                data,
                key=jax.random.key(1),
                settings=Settings(batch_size=5, cache_bytes=room),
            )
            for room in (0, 2**30)
        ]
        plain, fast = (tree.flatten(run.trainable) for run in runs)
        for name, leaf in plain.items():
            np.testing.assert_allclose(fast[name], leaf, atol=1e-9)


def test_a_stage_that_begins_to_draw_is_no_longer_cached():
    rate = [0.0]

    def noisy(params, stats, x, *, batch_stats, key):
        made = x @ params["kernel"]
        if key is not None and rate[0]:
            made += jax.random.normal(key, made.shape)
        return made, stats

    base = toy.mlp()
    network = base._replace(stages=(Stage("one", noisy), *base.stages[1:]))
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 9)

    def stages():
        settings = Settings(cross_entropy, dropout="all")
        (program,) = check(network, [phase], settings)
        return cached_stages(network, program, toy.points(), 2**20)

    assert stages() == 2
    rate[0] = 0.5
    renew(noisy)  # as `fit` does when it begins
    assert stages() == 0

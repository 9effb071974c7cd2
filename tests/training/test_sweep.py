"""A sweep is the loop over `fit`, lane by lane."""

import chex
import jax
import numpy as np
import pytest

from subtune_jax import programs, tree
from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import ragged
from subtune_jax.errors import InputError
from subtune_jax.head import LECUN_NORMAL, linear, linear_params
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Network, Stage
from subtune_jax.selection.rate_multipliers import auto_rgn
from subtune_jax.selection.select import select
from subtune_jax.training.loop import DivergedError, fit
from subtune_jax.training.mesh import placement
from subtune_jax.training.optimizers import adam, sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate
from subtune_jax.training.settings import Settings
from subtune_jax.training.sweep import (
    Run,
    _of_one_width,
    _placed,
    _same_base,
    sweep,
)
from subtune_jax.tuning import fixed_mask
from subtune_jax.tuning.anchor import l2_sp
from tests import toy

pytestmark = pytest.mark.slow

RATES, SEEDS = (1e-2, 1e-3), (0, 1, 2)


def lanes(make, rates=RATES):
    return [Run(make(rate), jax.random.key(seed)) for rate in rates for seed in SEEDS]


def compare(network, data, found, made, tolerance, batch_size, **how):
    settings = Settings(batch_size=batch_size, cache_bytes=0)
    for lane, result in zip(made, found, strict=True):
        alone = fit(network, lane.phases, data, key=lane.key, settings=settings, **how)
        assert result.epoch == alone.epoch and result.scores == alone.scores
        one, other = (tree.flatten(r.trainable) for r in (result, alone))
        assert one.keys() == other.keys()
        for name, leaf in one.items():
            np.testing.assert_allclose(leaf, other[name], **tolerance)


def test_first_gradients_of_a_convolutional_network_equal_those_of_the_loop():
    network, data = toy.small_resnet("group"), toy.images(10)
    chosen = select(network, {"g": ["block2", "head"]})

    def make(rate):  # a step of plain descent: the gradient, times the rate
        return Phase(chosen, sgd(rate, momentum=0.0), 1)

    made = lanes(make, rates=(1.0, 0.5))
    found = sweep(network, made, data, settings=Settings(batch_size=6))
    base = tree.flatten(network.params)
    for lane, result in zip(made, found, strict=True):
        alone = fit(
            network, lane.phases, data, key=lane.key, settings=Settings(batch_size=6)
        )
        for name, leaf in tree.flatten(result.trainable).items():
            other = tree.flatten(alone.trainable)[name]
            ours, looped = (base[name] - moved for moved in (leaf, other))
            size = np.abs(looped).max()
            assert size > 0
            np.testing.assert_allclose(ours / size, looped / size, atol=1e-5)


def test_all_lanes_are_the_looped_runs_in_float64():
    with jax.enable_x64(True):
        network, data = toy.mlp(dtype=np.float64), toy.points(22)
        data = data._replace(x=data.x.astype(np.float64))
        head, every = (select(network, {"g": [s]}) for s in ("head", ".*"))

        def make(rate):
            return [Phase(head, adam(10 * rate), 5), Phase(every, adam(rate), 11)]

        settings, how = (
            Settings(batch_size=6),
            {"validate": lambda n: evaluate(n, data)},
        )
        found = sweep(network, lanes(make), data, chunk=3, settings=settings, **how)
        compare(network, data, found, lanes(make), {"atol": 1e-9}, 6, **how)


def test_rows_of_different_lengths_come_in_the_order_of_the_loop():
    def summed(params, stats, x, *, batch_stats, key):
        return linear(params, stats, x.sum(axis=1), batch_stats=False, key=None)

    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(n, 4)).astype(np.float32) for n in rng.integers(1, 40, 22)]
    data = Dataset(ragged(rows), rng.integers(0, 3, 22))
    params = {"head": linear_params(jax.random.key(0), 4, 3, LECUN_NORMAL)}
    network = Network((Stage("head", summed),), params, {"head": {}}, {})
    labels = select(network, {"g": ["head"]})
    made = lanes(lambda rate: Phase(labels, sgd(rate, momentum=0.0), 12))
    settings, how = Settings(batch_size=4), {"validate": lambda n: evaluate(n, data)}
    found = sweep(network, made, data, settings=settings, **how)
    compare(network, data, found, made, {"rtol": 1e-4, "atol": 1e-5}, 4, **how)
    order = np.argsort([len(row) for row in rows])  # one lane has the long rows
    own = [data.only(order[:13]), data.only(order[-13:])]
    made = [made[0]._replace(data=part) for part in own]
    results = sweep(network, made, data, settings=settings)
    for lane, result in zip(made, results, strict=True):
        tolerance = {"rtol": 1e-4, "atol": 1e-5}
        compare(network, lane.data, [result], [lane], tolerance, 4)


def test_what_an_earlier_phase_tuned_stays_as_each_lane_left_it():
    """The second phase tunes the head alone, on features that the first one made."""
    network, data = toy.mlp(), toy.points(40)
    two, head = (select(network, {"g": [name]}) for name in ("two", "head"))

    def make(rate):
        return [Phase(two, sgd(rate), 4), Phase(head, sgd(rate), 4)]

    made = lanes(make, rates=(1.0, 0.1))
    found = sweep(network, made, data, settings=Settings(batch_size=16))
    for lane, result in zip(made, found, strict=True):
        settings = Settings(batch_size=16, cache_bytes=0)
        alone = fit(network, lane.phases, data, key=lane.key, settings=settings)
        for stage in ("two", "head"):
            chex.assert_trees_all_close(
                result.network.params[stage], alone.network.params[stage], atol=1e-5
            )
        moved = result.network.params["two"]["kernel"] - network.params["two"]["kernel"]
        assert np.abs(moved).max() > 1e-3


def test_lanes_may_have_networks_and_data_of_their_own():
    """Folds of a search: each lane is the run of its own base on its own data."""
    with jax.enable_x64(True):
        base = toy.mlp(dtype=np.float64)
        doubled = jax.tree.map(lambda leaf: 2 * leaf, base.params)
        halved = jax.tree.map(lambda leaf: leaf / 2, base.params)
        bases = [base, base._replace(params=doubled), base._replace(params=halved)]
        data = toy.points(30)
        data = data._replace(x=data.x.astype(np.float64))
        parts = [data.take(slice(i, i + 22)) for i in range(3)]
        head, every = (select(bases[0], {"g": [s]}) for s in ("head", ".*"))
        phases = [Phase(head, adam(1e-2), 5), Phase(every, adam(1e-3), 8)]
        settings = Settings(batch_size=6, cache_bytes=0)
        key = jax.random.key(3)
        for own in ((bases, parts), (bases, [None] * 3), ([None] * 3, parts)):
            runs = [Run(phases, key, *lane) for lane in zip(*own, strict=True)]
            results = sweep(bases[0], runs, parts[0], chunk=3, settings=settings)
            for run, result in zip(runs, results, strict=True):
                base, part = run.network or bases[0], run.data or parts[0]
                alone = fit(base, phases, part, key=key, settings=settings)
                for ours, others in zip(
                    *map(
                        jax.tree.leaves, (result.network.params, alone.network.params)
                    ),
                    strict=True,
                ):
                    np.testing.assert_allclose(ours, others, atol=1e-9)


def test_lanes_of_texts_are_padded_as_far_as_the_longest_of_all_needs():
    def data(*sizes):
        rows = [np.ones((3, size, 2)) for size in sizes]
        x = {str(i): ragged([*leaf]) for i, leaf in enumerate(rows)}
        return Dataset(x, np.arange(3))

    short, long = data(5, 40), data(17, 8)
    lanes = _of_one_width([short, long, short])
    for lane in lanes:  # buckets of 32 and 64
        assert [leaf.shape for leaf in lane.x.values()] == [(3, 32, 2), (3, 64, 2)]
        assert lane.x["0"].sum() + lane.x["1"].sum() == 6 * (
            45 if lane is lanes[0] else 25
        )
    assert lanes[0] is lanes[2]
    with pytest.raises(InputError, match="inputs of other structures"):
        _of_one_width([short, short._replace(x=short.x["0"])])


def test_a_base_in_numpy_is_placed_once_for_all_lanes():
    network = toy.mlp()
    host = network._replace(params=jax.tree.map(np.asarray, network.params))
    first, second = _placed([host, host._replace(params={**host.params})])
    assert _same_base([first, second])
    assert not _same_base([first, _placed([host])[0]])


def test_multipliers_are_refreshed_lane_by_lane():
    network, data = toy.mlp(), toy.points(12)
    every = select(network, {"g": [".*"]})

    def make(rate):
        rule = auto_rgn(cross_entropy)
        return Phase(every, sgd(rate), 6, multipliers=rule, reset_moments=True)

    found = sweep(network, lanes(make), data, settings=Settings(batch_size=6))
    compare(network, data, found, lanes(make), {"atol": 1e-5}, batch_size=6)


def test_a_plain_lane_may_stand_beside_one_with_multipliers():
    network, data = toy.mlp(), toy.points(12)
    every = select(network, {"g": [".*"]})
    plain = Phase(every, sgd(0.1), 6)
    made = [
        Run(p, jax.random.key(0))
        for p in (plain, plain._replace(multipliers=auto_rgn(cross_entropy)))
    ]
    found = sweep(network, made, data, settings=Settings(batch_size=6))
    compare(network, data, found, made, {"atol": 1e-5}, batch_size=6)
    one, two = (result.trainable["one"]["kernel"] for result in found)
    assert np.abs(one - two).max() > 1e-3


def test_scores_that_are_no_numbers_are_one_lanes_error():
    network, data = toy.mlp(), toy.points(12)
    every = select(network, {"g": [".*"]})
    made = [Run(Phase(every, sgd(0.1), 2), jax.random.key(0))]
    (found,) = sweep(network, made, data, validate=lambda net: float("nan"))
    assert isinstance(found, ArithmeticError) and "no epoch had" in str(found)


def test_other_rates_seeds_and_data_do_not_trace_again():
    traces = []
    network = toy.mlp(traces=traces)
    every = select(network, {"g": [".*"]})
    make = [Run(Phase(every, adam(r), 8), jax.random.key(0)) for r in RATES]
    sweep(network, make, toy.points(24), settings=Settings(batch_size=6))
    assert len(traces) == 2  # the shapes that the network can take, and the step
    compiled = len(programs._programs)
    again = [Run(Phase(every, adam(3 * r), 8), jax.random.key(7)) for r in RATES]
    sweep(network, again, toy.points(24, seed=1), settings=Settings(batch_size=6))
    assert len(traces) == 3 and len(programs._programs) == compiled


def test_a_lane_that_diverges_leaves_the_others_alone():
    network, data = toy.mlp(), toy.points(12)
    every = select(network, {"g": [".*"]})
    rates = (1e-2, 1e38, 1e-3)
    made = [Run(Phase(every, sgd(r), 6), jax.random.key(0)) for r in rates]
    good, lost, other = sweep(network, made, data, settings=Settings(batch_size=6))
    with pytest.raises(DivergedError) as alone:
        fit(
            network,
            made[1].phases,
            data,
            key=made[1].key,
            settings=Settings(batch_size=6),
        )
    assert isinstance(lost, DivergedError) and lost.step == alone.value.step
    for lane, result in ((made[0], good), (made[2], other)):
        alone = fit(
            network, lane.phases, data, key=lane.key, settings=Settings(batch_size=6)
        )
        for name, leaf in tree.flatten(result.trainable).items():
            np.testing.assert_allclose(
                leaf, tree.flatten(alone.trainable)[name], atol=1e-5
            )


def test_what_cannot_be_one_program_is_refused():
    network, data = toy.mlp(), toy.points(12)
    every = select(network, {"g": [".*"]})
    one = Run(Phase(every, adam(1e-3), 4), jax.random.key(0))
    longer = Run(Phase(every, adam(1e-3), 5), jax.random.key(0))
    pulled = Run(Phase(every, adam(1e-3), 4, l2_sp(0.1)), jax.random.key(0))
    wider = one._replace(network=toy.mlp(width=7))
    more = one._replace(data=toy.points(70))  # two batches of 64 an epoch
    masks = [fixed_mask({"two/kernel": np.arange(n)}) for n in (3, 4)]
    masked, other_count = (
        one._replace(phases=one.phases._replace(tuning=mask)) for mask in masks
    )
    with pytest.raises(InputError, match="lane 1 is another program than lane 0"):
        sweep(network, [masked, other_count], data)
    for other in (longer, pulled, wider, more):
        with pytest.raises(InputError, match="lane 1 is another program than lane 0"):
            sweep(network, [one, other], data)
    with pytest.raises(InputError, match="runs must be a positive number, got 0"):
        sweep(network, [], data)


def test_a_sweep_checks_its_score_as_fit_does():
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 2)
    lanes = [Run(phase, jax.random.key(0))]
    with pytest.raises(InputError, match="unknown mode 'maximum'"):
        sweep(network, lanes, toy.points(), validate=lambda n: 1.0, mode="maximum")
    with pytest.raises(InputError, match="validate must return a number, got str"):
        sweep(network, lanes, toy.points(), validate=lambda n: "high")


def test_lanes_are_not_split_over_devices():
    network, data = toy.mlp(), toy.points(12)
    lane = Run(Phase(select(network, {"g": ["head"]}), sgd(0.1), 3), jax.random.key(0))
    with pytest.raises(InputError, match="lanes fill one device: leave place out"):
        sweep(network, [lane], data, settings=Settings(place=placement(1)))

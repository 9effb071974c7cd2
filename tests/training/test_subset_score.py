"""Subsets scored on folds: shared features, warm starts, FLOPs, memory."""

import gc
import sys
import weakref
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import recipes
from subtune_jax.cost import stage_flops
from subtune_jax.data.splits import balanced_folds
from subtune_jax.data.task import Sealed, Task
from subtune_jax.errors import InputError
from subtune_jax.selection import Journal, greedy
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.mesh import placement
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate
from subtune_jax.training.settings import Settings
from subtune_jax.training.subset_runs import Trained
from subtune_jax.training.subset_score import _warm, subset_score
from subtune_jax.tuning import fixed_mask
from tests import toy

KEY = jax.random.key(0)
UNITS = ("one", "two")


def task(examples=48):
    data = toy.points(examples)
    return Task(toy.mlp(), data, data.take(slice(0, 9)), Sealed(data))


def phases(network, units, examples, steps=5):
    return recipes.tune_units(network, ["head", *units], adam(1e-2), steps)


def scored(settings=Settings(norm="tuned"), **options):
    settings = settings._replace(batch_size=8)
    return subset_score(task(), phases, key=KEY, folds=3, settings=settings, **options)


def test_the_score_is_that_of_a_run_on_the_other_folds():
    one = task()
    folds = balanced_folds(one.train.y, 3, 0)
    train = one.train.take(np.concatenate([folds[0], folds[2]]))
    key = jax.random.fold_in(jax.random.fold_in(KEY, 5), 1)
    run = fit(
        one.network,
        phases(one.network, ("two",), 32),
        train,
        key=key,
        settings=Settings(norm="tuned", batch_size=8),
        progress=False,
    )
    value = evaluate(run.network, one.train.take(folds[1]))
    for share in (False, True):
        assert scored(share=share)(("two",), 1, 5).value == value


def test_without_folds_it_is_validated_on_the_task():
    one = task()._replace(metrics={"validation": lambda outputs, y: float(len(y))})
    score = subset_score(
        one,
        phases,
        key=KEY,
        folds=None,
        settings=Settings(norm="tuned", batch_size=8),
    )
    assert score((), 0, 0).value == 9


def test_flops_are_those_of_training_and_validation():
    network, step = toy.mlp(), toy.points(8).x
    one = stage_flops(network, step[:1])
    body, head = one["one"] + one["two"], one["head"]
    labels = phases(network, ("two",), 32)[0].labels
    whole = sum(stage_flops(network, step, labels).values())
    score = scored(share=False)
    assert score(("two",), 0, 0).flops == 5 * whole + 16 * (body + head)
    # Shared: the first stage once for all 48 points, then never again.
    score, part = scored(), whole - 8 * one["one"]
    runs = 5 * part + 16 * (one["two"] + head)
    assert score(("two",), 0, 0).flops == 48 * one["one"] + runs
    assert score(("two",), 1, 0).flops == runs
    probe = 5 * 8 * 2 * head + 16 * head
    assert score((), 0, 0).flops == 48 * one["two"] + probe
    assert score((), 2, 3).flops == probe


def test_a_warm_subset_starts_from_the_one_before_it():
    one = task()
    folds = balanced_folds(one.train.y, 3, 0)
    train, rest = one.train.take(np.concatenate(folds[1:])), one.train.take(folds[0])
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    network, head = one.network, one.network.params["head"]
    for units in ((), ("two",), ("two", "one")):
        network = network._replace(params=network.params | {"head": head})
        network = fit(
            network,
            phases(network, units, 32),
            train,
            key=key,
            settings=Settings(norm="tuned", batch_size=8),
            progress=False,
        ).network
    score = scored(warm=True)
    assert score(("two", "one"), 0, 0).value == evaluate(network, rest)
    first = scored(warm=True)(("two",), 0, 0).flops
    again = scored(warm=True)
    again((), 0, 0)
    # The set before is trained when it is first asked for, and then kept.
    assert again(("two",), 0, 0).flops < first
    assert again(("one",), 0, 0).flops == again(("one",), 0, 0).flops
    again(("one", "two", "head"), 0, 0)
    assert again(("one", "two", "head"), 0, 0).flops < first  # of the third alone


def test_a_search_on_real_runs_is_the_same_with_and_without_sharing():
    run = partial(greedy, UNITS, folds=3)
    alone, shared = run(scored(share=False)), run(scored())
    assert alone.path == shared.path and shared.flops < alone.flops
    raced = run(scored(), halving=3)
    assert raced.runs < shared.runs
    warm = run(scored(warm=True), order="added")
    assert warm.path[0][0] == ()


@pytest.mark.parametrize("warm", [False, True])
def test_lanes_give_the_search_of_one_run_after_another(warm):
    """11 examples of class 2: the parts of the folds are not of one size."""
    part = toy.points(35)
    one = Task(toy.mlp(), part, part.take(slice(0, 9)), Sealed(part))
    searches, journals = [], []
    for lanes in (False, True):
        score = subset_score(
            one,
            phases,
            key=KEY,
            folds=3,
            warm=warm,
            settings=Settings(norm="tuned", batch_size=8),
            lanes=lanes,
        )
        journals.append(Journal({}))
        how = {"order": "added"} if warm else {}
        searches.append(
            greedy(
                UNITS,
                score,
                stop_rule="official",
                epsilon=100.0,
                folds=3,
                seeds=2,
                journal=journals[-1],
                **how,
            )
        )
    assert searches[0] == searches[1] and len(searches[0].path) == 3
    assert journals[0].scores == journals[1].scores


def test_a_warm_search_trains_the_set_before_once_on_each_fold():
    units = ("one/kernel", "one/bias", "two/kernel", "two/bias")
    trained = Counter()

    def counted(network, subset, examples):
        trained[subset] += network.first == 0 and len(network.stages) == 3
        return phases(network, subset, examples)

    how = {"key": KEY, "folds": 3, "warm": True, "share": False}
    how |= {"settings": Settings(norm="tuned", batch_size=8)}
    every = {"stop_rule": "official", "epsilon": 100.0, "order": "added", "folds": 3}
    search = greedy(units, subset_score(task(), counted, **how), **every)
    assert search.runs == 3 * (1 + 4 + 3 + 2 + 1)
    # Each run asks for its phases twice: for the whole network and for the suffix. The
    # sets of 0 to 3 units are trained once more, as the start of the next.
    assert trained.total() == 2 * (search.runs + 3 * 4)


def test_a_run_that_diverged_leaves_the_lanes_beside_it_their_scores():
    def wild(network, units, examples):
        rate = 1e38 if examples == 31 and units == ("one",) else 1e-2
        return recipes.tune_units(network, ["head", *units], adam(rate), 5)

    part = toy.points(47)  # 31 of them are trained on in two of three folds
    one = Task(toy.mlp(), part, part.take(slice(0, 9)), Sealed(part))
    how = {"key": KEY, "folds": 3, "warm": True}
    how |= {"settings": Settings(norm="tuned", batch_size=8)}
    alone, lanes = (subset_score(one, wild, **how, lanes=way) for way in (False, True))
    places = [(0, 0), (1, 0), (2, 0)]
    for units in (("one",), ("one", "two")):
        values = [
            [score.value for score in scores.many(units, places)]
            for scores in (alone, lanes)
        ]
        np.testing.assert_equal(*values)
        assert np.isnan(values[0]).sum() == 2


def test_runs_that_cannot_be_lanes_run_one_by_one():
    """A mask of another count is another program; here it goes with the examples."""

    def masked(network, units, examples):
        mask = fixed_mask({"two/kernel": np.arange(examples - 30)})
        labels = select(network, {"tuned": ["two/kernel"], "head": ["head"]})
        return [Phase(labels, adam(1e-2), 5, mask)]

    part = toy.points(47)  # 31 and 32 examples to train on, in as many batches
    one = Task(toy.mlp(), part, part.take(slice(0, 9)), Sealed(part))
    how = {"key": KEY, "folds": 3}
    how |= {"settings": Settings(norm="tuned", batch_size=10)}
    alone, lanes = (
        subset_score(one, masked, **how, lanes=way) for way in (False, True)
    )
    places = [(fold, 0) for fold in range(3)]
    assert [*alone.many(("two",), places)] == [*lanes.many(["two"], places)]


def test_what_acts_in_a_frozen_prefix_cannot_be_shared():
    for problem, settings in {
        "augmentation changes the inputs": Settings(augment=lambda x, rng: x),
        "norm 'batch' may use batch statistics": Settings(norm="batch"),
        "dropout 'all' may act": Settings(dropout="all"),
    }.items():
        with pytest.raises(InputError, match=f"{problem}.*share=False"):
            scored(settings)
    assert scored(Settings(norm="batch"), share=False)((), 0, 0).value >= 0
    with pytest.raises(InputError, match="lanes fill one device: leave place out"):
        scored(Settings(place=placement(1)), lanes=True)
    for folds, problem in ((1, "from 2 to 48"), (17, "17 folds need 17 examples")):
        with pytest.raises(InputError, match=problem):
            subset_score(task(), phases, key=KEY, folds=folds)
    groups = task()._replace(metric="worst-group accuracy")
    with pytest.raises(InputError, match="and the task by worst-group accuracy"):
        subset_score(groups, phases, key=KEY)
    few = subset_score(
        task(),
        phases,
        key=KEY,
        folds=17,
        balanced=False,
        settings=Settings(norm="tuned", batch_size=99),
    )
    assert 0 <= few((), 0, 0).value <= 100
    with pytest.raises(InputError, match="matches no unit and no path: nearest units"):
        scored()(("three",), 0, 0)


def test_a_run_that_diverged_has_no_score():
    def wild(network, units, examples):
        return recipes.tune_units(network, ["head"], adam(1e38), 20)

    score = subset_score(
        task(),
        wild,
        key=KEY,
        folds=2,
        settings=Settings(norm="tuned", batch_size=8),
        warm=True,
    )
    assert np.isnan(score((), 0, 0).value) and np.isnan(score(("one",), 0, 0).value)


def test_memory_does_not_grow_with_the_candidates():
    score = scored(warm=True)

    def held():
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    for units in [("one",), ("two",), ("one", "two"), ("two", "one")]:
        score(units, 0, 0)
    before = held()
    for fold in range(3):
        for units in [("one", "two"), ("two", "one")] * 2:
            score(units, fold, fold)
    assert held() <= before + 2 * 3 * 400  # at most a parent's 93 numbers on each fold


def test_compiled_programs_do_not_grow_with_the_candidates(monkeypatch):
    """A mask of another count is another program. Those of four candidates are kept."""
    monkeypatch.setattr(sys.modules[subset_score.__module__], "CANDIDATES", 4)

    def masked(network, units, examples):
        mask = fixed_mask({"two/kernel": np.arange(len(units))})
        labels = select(network, {"tuned": ["two/kernel"], "head": ["head"]})
        return [Phase(labels, adam(1e-2), 2, mask)]

    score = subset_score(
        task(), masked, key=KEY, folds=3, settings=Settings(norm="tuned", batch_size=8)
    )
    programs = []
    for count in range(1, 13):
        score(("two",) * count, 0, 0)
        programs.append(len(jax.devices()[0].client.live_executables()))
    assert programs[4:8] == programs[8:] and programs[4] < programs[7]


def test_a_warm_search_keeps_the_runs_of_two_sets_alone():
    """Of the last candidate's parents: what is kept does not grow with the candidates."""
    arrays: dict[tuple, weakref.ref] = {}

    def train(bases, units, places):
        network = toy.mlp()
        kernel = jnp.array(network.params["one"]["kernel"])
        arrays[units] = weakref.ref(kernel)
        one = {**network.params["one"], "kernel": kernel}
        network = network._replace(params={**network.params, "one": one})
        return [Trained(network, 1.0, 1.0) for _ in places]

    trained = _warm(train, Trained(toy.mlp(), float("nan"), 0.0))
    for units in (("a",), ("b",), ("b", "a"), ("b", "c"), ("b", "c", "a")):
        trained(units, [(0, 0)])
    gc.collect()
    alive = [units for units, array in arrays.items() if array() is not None]
    assert set(alive) <= {("b",), ("b", "c")}

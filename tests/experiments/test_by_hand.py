"""Seeds, rates, schedules and tables of the studies' shared parts, by hand."""

from pathlib import Path

import jax
import numpy as np
import pytest

import subtune_jax as st
from experiments import diff_pruning, surgical_shifts
from experiments.common import curve_tables, diffs, modules, search, strategies
from experiments.common import subtuning as subtuning_runs
from experiments.common.diffs import Variant
from experiments.common.flags import resolved
from experiments.common.report.intervals import paired_interval
from experiments.common.search import SEARCHES, search_row
from experiments.common.strategies import STRATEGIES
from experiments.common.study import Context
from experiments.common.subtuning import Recipe, phase
from experiments.common.surgical import tuned_rows
from subtune_jax.demo.digits import digits_task
from subtune_jax.training.optimizers import Rule, adam, adamw, sgd
from tests import toy
from tests.experiments.test_adaptation import row


def test_a_good_strategy_ends_within_one_point_of_the_best():
    """80 and 78.5: one and a half points below is not good, and its top does not count."""
    best = row("best", 0, (0, 10, 90), (1, 80, 70))
    near = row("near", 0, (0, 10, 90), (1, 78.5, 60))
    groups = curve_tables.tested([best, near], "t")
    assert curve_tables.equal_level(groups, 0) == 80
    close = row("near", 0, (0, 10, 90), (1, 79.25, 60))
    groups = curve_tables.tested([best, close], "t")
    assert curve_tables.equal_level(groups, 0) == 79.25


def test_an_interval_has_nineteen_of_twenty_draws():
    """One seed, 400 examples, half of them right by one method alone: the difference is a
    proportion of 0.5, whose 95 % interval is 0.5 -+ 1.96 * sqrt(0.25 / 400)."""
    labels = np.ones(400)
    one = np.where(np.arange(400) % 2, 1.0, 0.0)

    def mean(outputs, targets):
        return float((outputs == targets).mean())

    found = paired_interval(mean, [one], [np.zeros(400)], [labels], draws=4000)
    half = 1.96 * np.sqrt(0.25 / 400)
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.5 - half, abs=0.004)
    assert found.high == pytest.approx(0.5 + half, abs=0.004)


def test_blocks_and_head_have_their_rates_and_fall_by_a_cosine():
    network = toy.small_resnet()
    recipe = Recipe(learning_rate=0.02, head_learning_rate=0.3, weight_decay=0.04)
    found = phase(network, ("block1_0",), recipe, 7)
    rule = {"weight_decay": 0.04, "schedule": "cosine"}
    assert found.rules == {"head": adamw(0.3, **rule), "units": adamw(0.02, **rule)}
    assert phase(network, (), recipe, 7).rules == {"head": adamw(0.3, **rule)}


def test_all_weights_move_at_the_rates_of_full_and_few_at_the_others():
    recipe = modules.ModuleRecipe(
        full_learning_rates=(1e-5, 2e-5), learning_rates=(1e-3, 3e-3)
    )
    both = [Variant(1e-5, 1e-3), Variant(2e-5, 3e-3)]
    assert diffs.variants_of("constrained", recipe) == both
    assert diffs.variants_of("non_adaptive", recipe) == both
    assert diffs.variants_of("full", recipe) == [Variant(1e-5), Variant(2e-5)]
    assert diffs.variants_of("random", recipe) == [Variant(1e-3), Variant(3e-3)]


def test_phases_of_a_sparse_difference_have_each_its_rate():
    task = digits_task("none", 0)
    settings = diff_pruning.Settings(
        recipe=modules.ModuleRecipe(
            (1e-5,), (1e-3,), 0.5, epochs=4, batch_size=50, weight_decay=0.25
        )
    )
    first, second = diffs.phases_of(
        settings, task, "non_adaptive", 0.5, 0, Variant(1e-5, 1e-3)
    )
    warmup = int(0.1 * min(first.steps, second.steps))
    how = {"weight_decay": 0.25, "schedule": "linear", "clip_norm": 1.0}
    rule = {**how, "warmup": warmup}
    assert first.rules == {"body": adamw(1e-5, **rule), "head": adamw(0.5, **rule)}
    assert second.rules == {"body": adamw(1e-3, **rule), "head": adamw(0.5, **rule)}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_body_of_a_small_rate_has_a_tenth_of_it(optimizer):
    make = {"adam": adam, "sgd": sgd}[optimizer]
    network = digits_task("contrast", 0).network
    phases = strategies.phases_of(network, STRATEGIES["small_rate"], optimizer, 40, 0.5)
    for one in phases:
        for group, rule in one.rules.items():
            assert rule == make(0.5 if group == "head" else 0.05)
    (probe,) = strategies.phases_of(
        network, STRATEGIES["head_only"], optimizer, 40, 0.5
    )
    rules = probe.rules
    assert (rules if isinstance(rules, Rule) else {*rules.values()}.pop()) == make(0.5)


def context(tmp_path, **more):
    fields = {
        "earlier": (),
        "folder": tmp_path,
        "progress": lambda text: None,
        "keep": lambda *given, **how: None,
        "out": tmp_path,
    }
    return Context(**(fields | more))


def test_a_seed_of_surgical_fine_tuning_is_that_of_its_runs(tmp_path, monkeypatch):
    keys = []

    def tuner(network, phases_of, variants, task, *, key, **how):
        keys.append(jax.random.key_data(key).tolist())
        return st.tune(network, phases_of, variants[:1], task, key=key)

    monkeypatch.setattr("experiments.common.surgical.tune", tuner)
    settings = resolved(surgical_shifts.Settings(), embedded=True)
    task = digits_task("contrast", 0)
    for seed in (0, 3):
        job = surgical_shifts.Job("contrast", seed, "last")
        small = type(settings.recipe)
        recipe = small(**{**vars(settings.recipe), "epochs": 1, "tries": 1})
        list(tuned_rows(_with(settings, recipe=recipe), task, job, context(tmp_path)))
    assert keys == [jax.random.key_data(jax.random.key(s)).tolist() for s in (0, 3)]


def _with(settings, **changes):
    from dataclasses import replace

    return replace(settings, **changes)


def test_a_search_with_a_ranking_counts_what_the_ranking_took(tmp_path, monkeypatch):
    from experiments import subtuning_greedy

    (ranked,) = [name for name, kind in SEARCHES.items() if kind.ranked][:1]
    task = digits_task("contrast", 0)
    units = ("block1_0", "block3_0")
    monkeypatch.setattr(
        search, "gradient_ranking", lambda *given: (dict.fromkeys(units, 1.0), 7e9)
    )

    def scorer(*given, **how):
        return st.selection.Scorer(
            lambda subset, places: [st.selection.Score(50.0, 100.0) for _ in places]
        )

    monkeypatch.setattr(search, "scorer", scorer)
    settings = resolved(subtuning_greedy.Settings(), embedded=True)
    settings = _with(settings, recipe=_with(settings.recipe, units=units, folds=2))
    job = subtuning_greedy.Job("contrast", f"search {ranked}", 0)
    found = search_row(settings, task, job, context(Path(tmp_path)), ranked)
    assert found["flops"] == 7e9 + 100.0 * found["runs"] and found["runs"] > 0
    assert subtuning_runs.units_of(task.network, settings.recipe) == units

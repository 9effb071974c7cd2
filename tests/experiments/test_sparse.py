"""Methods that change few weights: their steps, and exactly what their deltas hold."""

import jax
import numpy as np
import pytest

import subtune_jax as st
from experiments import diff_pruning as study
from experiments.common import sparse
from experiments.common.diffs import Diff, require_runnable
from tests import toy

SHARE = 0.1


def task():
    network, data = toy.transformer("bert")
    return st.Task(network, data, data, st.data.Sealed(data))


def phases(network, method, steps=84):
    rule = st.adam(1e-2)
    budget = sparse.Budget(steps, steps // 2, rule, rule, rule, 0)
    return sparse.phases_of(network, method, SHARE, Diff(), budget)


@pytest.mark.parametrize("method", [*sparse.DENSE, *sparse.SPARSE])
def test_every_method_has_as_many_steps_in_as_many_phases_as_it_says(method):
    every = phases(task().network, method)
    assert sum(phase.steps for phase in every) == 84
    assert len(every) == (2 if method in sparse.TWO_PHASES else 1)


def test_a_form_of_l0_is_refused_where_no_method_reads_it():
    settings = study.Settings(
        methods=("constrained", "random"), diff=Diff(l0="additive")
    )
    message = "--l0 additive is read by structured and plain alone, and neither"
    with pytest.raises(st.InputError, match=message):
        require_runnable(settings, task())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "lora", "biases"])
def test_what_is_tested_is_what_is_stored(method):
    one = task()
    settings = st.Settings(batch_size=4)
    tuned = sparse.tune_stored(
        "bfloat16",
        one.network,
        lambda rate: phases(one.network, method, 6),
        [1.0],
        one,
        key=jax.random.key(0),
        settings=settings,
    )
    trial = tuned.best
    (row,) = sparse.stored_rows(one.network, "bfloat16", trial)
    assert row["stored"] == sparse.changeable(one.network, method, SHARE)
    delta = st.extract(
        one.network, trial.network, values="bfloat16", **sparse.form_of(trial)
    )
    again, _ = st.apply(one.network, delta)
    prints = {st.tree.fingerprint(n.params) for n in (again, trial.network)}
    assert len(prints) == 1
    if method == "random":  # two bytes a value, and some bits for its place
        assert row["stored"] == row["differ"] and 2 < row["bytes_a_value"] < 3.2
    if method == "lora":
        assert not delta.elements and not np.any(
            [p.startswith("params/layer") for p in delta.whole]
        )

"""What watches a run: when it is called, what it sees, and what a kill leaves of it."""

import jax
import numpy as np
import pytest

from subtune_jax.errors import InputError
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings
from subtune_jax.training.watch import WatchError, early_then_log, rule_of
from tests import toy

KEY = jax.random.key(0)


def phases(*steps):
    labels = select(toy.mlp(), {"g": [".*"]})
    return [Phase(labels, adam(1e-2), number) for number in steps]


def first_bias(network):
    return float(network.params["head"]["bias"][0])


def run(*steps, watch=first_bias, **how):
    """Four steps an epoch: 48 examples in batches of 12."""
    how = {"key": KEY, "settings": Settings(batch_size=12)} | how
    return fit(toy.mlp(), phases(*steps), toy.points(48), watch=watch, **how)


def test_records_are_of_the_start_the_epochs_and_the_ends_of_phases():
    assert [record.step for record in run(6, 5).records] == [0, 4, 6, 8, 11]


def test_a_rule_of_ones_own_and_every_step():
    records = run(5, watch_at=lambda step: step == 3).records
    assert [record.step for record in records] == [0, 3, 5]
    assert [record.step for record in run(5, watch_at="step").records] == [*range(6)]


def test_a_record_is_of_the_network_as_it_stands():
    kept = []

    def keep(network):
        kept.append(network)
        return first_bias(network)

    result = run(4, watch=keep, watch_at="step")
    values = [record.value for record in result.records]
    assert values == [first_bias(network) for network in kept]  # alive after the run
    assert len(set(values)) == 5 and values[0] == first_bias(toy.mlp())
    np.testing.assert_array_equal(
        kept[-1].params["head"]["kernel"], result.network.params["head"]["kernel"]
    )


def test_watching_changes_nothing_and_epochs_have_their_logs():
    watched, alone = run(8, watch_at="step"), run(8, watch=None)
    for a, b in zip(
        *(jax.tree.leaves(r.network.params) for r in (watched, alone)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert alone.records == () and watched.epochs == alone.epochs
    assert [(e.number, e.step) for e in alone.epochs] == [(1, 4), (2, 8)]
    assert alone.epochs[0].loss > alone.epochs[1].loss > 0
    assert all(epoch.grad_norm > 0 for epoch in alone.epochs)


@pytest.mark.parametrize("dies_at", [1, 4, 6, 9])
def test_a_run_that_was_killed_has_every_record_and_epoch_once(tmp_path, dies_at):
    whole = run(6, 4, watch_at="step")
    calls = []

    def deadly(network):
        calls.append(1)
        if len(calls) == dies_at + 1:
            raise KeyboardInterrupt
        return first_bias(network)

    settings = {"watch_at": "step", "checkpoint": tmp_path, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        run(6, 4, watch=deadly, **settings)
    resumed = run(6, 4, **settings)
    assert resumed.records == whole.records and resumed.epochs == whole.epochs
    again = run(6, 4, **settings)  # finished: nothing is run
    assert again.records == whole.records and again.epochs == whole.epochs


def test_early_steps_and_then_a_logarithmic_grid():
    due = early_then_log(10, 10)
    steps = [step for step in range(1, 101) if due(step)]
    assert steps[:10] == [*range(1, 11)]
    later = [13, 16, 20, 26, 32, 40, 51, 64, 80, 100]  # 10^(1 + i / 10), rounded up
    assert steps[10:] == later


def test_what_cannot_be_watched_is_said():
    with pytest.raises(InputError, match="unknown watch_at 'epochs'.*mean 'epoch'"):
        rule_of("epochs", 4, (8,))
    with pytest.raises(InputError, match="watch must return JSON values.*got set"):
        run(4, watch=lambda network: {1, 2})


def test_progress_is_shown_where_it_is_asked_for(capsys):
    run(8, watch=None, progress=True)
    shown = capsys.readouterr().err
    assert "fit loss" in shown and "8/8" in shown
    run(8, watch=None)
    assert capsys.readouterr().err == ""  # no terminal here


def test_a_watch_that_fails_is_a_sentence_and_the_records_so_far_are_kept():
    def fails(network):
        value = first_bias(network)
        if value != first_bias(toy.mlp()):
            raise ValueError("no such file")
        return value

    with pytest.raises(WatchError, match="after step 1: ValueError: no such") as error:
        run(4, watch=fails, watch_at="step")
    assert [record.step for record in error.value.records] == [0]
    assert error.value.step == 1

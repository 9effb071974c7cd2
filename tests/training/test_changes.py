"""Code that changes between two calls: the second one trains what the code is now."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import subtune_jax as st
from subtune_jax.data.buckets import ragged
from subtune_jax.errors import InputError
from tests import toy
from tests.processes import QUICK
from tests.training import kinds

KEY = jax.random.key(0)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_change_is_seen_by_the_next_call_whatever_it_is_of(kind):
    """Three times the loss: three times its gradient too."""
    make = kinds.KINDS[kind]
    before, after = (kinds.first_step(make(changed)) for changed in (False, True))
    np.testing.assert_allclose(after, 3 * before, rtol=1e-5)
    np.testing.assert_array_equal(kinds.first_step(make(False)), before)


def test_the_rules_of_a_gradient_are_seen():
    """The loss is as it was, and the step goes the other way."""

    def results(strength):
        turned = kinds.reverse(strength)
        return kinds.first_step(lambda o, t: kinds.ce(turned(o), t))

    plain, reversed_ = results(1.0), results(-1.0)
    assert reversed_[0] == plain[0]
    np.testing.assert_allclose(reversed_[1:], -plain[1:], rtol=1e-5)


def printed(folder, changed, seed):
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kinds", str(folder), changed],
        env={**QUICK, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_a_checkpoint_knows_every_change_in_another_process(tmp_path):
    """Under another hash seed, so that a set of strings has another order."""
    every = [*kinds.KINDS, "set_of_strings"]
    assert printed(tmp_path, "0", "1") == dict.fromkeys(every, "continued")
    again = printed(tmp_path, "0", "2")
    assert again.pop("set_of_strings") == "refused"
    assert again == dict.fromkeys(kinds.KINDS, "continued")
    assert printed(tmp_path, "1", "1") == dict.fromkeys(every, "refused")


def test_a_docstring_changes_no_run(tmp_path):
    texts = ['def loss(o, t):\n "One."\n return ce(o, t)']
    texts += [texts[0].replace("One", "Another")]
    for text in texts:
        scope = {"ce": kinds.ce}
        exec(text, scope)
        kinds.first_step(scope["loss"], checkpoint=tmp_path)


def texts(seed=0):
    """Texts of three widths."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(1, 40, n).astype(np.int32) for n in (3, 7, 12) * 8]
    x = {"input_ids": rows, "attention_mask": [np.ones_like(row) for row in rows]}
    x = {name: ragged(values, (4, 8, 12)) for name, values in x.items()}
    return st.Dataset(x, np.arange(24, dtype=np.int32) % 3)


def test_a_step_is_traced_once_for_each_width_and_call(tmp_path):
    network, traces, scale = toy.transformer("bert")[0], [], [1.0]

    def loss(o, t):
        traces.append(o.shape)
        return scale[0] * kinds.ce(o, t)

    def run(**more):
        phase = st.Phase(st.select(network, {"g": ["layer_1"]}), st.sgd(0.1), 6)
        settings = st.Settings(loss=loss, batch_size=8)
        traces.clear()
        result = st.fit(
            network,
            phase,
            texts(),
            key=KEY,
            progress=False,
            settings=settings,
            validate=lambda tuned: st.evaluate(tuned, texts()),
            **more,
        )
        return len(traces), result.epochs[0].loss

    count, plain = run()
    assert count == 3 and run() == (3, plain)
    scale[0] = 3.0
    assert run()[0] == 3 and run()[1] > 2 * plain
    assert run(checkpoint=tmp_path)[0] == 4  # the whole step beside cut ones
    scale[0] = 1.0
    with pytest.raises(InputError, match="what a step of phase 0 computes"):
        run(checkpoint=tmp_path)


def test_equal_settings_of_one_call_share_a_trace():
    traces = []

    def loss(o, t):
        traces.append(1)
        return kinds.ce(o, t)

    network, data = toy.mlp(), toy.points()
    task = st.Task(network, data, data, st.data.Sealed(data))

    def phases_of(rate):
        return st.Phase(st.select(network, {"g": ["head"]}), st.sgd(rate), 4)

    settings = st.Settings(loss=loss, batch_size=16)
    st.tune(network, phases_of, [0.1, 0.2, 0.3], task, key=KEY, settings=settings)
    assert len(traces) == 1
    score = st.training.subset_score(
        task,
        lambda network, units, examples: [phases_of(0.1)],
        key=KEY,
        folds=3,
        share=False,
        settings=settings,
    )
    for fold in range(3):
        for seed in range(2):
            score(("two",), fold, seed)
    assert len(traces) == 2


def test_training_and_validation_see_one_version_of_a_stage():
    network, scale = toy.mlp(), [1.0]

    def scaled(params, stats, x, *, batch_stats, key):
        return scale[0] * toy.hidden(params, stats, x, batch_stats=0, key=0)[0], stats

    first, *rest = network.stages
    network = network._replace(stages=(st.Stage("one", scaled), *rest))
    points = toy.points()

    def error(tuned):
        losses = kinds.ce(st.predict(tuned, points), points.y)
        return float(losses.mean())

    def run():
        phase = st.Phase(st.select(network, {"g": ["head"]}), st.sgd(1e-9), 1)
        settings = st.Settings(batch_size=48)
        result = st.fit(
            network,
            phase,
            points,
            key=KEY,
            validate=error,
            mode="min",
            progress=False,
            settings=settings,
        )
        return result.epochs[0].loss, result.scores[0]

    trained, validated = run()
    assert trained == pytest.approx(validated, rel=1e-5)
    scale[0] = 10.0
    trained_again, validated_again = run()
    assert trained_again == pytest.approx(validated_again, rel=1e-5)
    assert abs(trained_again - trained) > 1e-3


@pytest.mark.parametrize("begin", [0, 2**30])
def test_a_cached_prefix_is_not_part_of_a_run(tmp_path, begin):
    network, data = toy.mlp(), toy.points()
    phase = st.Phase(st.select(network, {"g": ["head"]}), st.sgd(0.1), 9)

    def run(steps, cache_bytes):
        settings = st.Settings(batch_size=16, cache_bytes=cache_bytes)
        return st.fit(
            network,
            phase._replace(steps=steps),
            data,
            key=KEY,
            progress=False,
            settings=settings,
            checkpoint=tmp_path,
        ).network.params["head"]["bias"]

    run(6, begin)
    np.testing.assert_allclose(run(9, 2**30 - begin), run(9, begin), rtol=1e-6)

"""Runs and searches that end, fail, go on or meet something new (faults T5 to T14)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import subtune_jax as st
from subtune_jax import programs, recipes, training
from subtune_jax.data.buckets import ragged
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.selection import Scorer, greedy, open_journal, profile
from subtune_jax.selection.journal import Journal, Score
from tests import toy
from tests.training import kinds

KEY = jax.random.key(0)
HEAD = {"g": ["head"]}


def task_of(network, data, validation=None):
    validation = data if validation is None else validation
    return st.Task(network, data, validation, st.data.Sealed(data))


def hinge(outputs, targets):
    sign = 2.0 * targets - 1
    margin = sign * (outputs[:, 1] - outputs[:, 0])
    return jnp.maximum(0, 1 - margin)


def separable():
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    x[:, 0] += np.where(np.arange(40) % 2, 3, -3)
    return st.Dataset(x, (np.arange(40) % 2).astype(np.int32))


def two_classes():
    return st.replace_head(toy.mlp(), 2, KEY)


def test_a_run_that_has_learnt_all_goes_on(tmp_path):
    """A hinge loss is 0 where all is separated, and so is its gradient (T6)."""
    network, data = two_classes(), separable()
    phase = st.Phase(st.select(network, {"g": [".*"]}), st.sgd(0.1), 200)

    def run(**more):
        settings = st.Settings(batch_size=20, loss=hinge)
        return st.fit(
            network,
            phase,
            data,
            key=KEY,
            validate=lambda tuned: st.evaluate(tuned, data),
            progress=False,
            settings=settings,
            **more,
        )

    result = run(checkpoint=tmp_path)
    assert result.epochs[-1].grad_norm == 0 and result.scores[-1] == 100
    assert run(checkpoint=tmp_path).scores == result.scores


@pytest.mark.parametrize("lanes", [False, True])
def test_a_trial_that_fails_is_one_failed_trial(lanes):
    """With a rate of 0.1 one trial learns; the other's head is never reached (T6)."""
    network, data = two_classes(), separable()
    labels = [st.select(network, {"g": [name]}) for name in ("one", "head")]

    def phases_of(variant):
        return st.Phase(labels[variant], st.sgd(0.1), 8)

    tuned = st.tune(
        network,
        phases_of,
        [0, 1] if not lanes else [1, 1],
        task_of(network, data),
        key=KEY,
        lanes=lanes,
        settings=st.Settings(batch_size=20),
    )
    assert tuned.best.variant == 1
    if not lanes:
        failed = tuned.trials[0]
        assert failed.status == "failed" and "exactly 0 in steps 1 to 2" in str(failed)


def test_a_lane_that_cannot_learn_is_one_failed_lane():
    network, data = two_classes(), separable()
    zeros = jax.tree.map(jnp.zeros_like, network.params)
    dead = network._replace(params=zeros)
    phase = st.Phase(st.select(network, {"g": ["one"]}), st.sgd(0.1), 4)
    live = network._replace(
        params={**network.params, "head": jax.tree.map(jnp.ones_like, zeros["head"])}
    )
    live.params["head"]["kernel"] = live.params["head"]["kernel"].at[:, 0].set(-1)
    runs = [training.Run(phase, KEY, one) for one in (dead, live)]
    first, second = training.sweep(
        network, runs, data, settings=st.Settings(batch_size=20)
    )
    assert isinstance(first, InputError) and isinstance(second, st.FitResult)


def test_the_error_of_all_trials_is_raised():
    network, data = toy.mlp(), toy.points()

    def phases_of(rate):
        return st.Phase(st.select(network, HEAD), {"no group": st.sgd(rate)}, 4)

    with pytest.raises(InputError, match="rules are given for groups no group"):
        st.tune(network, phases_of, [0.1, 0.2], task_of(network, data), key=KEY)


def test_a_trial_with_more_steps_than_are_asked_for_is_one_failed_trial(tmp_path):
    network, data = toy.mlp(), toy.points()

    def run(steps):
        def phases_of(rate):
            return st.Phase(st.select(network, HEAD), st.sgd(rate), steps[rate])

        return st.tune(
            network,
            phases_of,
            [0.1, 0.2],
            task_of(network, data),
            key=KEY,
            checkpoint=tmp_path,
        )

    run({0.1: 9, 0.2: 6})
    again = run({0.1: 6, 0.2: 6})
    assert [one.status for one in again.trials] == ["failed", "ok"]
    assert "has 9 steps of this run, and 6 are asked for" in str(again.trials[0].error)


def raced(folder, progress=lambda trial: None):
    network, data = toy.mlp(), toy.points()

    def phases_of(rate, steps):
        return st.Phase(st.select(network, HEAD), st.sgd(rate), steps)

    return training.race(
        network,
        phases_of,
        [0.001, 0.01, 0.1],
        task_of(network, data, toy.points(seed=1)),
        rungs=[10, 20],  # 3 steps an epoch: both end within one
        key=KEY,
        checkpoint=folder,
        progress=progress,
        settings=st.Settings(batch_size=16),
    )


def told(result):
    return [one._replace(seconds=0.0, network=None, trainable=None) for one in result]


def test_a_race_goes_on_and_may_be_called_again(tmp_path):
    """T7: killed at each of its trials, and then called once more."""
    whole = raced(None)
    calls: list = []

    def stopped(trial):
        calls.append(trial)
        if len(calls) in (2, 5, 9):
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            raced(tmp_path, stopped)
    for _ in range(2):
        again = raced(tmp_path)
        assert told(again.trials) == told(whole.trials)
        np.testing.assert_array_equal(
            again.network.params["head"]["kernel"],
            whole.network.params["head"]["kernel"],
        )
    (tmp_path / "race.json").write_text("{")
    with pytest.raises(InputError, match="race.json is damaged"):
        raced(tmp_path)


def texts():
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 40, n).astype(np.int32) for n in (3, 5, 7, 12) * 6]
    x = {"input_ids": rows, "attention_mask": [np.ones_like(row) for row in rows]}
    x = {name: ragged(values, (4, 8, 12)) for name, values in x.items()}
    return st.Dataset(x, np.arange(24, dtype=np.int32) % 3)


def test_texts_with_dropout_are_no_lanes(monkeypatch):
    """T8: lanes pad them wider than `fit`, and would drop other elements."""
    network, data = toy.transformer("bert")[0], texts()
    labels = st.select(network, {"g": ["layer_1", "head"]})
    run = training.Run(st.Phase(labels, st.sgd(0.1), 3), KEY)
    settings = st.Settings(batch_size=8)
    with pytest.raises(InputError, match="stage 'layer_1' has dropout, and texts of"):
        training.sweep(network, [run], data, settings=settings)
    without = settings._replace(dropout="none")
    (lane,) = training.sweep(network, [run], data, settings=without)
    alone = st.fit(network, run.phases, data, key=KEY, settings=without)
    assert lane.epochs[0].loss == pytest.approx(alone.epochs[0].loss, rel=1e-6)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    tuned = st.tune(
        network,
        lambda rate: st.Phase(labels, st.sgd(rate), 3),
        [0.1, 0.2],
        task_of(network, data),
        key=KEY,
        settings=settings,
    )
    plain = st.fit(network, run.phases, data, key=KEY, settings=settings)
    np.testing.assert_array_equal(
        np.asarray(plain.network.params["head"]["bias"]),
        np.asarray(_of(tuned, 0.1, network, labels, data, settings)),
    )


def _of(tuned, rate, network, labels, data, settings):
    assert [trial.variant for trial in tuned.trials] == [0.1, 0.2]
    phase = st.Phase(labels, st.sgd(rate), 3)
    return st.fit(network, phase, data, key=KEY, settings=settings).network.params[
        "head"
    ]["bias"]


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "score of 'b' is NaN"), (float("inf"), "'b' is infinite")],
)
def test_scores_that_are_not_finite_choose_nothing(value, message):
    """T9."""
    score = {"a": 1.0, "b": value, "c": 3.0}
    with pytest.raises(InputError, match=message):
        st.top(score, 1)
    with pytest.raises(InputError, match=message):
        greedy(
            ["a", "b", "c"],
            lambda *asked: Score(1.0),
            ranking=score,
            shortlist=1,
        )


def test_multipliers_of_a_loss_without_numbers_are_refused():
    network, data = toy.mlp(), toy.points()

    def loss(outputs, targets):
        return jnp.sqrt(jnp.minimum(cross_entropy(outputs, targets), 0))

    multipliers = st.selection.auto_rgn(loss)
    batches = [st.data.batches.padded(data, 48)]
    with pytest.raises(InputError, match="is NaN: did the loss or a gradient"):
        multipliers(network, batches, ["two/kernel", "two/bias"])


def test_a_journal_belongs_to_its_score(tmp_path):
    """T10."""

    def score(sign):
        return lambda units, fold, seed: Score(sign * len(units))

    def search(file, score, **more):
        with open_journal(file) as journal:
            return greedy(["a", "b"], score, journal=journal, **more).units

    file = tmp_path / "j.jsonl"
    assert search(file, score(1.0)) == search(file, score(1.0)) == ("a", "b")
    with pytest.raises(InputError, match="evaluations of another score"):
        search(file, score(-1.0))
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], *lines[2:]]))  # as an earlier version wrote it
    with pytest.raises(InputError, match="it does not say which"):
        search(file, score(1.0))
    memory = Journal({})
    greedy(["a"], score(1.0), journal=memory)
    with pytest.raises(InputError, match="evaluations of another score"):
        greedy(["a"], score(-1.0), journal=memory)


def test_a_scorer_has_its_folds():
    """T10: a search takes them from it, and others are refused."""
    asked = []

    def many(units, places):
        asked.extend(places)
        return [Score(1.0) for _ in places]

    scorer = Scorer(many, folds=4)
    assert greedy(["a"], scorer).runs == 8 and set(asked) == {(f, 0) for f in range(4)}
    assert len(profile([("a",)], scorer)[("a",)]) == 4
    for search in (greedy, profile):
        with pytest.raises(InputError, match="the score has 4 folds, and 5 are asked"):
            search(["a"], scorer, folds=5)
    task = task_of(toy.mlp(), toy.points())
    whole = training.subset_score(task, phases_of_head, key=KEY, folds=None)
    assert whole.folds == 1
    with pytest.raises(InputError, match="the score has 1 fold, and 5 are asked for"):
        profile([("two",)], whole, folds=5)


def phases_of_head(network, units, examples):
    return st.Phase(st.select(network, {"g": ["head", *units]}), st.sgd(0.1), 4)


def test_the_journal_of_a_subset_score_knows_what_it_depends_on(tmp_path):
    network, data = toy.mlp(), toy.points()

    def search(task=None, phases_of=phases_of_head, **more):
        task = task_of(network, data) if task is None else task
        how = {"key": KEY, "folds": 2} | more
        score = training.subset_score(task, phases_of, **how)
        with open_journal(tmp_path / "j.jsonl") as journal:
            return greedy(["two"], score, journal=journal).runs

    moved = data._replace(x=data.x + 1)
    assert search() == search() == search(share=False) == 4
    changes = {
        "key": {"key": jax.random.key(1)},
        "folds or warm": {"folds": 3},
        "batch_size": {"settings": st.Settings(batch_size=8)},
        "what the network": {"settings": st.Settings(loss=lambda o, t: o[:, 0])},
        "phases_of": {"phases_of": lambda *given: phases_of_head(*given)},
        "data": {"task": task_of(network, moved)},
    }
    for name, change in changes.items():
        with pytest.raises(InputError, match=f"another score .*{name}"):
            search(**change)


def test_a_leaf_without_rows_is_not_cached():
    """T11: six examples, and an array of six numbers that is no row of them."""

    def first(params, stats, x, *, batch_stats, key):
        return {"h": x @ params["kernel"], "scale": jnp.arange(1.0, 7)}, stats

    def second(params, stats, x, *, batch_stats, key):
        return jnp.tanh(x["h"] * x["scale"][None]) @ params["kernel"], stats

    base = toy.mlp()
    stages = (st.Stage("one", first), st.Stage("two", second), base.stages[2])
    network = base._replace(stages=stages)
    for examples in (6, 40):
        data = toy.points(examples)
        phase = st.Phase(st.select(network, HEAD), st.sgd(0.5), 30)

        def losses(cache_bytes, data=data, phase=phase):
            settings = st.Settings(batch_size=4, cache_bytes=cache_bytes)
            result = st.fit(network, phase, data, key=KEY, settings=settings)
            return [epoch.loss for epoch in result.epochs]

        np.testing.assert_allclose(losses(2**30), losses(0), rtol=1e-5)
    with pytest.raises(InputError, match="after stage 'one' have an array without a"):
        training.cut(network, 1, data)
    shares = [
        training.subset_score(
            task_of(network, data), phases_of_head, key=KEY, folds=2, share=share
        )(("two",), 0, 0).value
        for share in (True, False)
    ]
    assert shares[0] == shares[1]


@pytest.mark.parametrize("warm", [False, True])
def test_shared_features_are_of_what_nothing_has_tuned(warm):
    """T5: a warm set starts from one that was tuned below its own lowest unit."""
    network, data = toy.small_resnet(), toy.images(40)

    def phases_of(network, units, examples):
        labels = st.select(network, {"g": [*units[-1:], "head"]})
        return [st.Phase(labels, st.sgd(0.05), 6)]

    def scores(share):
        task = task_of(network, data, toy.images(40, seed=1))
        score = training.subset_score(
            task, phases_of, key=KEY, folds=2, warm=warm, share=share
        )
        units = [(), ("block1",), ("block1", "block3")]
        return [score(one, fold, 0).value for one in units for fold in range(2)]

    assert scores(True) == scores(False)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.lin = nnx.Linear(4, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(nnx.relu(self.lin(x)))


class Scanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(axis_size=3)
        def blocks(rngs):
            return Block(rngs)

        self.blocks = blocks(rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(block, x):
            return block(x)

        return self.out(run(self.blocks, x))


class Jitted(nnx.Module):
    def __init__(self, rngs):
        self.block, self.out = Block(rngs), nnx.Linear(4, 3, rngs=rngs)

    @nnx.jit
    def __call__(self, x):
        return self.out(self.block(x))


class Again(Jitted):
    def __call__(self, x):
        return self.out(nnx.remat(lambda block, x: block(x))(self.block, x))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        cell = nnx.LSTMCell(4, 4, rngs=rngs)
        self.rnn, self.drop = nnx.RNN(cell), nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(self.rnn(x[:, None])[:, -1]))


@pytest.mark.parametrize("module", [Scanned, Jitted, Again, Recurrent])
def test_transformed_modules_train_with_dropout_and_predict_without(module):
    """T12."""
    network, data = st.from_nnx(module(nnx.Rngs(0))), toy.points()
    phase = st.Phase(st.select(network, {"g": [".*"]}), st.sgd(0.01), 1)

    def loss(dropout, key=0):
        settings = st.Settings(batch_size=48, dropout=dropout)
        result = st.fit(
            network, phase, data, key=jax.random.key(key), settings=settings
        )
        return result.epochs[0].loss

    outputs = st.predict(network, data)
    np.testing.assert_array_equal(outputs, st.predict(network, data))
    plain = float(cross_entropy(jnp.asarray(outputs), data.y).mean())
    assert loss("none") == pytest.approx(plain, rel=1e-5)
    assert loss("all") != loss("none") and loss("all") != loss("all", key=1)


def test_layers_of_a_scan_drop_different_elements():
    module = Scanned(nnx.Rngs(0))
    network = st.from_nnx(module)
    rest = nnx.state(module, nnx.RngKey)
    (shape,) = {x.shape for x in jax.tree.leaves(rest)}
    assert shape == (3,)
    (stage,) = network.stages
    ones = jax.tree.map(jnp.ones_like, network.params["model"])
    x = jnp.ones((64, 4))
    apply = stage.apply
    y, _ = apply(ones, {}, x, batch_stats=False, key=KEY)
    # Three layers with one mask give 0 or 8 times the sum; with their own, more values.
    assert len(np.unique(np.asarray(y))) > 10


class Drawing(nnx.Module):
    def __init__(self, rngs):
        self.block = Block(rngs)

    @nnx.jit
    def __call__(self, x):
        return self.block.drop(x, deterministic=False)


def test_a_jitted_module_that_draws_in_evaluation_is_still_refused():
    network = st.from_nnx(Drawing(nnx.Rngs(0)))
    with pytest.raises(InputError, match="trains .norms or dropout. in evaluation"):
        st.predict(network, np.ones((2, 4), np.float32))


class Noisy(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.Dense(3)(x)
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return x


def test_random_streams_of_linen_have_names():
    module, data = Noisy(), toy.points()
    variables = module.init(KEY, data.x)
    phase_of = lambda n: st.Phase(st.select(n, {"g": [".*"]}), st.sgd(0.1), 1)  # noqa: E731
    settings = st.Settings(dropout="all")
    plain = st.from_linen(module, variables)
    with pytest.raises(InputError, match="noise.*name its random streams, from_linen"):
        st.fit(plain, phase_of(plain), data, key=KEY, settings=settings)
    network = st.from_linen(module, variables, rngs=("dropout", "noise"))
    result = st.fit(network, phase_of(network), data, key=KEY, settings=settings)
    assert np.isfinite(result.epochs[0].loss)


def test_static_attributes_of_other_types_are_other_stages():
    class Power(nnx.Module):
        def __init__(self, power):
            self.lin, self.power = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), power

        def __call__(self, x):
            return self.lin(x) * (2 if isinstance(self.power, bool) else 1)

    x = np.ones((1, 4), np.float32)
    one, true = (st.predict(st.from_nnx(Power(p)), x) for p in (1, True))
    np.testing.assert_allclose(true, 2 * one)


def test_a_phase_alone_and_named_stages_under_share():
    """T13."""
    network, data = toy.small_resnet(), toy.images(40)

    def score(settings=st.Settings(), phases_of=phases_of_head):
        task = task_of(network, data)
        found = [
            training.subset_score(
                task, phases_of, key=KEY, folds=2, share=share, settings=settings
            )(("block3",), 0, 0).value
            for share in (True, False)
        ]
        assert found[0] == found[1]

    score()
    score(st.Settings(norm=[]))
    score(st.Settings(norm=["block2_0"]))

    def fast(network, units, examples):
        return recipes.fast(network, st.sgd(0.1), 8)

    base = st.replace_head(network, 3, KEY, normalize="batch")
    task = task_of(base, data)
    value = training.subset_score(task, fast, key=KEY, folds=2)((), 0, 0).value
    assert np.isfinite(value)


def test_a_stream_may_be_of_dicts():
    network, _ = toy.transformer("bert")
    labels = st.select(network, {"g": ["layer_1"]})
    result = training.tent(network, labels, texts(), batch_size=8)
    assert result.outputs.shape == (24, 3)


@pytest.mark.parametrize("ends", [(7, 12), (3, 7, 12), (5, 12)])
def test_an_end_within_an_epoch_counts_no_epoch_twice(tmp_path, ends):
    """T14: 40 rows in batches of 8."""
    network, data = toy.mlp(), toy.points(40)
    calls = []

    def run(steps, folder):
        def validate(tuned):
            calls.append(steps)
            return -abs(float(tuned.params["head"]["bias"][0]) - 0.05)

        phase = st.Phase(st.select(network, HEAD), st.sgd(0.05), steps)
        return st.fit(
            network,
            phase,
            data,
            key=KEY,
            validate=st.named("nearness", validate),
            watch=lambda tuned: float(tuned.params["head"]["bias"][0]),
            settings=st.Settings(batch_size=8),
            checkpoint=folder,
            progress=False,
        )

    for steps in ends:
        result = run(steps, tmp_path / "parts")
    whole = run(12, tmp_path / "whole")
    assert [log.step for log in result.epochs] == [5, 10, 12]
    assert result.scores == whole.scores and result.epochs == whole.epochs
    assert result.epoch == whole.epoch and result.records == whole.records
    calls.clear()
    again = run(12, tmp_path / "parts")
    assert again.scores == whole.scores and not calls


def test_a_journal_knows_the_rules_of_gradients(tmp_path):
    """The loss is the same, and the step goes the other way."""
    network, data = toy.mlp(), toy.points()

    def search(strength):
        turned = kinds.reverse(strength)
        settings = st.Settings(loss=lambda o, t: cross_entropy(turned(o), t))
        score = training.subset_score(
            task_of(network, data), phases_of_head, key=KEY, folds=2, settings=settings
        )
        with open_journal(tmp_path / "j.jsonl") as journal:
            return profile([()], score, journal=journal)

    assert search(1.0) == search(1.0)
    with pytest.raises(InputError, match="another score .*the network and the loss"):
        search(-1.0)


def test_a_rule_of_a_gradient_that_is_not_needed_is_no_part_of_a_run(tmp_path):
    same, base = kinds.reverse(1.0), toy.mlp()

    def first(params, stats, x, *, batch_stats, key):
        return same(x @ params["kernel"]), stats

    network = base._replace(stages=(st.Stage("one", first), *base.stages[1:]))
    phase = st.Phase(st.select(network, HEAD), st.sgd(0.1), 6)
    settings = st.Settings(batch_size=16, cache_bytes=0)
    programs.forget()
    for folder in (None, tmp_path, tmp_path):
        st.fit(
            network, phase, toy.points(), key=KEY, settings=settings, checkpoint=folder
        )
    assert len(programs._programs) == 1


def test_equal_layers_in_another_order_are_another_network():
    class Two(nnx.Module):
        def __init__(self, seed):
            self.lin = nnx.Linear(4, 4, rngs=nnx.Rngs(seed))

        def __call__(self, x):
            return nnx.tanh(self.lin(x))

    parts = {"a": Two(0), "b": Two(1), "head": nnx.Linear(4, 3, rngs=nnx.Rngs(2))}
    network, data = st.from_nnx(parts), toy.points()
    a, b, head = network.stages
    assert a.apply is b.apply
    swapped = network._replace(stages=(b, a, head))
    batch = st.data.batches.padded(data, 48)
    for one in (network, swapped):
        found = st.evaluation.gradient_norms(one, batch)
        programs.forget()
        assert found == pytest.approx(st.evaluation.gradient_norms(one, batch))


def test_a_search_begins_with_the_code_of_its_time(tmp_path):
    network, data, scale = toy.mlp(), toy.points(), [1.0]
    settings = st.Settings(loss=lambda o, t: scale[0] * cross_entropy(o, t))

    def scorer():
        task = task_of(network, data)
        return training.subset_score(
            task, phases_of_head, key=KEY, folds=2, settings=settings
        )

    old = scorer()
    plain = profile([()], old)
    scale[0] = 100.0
    with open_journal(tmp_path / "j.jsonl") as journal:
        again = profile([()], old, journal=journal)
        assert again == profile([()], scorer()) != plain
        assert again == profile([()], scorer(), journal=journal)


def test_another_metric_is_another_run_of_tune(tmp_path):
    network, data = toy.mlp(), toy.points()

    def run(metric):
        metrics = {"validation": metric, "test": metric}
        task = task_of(network, data)._replace(metrics=metrics)
        return st.tune(
            network,
            lambda rate: st.Phase(st.select(network, HEAD), st.sgd(rate), 4),
            [0.1],
            task,
            key=KEY,
            checkpoint=tmp_path,
        )

    run(st.metrics.accuracy)
    run(st.metrics.accuracy)
    with pytest.raises(InputError, match="these differ: validate or mode"):
        run(lambda o, t: -st.metrics.accuracy(o, t))


def test_a_race_without_its_record_is_run_anew(tmp_path):
    first = raced(tmp_path)
    (tmp_path / "race.json").unlink()
    again = raced(tmp_path)
    assert told(again.trials) == told(first.trials)
    for damaged in ("[]", '{"0.1 10": 3}', '{"0.1 10": {"value": 1}}'):
        (tmp_path / "race.json").write_text(damaged)
        with pytest.raises(InputError, match="race.json is damaged"):
            raced(tmp_path)


def test_a_setting_of_jax_that_changes_is_another_program():
    network = toy.transformer("bert")[0]
    phase = st.Phase(st.select(network, {"g": ["layer_1", "head"]}), st.sgd(0.1), 3)

    def losses(partitionable):
        with jax.threefry_partitionable(partitionable):
            result = st.fit(network, phase, texts(), key=KEY, progress=False)
        return [epoch.loss for epoch in result.epochs]

    one, other = losses(True), losses(False)
    assert one != other and one == losses(True)


@pytest.mark.parametrize("as_partial", [False, True])
@pytest.mark.parametrize("part", ["init", "materialize", "take_over"])
def test_a_users_tuning_computes_what_its_code_says_now(part, as_partial):
    """Outside of compiled steps too, behind an inner `jit` that reads what changes."""
    scale, subset = [1.0], st.tuning.subset()

    @jax.jit
    def scaled(x):
        return scale[0] * x

    def changed(*args):
        return jax.tree.map(scaled, getattr(subset, part)(*args))

    another = {"materialize": lambda *args: subset.materialize(*args)}
    own = {**another, part: changed}
    if as_partial:
        own = {name: partial(f) for name, f in own.items()}
    tuning = subset._replace(**own)
    network, data = toy.mlp(), toy.points()
    first = st.Phase(
        st.select(network, {"g": ["two"]}), st.sgd(1e-30), 1
    )  # which moves no weight
    phase = first._replace(tuning=tuning)
    run = [first, phase] if part == "take_over" else [phase]

    def kernel():
        fitted = st.fit(
            network, run, data, key=KEY, settings=st.Settings(batch_size=16)
        ).network
        return np.asarray(fitted.params["two"]["kernel"])

    before = kernel()
    scale[0] = 2.0
    np.testing.assert_array_equal(kernel(), 2 * before)


def test_forgetting_is_watched_by_the_head_as_it_is_now():
    scale, network, data = [1.0], toy.mlp(), toy.points()

    def head(params, stats, x, *, batch_stats, key):
        return scale[0] * (x @ params["kernel"] + params["bias"][None]), stats

    network = network._replace(stages=(*network.stages[:-1], st.Stage("head", head)))
    phase = st.Phase(st.select(network, HEAD), st.sgd(1e-30), 1)

    def loss():
        watch = st.evaluation.watch_forgetting(network, data, lambda network: 0.0)
        return st.fit(network, phase, data, key=KEY, watch=watch).records[0].value

    outputs = network(data.x)
    for scale[0] in (1.0, 3.0):
        expected = cross_entropy(scale[0] * outputs, data.y).mean()
        assert loss()["loss"] == pytest.approx(float(expected), rel=1e-5)

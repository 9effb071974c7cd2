"""What a new user gives by mistake is one sentence, wherever it is given."""

import inspect
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import subtune_jax as st
from subtune_jax.data import Dataset
from subtune_jax.dry_run import output_shapes
from subtune_jax.errors import InputError
from subtune_jax.training.settings import Settings
from tests import toy
from tests.test_layering import public

KEY = jax.random.key(0)
DATA = toy.points(24)


class Net(nnx.Module):
    """A whole model, whose number of outputs stands in no leaf called head."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden, self.out = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


NETWORKS = {"stages": toy.mlp(), "adopted": st.from_nnx(Net())}


def calls(network, data):
    """Returns calls that take labelled data, by name."""
    phase = st.Phase(
        jax.tree.map(lambda _: "g", getattr(network, "params", {})), st.adam(1e-2), 2
    )
    key, batch = KEY, st.data.Batch(data.x, data.y, np.ones(len(data.y), np.float32))
    task = st.Task(network, data, data, None)
    lane = st.training.Run(phase, key)
    return {
        "fit": lambda: st.fit(
            network, phase, data, key=key, settings=st.Settings(batch_size=8)
        ),
        "sweep": lambda: st.training.sweep(
            network, [lane], data, settings=Settings(batch_size=8)
        ),
        "tune": lambda: st.tune(network, lambda _: phase, [1], task, key=key),
        "evaluate": lambda: st.evaluate(network, data),
        "score": lambda: st.scores.relative_gradient_norm(network, [batch]),
        "fisher": lambda: st.scores.fisher(network, [batch]),
        "cost": lambda: st.step_cost(network, phase, batch),
    }


def refused(network, data, message, *names):
    tried = calls(network, data)
    for name in names or tried:
        with pytest.raises(InputError, match=message):
            tried[name]()


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (DATA.y + 1, "labels are 1 to 3: .* 3 .*, so labels 0 to 2 are expected"),
        (DATA.y - 1, "labels are -1 to 1: .* 3 .*, so labels 0 to 2 are expected"),
    ],
    ids=["from 1", "below 0"],
)
def test_labels_that_the_network_has_no_output_for(network, labels, message):
    names = ("fit", "sweep", "tune", "evaluate", "score", "fisher")
    refused(network, DATA._replace(y=labels), message, *names)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (DATA.y.astype(np.float32), "labels are float32: expected an integer type"),
        (DATA.y > 1, "labels are bool: expected an integer type"),
        (
            np.eye(3, dtype=int)[DATA.y],
            r"labels have shape \[\d+, 3\] .*: expected one class per example: of one-hot",
        ),
        (DATA.y[:, None], r"labels have shape \[\d+, 1\] .*: expected one class per"),
    ],
    ids=["floats", "booleans", "one-hot", "a column"],
)
def test_labels_of_another_form(network, labels, message):
    names = ("fit", "sweep", "tune", "score", "fisher", "cost")
    refused(network, DATA._replace(y=labels), message, *names)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([*DATA.y], "targets must be an array, got a list: numpy.asarray makes one"),
        (np.array(["a"] * 24), "targets must be numbers .*: the first is 'a'"),
        (np.zeros(0, int), r"there are no examples: the targets have shape \[0\]"),
        (np.int32(1), "targets must be an array, got a int32"),
    ],
    ids=["a list", "names", "none", "a scalar"],
)
def test_labels_that_are_no_array_of_numbers(labels, message):
    network = NETWORKS["stages"]
    data = DATA._replace(y=labels)
    phase = st.Phase(st.select(network, {"g": ["head"]}), st.adam(1e-2), 2)
    sizes = {"train": 6, "validation": 6, "test": None}
    for call in (
        lambda: st.fit(network, phase, data, key=KEY),
        lambda: st.evaluate(network, data),
        lambda: st.split_task(network, data, sizes, seed=0),
        lambda: st.tune(
            network, lambda _: phase, [1], st.Task(network, data, DATA, None), key=KEY
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_inputs_of_another_width_name_the_stage_and_both_numbers(network):
    message = r"stage '(one|model)' cannot take its input, float32\[\d+, 5\]: TypeError"
    wide = DATA._replace(x=np.zeros((24, 5), np.float32))
    refused(network, wide, message)
    with pytest.raises(InputError, match=message) as caught:
        st.predict(network, wide)
    assert "(4, " in str(caught.value) or "(4,)" in str(caught.value)
    assert isinstance(caught.value.__cause__, TypeError)


def test_inputs_that_are_no_arrays_or_none():
    network = NETWORKS["stages"]
    for x, message in (
        (DATA.x.tolist(), "inputs must be an array .*, got a list: numpy.asarray"),
        (DATA.x[:0], "there are no examples: the inputs are empty"),
        ({"a": DATA.x, "b": DATA.x[:5]}, "different numbers of rows: a 24, b 5"),
        (
            {"a": DATA.x, "b": None, "c": "text"},
            "input 'c' is a text: data.encode makes token ids of texts",
        ),
        (np.array(["text"] * 24), "inputs must be numbers, got <U4"),
    ):
        with pytest.raises(InputError, match=message):
            st.predict(network, x)


def test_predict_takes_inputs_alone():
    network = NETWORKS["stages"]
    outputs = st.predict(network, DATA, batch_size=10)
    np.testing.assert_array_equal(st.predict(network, DATA.x, batch_size=10), outputs)
    np.testing.assert_allclose(outputs, network(DATA.x), atol=1e-6)
    bert, texts = toy.transformer("bert")
    np.testing.assert_array_equal(st.predict(bert, texts.x), st.predict(bert, texts))


def test_texts_without_their_mask():
    network, data = toy.transformer("bert")
    x = {"input_ids": data.x["input_ids"]}
    message = (
        "inputs have no attention_mask, 1 at tokens and 0 at padding: .* input_ids "
    )
    with pytest.raises(InputError, match=message):
        st.predict(network, x)
    refused(network, data._replace(x=x), message, "fit", "sweep", "tune", "evaluate")


@pytest.mark.parametrize("rules", [optax.adam(1e-3), {"g": optax.sgd(0.1)}, 0.1])
def test_rules_that_are_no_rules(rules):
    network = NETWORKS["stages"]
    phase = st.Phase(st.select(network, {"g": ["head"]}), rules, 2)
    found = "an optax transformation" if rules != 0.1 else "a float"
    message = f"rules must be a Rule or a dict of them by group, got {found}"
    for call in (
        lambda: st.fit(network, phase, DATA, key=KEY),
        lambda: st.training.sweep(network, [st.training.Run(phase, KEY)], DATA),
        lambda: st.step_cost(
            network, phase, st.data.Batch(DATA.x, DATA.y, np.ones(24, np.float32))
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_list_of_phases_holds_phases():
    with pytest.raises(InputError, match="phase 0 must be a Phase, got str"):
        st.fit(NETWORKS["stages"], ["head"], DATA, key=KEY)


FIRST_ARGUMENT = {
    name: value
    for space in (st, *(getattr(st, n) for n in st.NAMESPACES))
    for name, value in public(space).items()
    if inspect.isfunction(value)
    and [*inspect.signature(value).parameters][:1] == ["network"]
}


@pytest.mark.parametrize("name", sorted(FIRST_ARGUMENT))
def test_a_flax_module_where_a_network_is_expected(name, tmp_path):
    function = FIRST_ARGUMENT[name]
    batch = st.data.Batch(DATA.x, DATA.y, np.ones(24, np.float32))
    rule = st.adam(1e-3)
    phase = st.Phase({}, rule, 1)
    by_name = {
        **{n: DATA for n in ("data", "x")},
        **{n: phase for n in ("phase", "phases")},
        **{n: batch for n in ("batch",)},
        **{n: [batch] for n in ("batches", "views")},
        **{n: rule for n in ("rule", "probe_rule")},
        "phases_of": lambda _: phase,
        "task": st.Task(NETWORKS["stages"], DATA, DATA, None),
        "sizes": {"train": 6, "validation": 6, "test": None},
        "file": tmp_path / "file",
        "steps": 10,
        "units": ["head"],
        "name": "head",
        "entry": "head",
        "num_classes": 3,
        "key": KEY,
    }
    _, *others = inspect.signature(function).parameters.values()
    single = [p for p in others if p.kind is not p.VAR_POSITIONAL]
    needed = [p.name for p in single if p.default is p.empty]
    given = {n: by_name.get(n, {"g": ["head"]}) for n in needed}
    for module, hint in ((Net(), "from_nnx"), (linen.Dense(3), "from_linen")):
        with pytest.raises(InputError, match=f"must be a Network, got .*: .*{hint}"):
            function(module, **given)


class Two(nnx.Module):
    def __call__(self, x, mask):
        return x * mask


class Silent(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones(2))


class TwoLinen(linen.Module):
    @linen.compact
    def __call__(self, x, mask):
        return linen.Dense(3)(x) * mask


def test_models_that_want_other_arguments():
    message = (
        "stage 'model' is called with x, mask: a network calls it with its one input"
    )
    with pytest.raises(InputError, match=message):
        st.from_nnx(Two())
    with pytest.raises(InputError, match=message):
        st.from_linen(TwoLinen(), {"params": {}})
    with pytest.raises(InputError, match="stage 'model' has no __call__"):
        st.from_nnx(Silent())
    with pytest.raises(InputError, match="module must be a linen.Module, got Net"):
        st.from_linen(Net(), {"params": {}})


def normed(argument: str, opposite: bool):
    """Returns a Linen module with batch norm and an argument of this name."""
    space = {"linen": linen}
    exec(
        "class Normed(linen.Module):\n"
        "    @linen.compact\n"
        f"    def __call__(self, x, {argument}={opposite}):\n"
        f"        still = {argument} if {opposite} else not {argument}\n"
        "        x = linen.BatchNorm(use_running_average=still, name='norm')(x)\n"
        "        return linen.Dense(3, name='out')(x)\n",
        space,
    )
    return space["Normed"]()


@pytest.mark.parametrize(
    ("argument", "opposite"),
    [("train", False), ("is_training", False), ("use_running_average", True)],
)
def test_batch_norm_of_linen_is_switched_without_a_flag(argument, opposite):
    module = normed(argument, opposite)
    network = st.from_linen(module, module.init(KEY, DATA.x))
    named = st.from_linen(module, module.init(KEY, DATA.x), flag=argument)
    phase = st.Phase(st.select(network, {"g": [".*"]}), st.adam(1e-2), 4)
    means = [
        st.fit(
            one,
            phase,
            DATA,
            key=KEY,
            settings=st.Settings(norm=norm, batch_size=8),
        ).network.stats
        for one in (network, named)
        for norm in ("stored", "batch")
    ]
    stored, batch, *same = (m["model"]["norm"]["mean"] for m in means)
    np.testing.assert_array_equal(stored, 0)
    assert np.all(batch != 0)
    np.testing.assert_array_equal([stored, batch], same)


def test_batch_norm_of_linen_that_cannot_be_switched():
    class Always(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(linen.BatchNorm(use_running_average=False)(x))

    network = st.from_linen(Always(), Always().init(KEY, DATA.x))
    message = (
        r"updates its batch statistics although .*: give .* from_linen\(..., flag="
    )
    refused(network, DATA, message, "fit", "evaluate", "score", "cost")


def test_an_nnx_module_gets_its_own_arguments():
    class Own(nnx.Module):
        def __init__(self):
            self.drop = nnx.Dropout(0.5)
            self.out = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x, train=False, rngs=None):
            return self.drop(self.out(x), deterministic=not train, rngs=rngs)

    (stage,) = st.from_nnx(Own()).stages
    params = st.from_nnx(Own()).params["model"]

    def outputs(seed):
        key = None if seed is None else jax.random.key(seed)
        return np.asarray(
            stage.apply(params, {}, DATA.x, batch_stats=False, key=key)[0]
        )

    np.testing.assert_array_equal(outputs(None), outputs(None))
    assert np.mean(outputs(0) == 0) == pytest.approx(0.5, abs=0.2)
    assert np.any(outputs(0) != outputs(1))


def test_output_shapes_are_those_of_the_forward_pass():
    network = NETWORKS["stages"]
    shape = output_shapes(network, DATA.x[:5])  # of one of the rows
    assert (shape.shape, shape.dtype) == ((1, 3), np.float32)
    with pytest.raises(InputError, match="network must be a Network, got str"):
        output_shapes("resnet", DATA.x)


class Bare(nnx.Module):
    """Norms and dropout as nnx sets them: what modules with switches must agree with."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm, self.drop = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(self.norm(x)))

    def run(self, x, still, off):
        x = self.norm(x, use_running_average=still)
        return self.out(self.drop(x, deterministic=off))


class Train(Bare):
    def __call__(self, x, train=False):
        return self.run(x, not train, not train)


class Keyword(Bare):
    def __call__(self, x, *, training):
        return self.run(x, not training, not training)


class Deterministic(Bare):
    def __call__(self, x, deterministic=True):
        return self.run(x, deterministic, deterministic)


class Both(Bare):
    def __call__(self, x, deterministic=True, use_running_average=True):
        return self.run(x, use_running_average, deterministic)


class Named(Bare):
    def __call__(self, x, is_train=True):
        return self.run(x, not is_train, not is_train)


def losses(network, **changes):
    phase = st.Phase(st.select(network, {"g": [".*"]}), st.sgd(1e-9), 3)
    run = st.fit(
        network, phase, DATA, key=KEY, settings=st.Settings(batch_size=24, **changes)
    )
    return [epoch.loss for epoch in run.epochs]


@pytest.mark.parametrize("kind", [Train, Keyword, Deterministic, Both, Named])
@pytest.mark.parametrize("norm", ["stored", "batch"])
@pytest.mark.parametrize("dropout", ["all", "none"])
def test_a_switch_of_norms_and_dropout_is_obeyed_or_refused(kind, norm, dropout):
    flag = "is_train" if kind is Named else None
    network, settings = (
        st.from_nnx(kind(), flag=flag),
        {"norm": norm, "dropout": dropout},
    )
    np.testing.assert_allclose(
        st.predict(network, DATA), st.predict(st.from_nnx(Bare()), DATA), rtol=1e-6
    )
    if kind is Both or (norm == "batch") == (dropout == "all"):
        expected = losses(st.from_nnx(Bare()), **settings)
        np.testing.assert_allclose(losses(network, **settings), expected, rtol=1e-5)
        return
    with pytest.raises(
        InputError, match="switches norms and dropout together, and here"
    ):
        losses(network, **settings)


def test_test_time_adaptation_does_not_drop_out_silently():
    labels = st.select(network := st.from_nnx(Train()), {"g": ["norm"]})
    with pytest.raises(InputError, match="'train' switches norms and dropout together"):
        st.training.tent(network, labels, DATA, batch_size=8, norm="batch")


class Training(Bare):
    training = True

    def __call__(self, x):
        return self.run(x, not self.training, True)


class Drawing(Bare):
    def __call__(self, x, inference=False):
        return self.run(x, True, inference)


class Still(Bare):
    def __call__(self, x, is_train=False):
        return self.run(x, not is_train, not is_train)


@pytest.mark.parametrize("kind", [Named, Training, Drawing])
def test_a_module_that_trains_in_evaluation_is_refused(kind):
    with pytest.raises(
        InputError, match="the module trains .* in evaluation: it has a sw"
    ):
        st.predict(st.from_nnx(kind()), DATA)


def test_a_module_that_never_uses_the_batch_is_refused_under_batch():
    network = st.from_nnx(Still())
    assert len(losses(network)) == 3
    with pytest.raises(
        InputError, match="norms do not use the statistics of the batch"
    ):
        losses(network, norm="batch", dropout="none")


def test_a_linen_switch_of_norms_and_dropout_is_obeyed_or_refused():
    class Both(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            x = linen.BatchNorm(use_running_average=not train)(x)
            return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(x))

    network = st.from_linen(Both(), Both().init(KEY, DATA.x))
    assert len(set(losses(network, norm="batch", dropout="all"))) == 3
    assert len(losses(network, norm="stored", dropout="none")) == 3
    for norm, dropout in (("stored", "all"), ("batch", "none")):
        with pytest.raises(
            InputError, match="'train' switches norms and dropout together"
        ):
            losses(network, norm=norm, dropout=dropout)


class Apart(linen.Module):
    """A switch for norms and another for dropout."""

    @linen.compact
    def __call__(self, x, deterministic=True, use_running_average=True):
        x = linen.BatchNorm(use_running_average=use_running_average)(x)
        x = linen.Dropout(0.5, deterministic=deterministic)(x)
        return linen.Dense(3)(x)


@pytest.mark.parametrize("norm", ["stored", "batch"])
@pytest.mark.parametrize("dropout", ["all", "none"])
def test_two_linen_switches_are_obeyed_apart(norm, dropout):
    network = st.from_linen(Apart(), Apart().init(KEY, DATA.x))
    phase = st.Phase(st.select(network, {"g": [".*"]}), st.sgd(1e-9), 3)
    run = st.fit(
        network,
        phase,
        DATA,
        key=KEY,
        settings=st.Settings(batch_size=24, norm=norm, dropout=dropout),
    )
    # Of the same rows in another order: the last bit of a mean may differ.
    losses = {round(epoch.loss, 5) for epoch in run.epochs}
    assert len(losses) == (3 if dropout == "all" else 1)
    mean = run.network.stats["model"]["BatchNorm_0"]["mean"]
    assert bool(np.any(mean != 0)) == (norm == "batch")


def test_a_linen_module_that_never_uses_the_batch_is_refused_under_batch():
    class Still(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(linen.BatchNorm(use_running_average=True)(x))

    network = st.from_linen(Still(), Still().init(KEY, DATA.x))
    assert len(losses(network)) == 3
    with pytest.raises(
        InputError, match=r"do not use .* of the batch: .* from_linen\("
    ):
        losses(network, norm="batch")


def test_arguments_that_a_module_needs_are_given_or_asked_for():
    class Needs(Bare):
        def __init__(self):
            super().__init__()
            self.drop = nnx.Dropout(0.5)

        def __call__(self, x, rngs):
            return self.out(self.drop(x, rngs=rngs))

    assert len(set(losses(st.from_nnx(Needs())))) == 3
    with pytest.raises(
        InputError, match="unknown flag 'is_train': expected one of rngs, x"
    ):
        st.from_nnx(Needs(), flag="is_train")


NETWORK = NETWORKS["stages"]
PHASE = st.Phase(st.select(NETWORK, {"g": ["head"]}), st.adam(1e-2), 2)
TASK = st.Task(NETWORK, DATA, DATA, st.data.Sealed(DATA))
SIZES = {"train": 6, "validation": 6, "test": None}


def fit(phase=PHASE, **settings):
    return st.fit(NETWORK, phase, DATA, key=settings.pop("key", KEY), **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fit(settings={"batch_size": 8}),
            "settings must be a Settings, got dict",
        ),
        (
            lambda: st.tune(
                NETWORK, lambda _: PHASE, [1], TASK, key=KEY, settings=None
            ),
            "settings must be a Settings, got NoneType",
        ),
        (lambda: fit(key=nnx.Rngs(0)), "key must be one jax.random.key.*, got Rngs"),
        (lambda: st.count_trainable(NETWORK, {"g": ["two"]}), "labels are a tree like"),
        (lambda: st.coverage(NETWORK, {"g": ["two"]}), "labels are a tree like"),
        (
            lambda: st.assert_frozen(NETWORK, NETWORK, PHASE.labels),
            "assert_frozen compares parameters",
        ),
        (
            lambda: fit(PHASE._replace(labels={"g": ["two"]})),
            r"labels of phase 0 are not those of the network: select\(network",
        ),
        (
            lambda: fit(PHASE._replace(steps=4.0)),
            "steps must be a positive whole number",
        ),
        (
            lambda: fit(settings=Settings(batch_size=16.0)),
            "batch_size must be a positive whole number, got",
        ),
        (
            lambda: st.predict(NETWORK, DATA, batch_size=8.0),
            "batch_size must be a positi",
        ),
        (
            lambda: st.adam(1e-2, schedule=None),
            "unknown schedule None: expected one of c",
        ),
        (
            lambda: fit(settings=Settings(place="cpu")),
            "place must be a Placement, got str",
        ),
        (
            lambda: fit(settings=Settings(cache_bytes="1GB")),
            "cache_bytes must be a whole number from 0 up, got '1GB'",
        ),
        (
            lambda: fit(PHASE._replace(tuning=st.tuning.lora)),
            "tuning must be a Tuning, got function",
        ),
        (
            lambda: fit(key=jax.random.split(KEY)),
            "key must be one jax.random.key.seed., got 2 keys",
        ),
        (
            lambda: fit(settings=Settings(norm=True)),
            "norm must be stored, .* or a list of names of stages, got True",
        ),
        (
            lambda: fit(settings=Settings(dropout=0.5)),
            "dropout must be tuned, .* or a list of names of stages, got 0.5",
        ),
        (
            lambda: fit(validate=DATA),
            "validate must be a function of 1 arguments, got Dat",
        ),
        (
            lambda: fit(watch=lambda: 1),
            "watch must be a function of 1 arguments: too many",
        ),
        (
            lambda: fit(watch=lambda net: 1, watch_at=10),
            "unknown watch_at 10: expected one",
        ),
        (
            lambda: fit(settings=Settings(loss="cross_entropy")),
            "loss must be a function of 2 arguments, got s",
        ),
        (lambda: fit(checkpoint=True), "checkpoint must be a folder's path, got True"),
        (lambda: fit(None), "phases must be a Phase or a list of them, got NoneType"),
        (
            lambda: st.tune(NETWORK, PHASE, [1e-2], TASK, key=KEY),
            "phases_of must be a function of 1 arguments, got Phase",
        ),
        (
            lambda: st.tune(NETWORK, lambda _: PHASE, 1e-2, TASK, key=KEY),
            "variants must be a list, got float",
        ),
        (
            lambda: st.split_task(
                NETWORK, Dataset(DATA.x, np.eye(3)[DATA.y]), SIZES, 0
            ),
            r"split by class: expected integer labels \[examples\], got float64\[24, 3\]",
        ),
        (
            lambda: st.split_task(NETWORK, Dataset(DATA.x.tolist(), DATA.y), SIZES, 0),
            "inputs must be an array with the example first, got a list",
        ),
        (
            lambda: st.split_task(NETWORK, DATA, SIZES | {"train": 0.5}, 0),
            "the size of train must be a positive whole number, got 0.5",
        ),
        (
            lambda: st.split_task(NETWORK, DATA, SIZES, KEY),
            "seed must be a whole number, got PRNGKeyArray",
        ),
        (
            lambda: st.test_once("network", TASK),
            "predictor must be a function of 1 arguments, got str",
        ),
        (
            lambda: st.test_once(lambda data: np.ones(24), TASK),
            r"outputs have shape \[24\]: expected \[examples, classes\]",
        ),
        (
            lambda: st.scores.relative_gradient_norm(NETWORK, DATA),
            "a score takes batches, got ndarray for one: data.in_order",
        ),
        (lambda: st.scores.fisher(NETWORK, DATA), "a score takes batches, got ndarray"),
        (lambda: st.top([1.0, 2.0], 1), "a score is a dict of numbers, got list"),
        (
            lambda: st.replace_head(NETWORK, 4.0),
            "num_classes must be a positive whole nu",
        ),
        (
            lambda: st.replace_head(NETWORK, 4, init=jax.nn.initializers.ones),
            "an initializer draws at random: give replace_head a key",
        ),
        (
            lambda: st.replace_head(NETWORKS["adopted"], 4),
            "of your own model, make the head a stage, from_nnx",
        ),
        (
            lambda: st.evaluate(NETWORK, DATA._replace(y=DATA.y + 0.5)),
            "labels are float64: expected an integer type",
        ),
        (
            lambda: st.evaluate(NETWORK, DATA, lambda outputs, labels: labels > 0),
            "<lambda> must return a number, got ndarray",
        ),
        (
            lambda: st.evaluate(NETWORK, DATA, lambda outputs: 1.0),
            "metric must be a function of 2 arguments: too many",
        ),
        (
            lambda: st.from_linen(TwoLinen(), None),
            "variables are what module.init returns",
        ),
        (
            lambda: st.from_nnx({0: Bare()}),
            "stage 0 is a Bare: expected an nnx.Module by",
        ),
        (
            lambda: st.from_nnx(Bare(), units={"blocks": {"early": "norm"}}),
            "unit 'early' must be a list of patterns of paths, got 'norm'",
        ),
        (
            lambda: st.from_nnx(Bare(), units={"early": ("norm",)}),
            "units are tables by name, .*: 'early' is a tuple",
        ),
        (
            lambda: st.select(NETWORK, {"g": [lambda path: True]}),
            "a selector is a string, got function in group 'g'",
        ),
        (
            lambda: st.select(NETWORK, {"g": ["kernl"]}),
            "nearest parts of paths are kernel",
        ),
    ],
)
def test_other_mistakes_are_one_sentence(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_module_with_two_outputs_is_refused():
    class TwoOutputs(Net):
        def __call__(self, x):
            return super().__call__(x), x

    with pytest.raises(
        InputError, match="the network returns a tuple: expected one array"
    ):
        st.predict(st.from_nnx(TwoOutputs()), DATA)


def test_targets_are_not_read_and_files_are_named_by_strings(tmp_path):
    outputs = st.predict(NETWORK, DATA)
    np.testing.assert_array_equal(st.predict(NETWORK, Dataset(DATA.x, None)), outputs)
    st.models.save(NETWORK, str(tmp_path / "w.safetensors"))
    back = st.models.restore(NETWORK, str(tmp_path / "w.safetensors"))
    np.testing.assert_array_equal(st.predict(back, DATA), outputs)
    assert repr(TASK) == (
        "Task(Network(93 parameters in stages one, two, head), 24 to train, 24 to "
        "validate, Sealed(24 examples, see test_once))"
    )


def test_studies_without_their_packages_are_one_sentence(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("experiments")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(SystemExit, match="studies need tyro: pip install"):
        runpy.run_module("experiments", run_name="__main__")


def test_a_unit_may_stand_alone_and_results_are_short_to_print():
    (phase,) = st.recipes.tune_units(toy.mlp(), "two", st.adam(1e-2), 3)
    assert st.count_trainable(toy.mlp(), phase.labels) == 42
    task = st.Task(toy.mlp(), DATA, DATA, None)
    tuned = st.tune(task.network, lambda _: phase, [0.5], task, key=KEY)
    assert repr(tuned).startswith("Tuned(best Trial(0.5: ")
    assert len(repr(tuned)) < 100

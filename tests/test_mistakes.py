"""What a new user gives by mistake is one sentence, wherever it is given."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import subtune_jax as st
from subtune_jax.dry_run import output_shapes
from subtune_jax.errors import InputError
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
        "fit": lambda: st.fit(network, phase, data, key=key, batch_size=8),
        "sweep": lambda: st.training.sweep(network, [lane], data, batch_size=8),
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
        ({"a": DATA.x, "b": None, "c": "text"}, "input 'c' must be an array"),
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
    needed = [p.name for p in others if p.default is p.empty]
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
        st.fit(one, phase, DATA, key=KEY, norm=norm, batch_size=8).network.stats
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

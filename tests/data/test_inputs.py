"""What a network would take and misread is one sentence, wherever data are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.cost import step_cost
from subtune_jax.data.batches import Batch, Dataset
from subtune_jax.data.buckets import ragged
from subtune_jax.data.inputs import require_inputs, require_targets
from subtune_jax.errors import InputError
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.training.settings import Settings
from subtune_jax.training.sweep import Run, sweep
from tests import toy

KEY = jax.random.key(0)


def everywhere(network, data):
    """Returns calls that take data, by name."""
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 2)
    settings = Settings(batch_size=8)
    return {
        "fit": lambda: fit(network, phase, data, key=KEY, settings=settings),
        "sweep": lambda: sweep(network, [Run(phase, KEY)], data, settings=settings),
        "predict": lambda: predict(network, data),
        "evaluate": lambda: evaluate(network, data),
    }


def refused(network, data, message, names=("fit", "sweep", "predict", "evaluate")):
    for name in names:
        with pytest.raises(InputError, match=message):
            everywhere(network, data)[name]()


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_an_input_that_is_no_number(lost):
    data = toy.points(20)
    data.x[3, 1] = lost
    message = "the inputs must be finite numbers: some are NaN or infinite"
    refused(toy.mlp(), data, message)
    refused(toy.mlp(), data._replace(x=jnp.asarray(data.x)), message)
    refused(toy.mlp(), data._replace(x=data.x.astype(jnp.bfloat16)), message)


def test_inputs_without_a_target():
    refused(
        toy.mlp(),
        Dataset(toy.points(64).x, toy.points(60).y),
        "64 inputs and 60 targets",
    )


def test_names_of_classes_instead_of_numbers():
    data = toy.points(8)
    named = data._replace(y=np.array(["ant", "bee"] * 4))
    refused(
        toy.mlp(),
        named,
        r"targets must be numbers \(classes from 0 up\): the first is 'ant'",
        ("fit", "sweep", "evaluate"),
    )
    phase = Phase(select(toy.mlp(), {"g": ["head"]}), adam(1e-2), 2)
    batch = Batch(data.x, named.y, np.ones(8, np.float32))
    with pytest.raises(InputError, match="targets of a batch must be numbers"):
        step_cost(toy.mlp(), phase, batch)
    with pytest.raises(InputError, match="the weights of a batch have shape"):
        step_cost(toy.mlp(), phase, batch._replace(y=data.y, weight=np.ones((8, 1))))
    require_targets(data.y)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (
            lambda x: x / 255,
            "inputs are from 0 to [01].*: the network takes pixels from 0",
        ),
        (lambda x: (x / 255 - 0.5) / 0.5, "takes pixels from 0 to 255 and scales them"),
        (lambda x: 3.0 * x, "takes pixels from 0 to 255"),
        (lambda x: x[..., 0], r"takes images \[examples, height, width, 1\]"),
        (lambda x: np.repeat(x, 3, -1), r"takes images \[examples, height, width, 1\]"),
    ],
)
@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_images_of_another_scale_or_shape(family, scale, message):
    network = toy.small_resnet() if family == "resnet" else toy.transformer("vit")[0]
    data = toy.images(12)
    require_inputs(network, data.x)
    require_inputs(network, data.x.astype(np.float32))
    changed = scale(data.x.astype(np.float32)).astype(np.float32)
    refused(network, data._replace(x=changed), message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "input_ids",
            40,
            "input_ids are 0 to 40: the network's table has 40 rows, so 0 to",
        ),
        ("input_ids", -1, "input_ids are -1 to 39"),
        (
            "token_type_ids",
            2,
            "token_type_ids are 0 to 2: the network's table has 2 rows",
        ),
    ],
)
def test_ids_outside_the_tables(name, value, message):
    network, data = toy.transformer("bert")
    ids = np.clip(data.x["input_ids"], 0, 39)
    ids[0, :2] = 0, 39
    x = {**data.x, "input_ids": ids, "token_type_ids": np.zeros_like(ids)}
    require_inputs(network, x)
    x[name] = x[name].copy()
    x[name][2, 3] = value
    refused(network, data._replace(x=x), message)
    rows = {key: ragged(list(values), (8,)) for key, values in x.items()}
    with pytest.raises(InputError, match=message):
        require_inputs(network, rows)


def test_an_array_where_texts_are_expected():
    network, data = toy.transformer("bert")
    refused(
        network,
        data._replace(x=data.x["input_ids"]),
        "takes texts as a dict with input_",
    )

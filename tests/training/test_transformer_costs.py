"""What tuning parts of an encoder costs: counted from shapes, nothing is run."""

from functools import partial

import jax
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.cost import stage_flops
from subtune_jax.data.batches import Batch, Dataset
from subtune_jax.flops import contraction_flops
from subtune_jax.losses import cross_entropy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.network import Network
from subtune_jax.selection.select import count_trainable, select
from subtune_jax.training.optimizers import adamw
from subtune_jax.training.phases import Phase, Settings, check
from subtune_jax.training.prefix_cache import cached_stages
from subtune_jax.training.state import start
from subtune_jax.training.step import train_step

pytestmark = pytest.mark.slow

MINILM = BertConfig(
    num_layers=6,
    hidden_size=384,
    num_heads=12,
    intermediate_size=1536,
    pooling="mean",
    dropout=0.0,
)
PARTS = {
    "layer_norms": ["layer_norms"],
    "biases": ["biases"],
    "last two": ["layer_10", "layer_11", "pooler"],
    "full": [".*"],
    "one layer": ["layer_3:layer_norms"],
}


def shapes(config):
    """Returns the network without a number in it."""
    tables = {"vocab_size": 8, "max_positions": 4}  # the only arrays that are made
    made = bert(config._replace(**tables, intermediate_size=8), jax.random.key(0))
    whole = jax.eval_shape(lambda key: bert(config, key).params, jax.random.key(0))
    real = bert(config._replace(vocab_size=8), jax.random.key(0)).stages
    return Network(real, whole, made.stats, made.units)


def texts(batch, tokens):
    ids = jax.ShapeDtypeStruct((batch, tokens), np.int32)
    names = ("input_ids", "attention_mask", "token_type_ids")
    y = jax.ShapeDtypeStruct((batch,), np.int32)
    return Batch(
        dict.fromkeys(names, ids), y, jax.ShapeDtypeStruct((batch,), np.float32)
    )


def of(network, entries):
    return select(network, {"tuned": entries} | ({} if ".*" in entries else HEAD))


HEAD = {"head": ["head"]}


@pytest.fixture(scope="module")
def base():
    return shapes(BertConfig())


@pytest.mark.parametrize("part", PARTS)
def test_steps_and_optimizers_of_bert_base_are_at_the_floor(base, part):
    batch, labels = texts(4, 128), of(base, PARTS[part])
    phase = Phase(labels, adamw(1e-3), 1)
    settings = Settings(cross_entropy)
    (program,) = check(base, [phase], settings)
    state = jax.eval_shape(
        lambda params, key: start(base._replace(params=params), phase, settings, key)[
            1
        ],
        base.params,
        jax.random.key(0),
    )
    step = partial(train_step, program)
    flops = contraction_flops(step, state, base.params, batch)
    floor = sum(stage_flops(base, batch.x, labels).values())
    assert floor <= flops <= 1.05 * floor
    moments = 2 * 4 * count_trainable(base, labels)
    assert moments <= tree.nbytes(state.opt_state) <= 1.05 * moments


def test_a_single_layer_ends_the_backward_pass_at_it(base):
    """From a layer to the next, one layer's activation gradients fall away: of its dense
    maps once, of both attention products (each has two operands) twice."""
    batch, tokens, width, hidden = 2, 16, 768, 3072
    x = texts(batch, tokens).x

    def step(layer):
        labels = of(base, [f"layer_{layer}:layer_norms"])
        return sum(stage_flops(base, x, labels).values())

    dense = 2 * batch * tokens * (4 * width**2 + 2 * width * hidden)
    attention = 2 * 2 * batch * tokens**2 * width
    found = [step(layer) - step(layer + 1) for layer in range(11)]
    assert found == [dense + 2 * attention] * 11


def test_the_last_two_layers_of_minilm_cost_less():
    network, x = shapes(MINILM), texts(2, 128).x
    labels = of(network, ["layer_4", "layer_5"])
    full = sum(stage_flops(network, x, of(network, [".*"])).values())
    two = stage_flops(network, x, labels)
    ids = np.zeros((2, 128), np.int32)
    data = Dataset(dict.fromkeys(x, ids), np.zeros(2, np.int32))
    phase, settings = Phase(labels, adamw(1e-3), 1), Settings(cross_entropy)
    cut = cached_stages(network, check(network, [phase], settings)[0], data, 2**30)
    assert network.stages[cut].name == "layer_4"
    cached = sum(two[stage.name] for stage in network.stages[cut:])
    assert full >= 1.8 * sum(two.values())
    assert full >= 3.0 * cached

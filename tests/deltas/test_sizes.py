"""Bytes of what is stored, on the shapes of real encoders."""

import jax
import numpy as np
import pytest

from subtune_jax import deltas, tree
from subtune_jax.deltas import Delta, Elements
from subtune_jax.models.bert import BertConfig, bert
from tests.deltas.test_file import ABOUT

MINILM = BertConfig(30522, 384, 6, 12, 1536, 512, num_classes=2)
BERT = BertConfig(30522, 768, 12, 12, 3072, 512, num_classes=2)
VERSIONS = {"jax": "0.10.2", "subtune_jax": "0.2.0"}


def shapes(config):
    """Returns `{path: shape}` of an encoder's leaves, without its head; none is drawn."""
    params = jax.eval_shape(lambda key: bert(config, key).params, jax.random.key(0))
    flat = tree.flatten({"params": params})
    return {
        p: leaf.shape for p, leaf in flat.items() if not p.startswith("params/head")
    }


def header(data):
    return 8 + int.from_bytes(data[:8], "little")


@pytest.mark.parametrize(
    ("config", "share", "bits", "most"),
    [
        (BERT, 0.005, "<u2", 3.2),  # 109 million parameters
        (BERT, 0.05, "<u2", 2.9),
        (MINILM, 0.005, "<u4", 5.2),
        (MINILM, 0.05, "<u4", 4.9),
    ],
)
def test_elements_at_random_take_few_bytes(config, share, bits, most):
    rng = np.random.default_rng(0)
    dtype = {"<u2": jax.numpy.bfloat16, "<u4": np.float32}[bits]
    elements = {}
    for path, shape in shapes(config).items():
        places = np.flatnonzero(rng.random(int(np.prod(shape))) < share)
        values = rng.integers(0, 2**15, len(places)).astype(bits).view(dtype)
        elements[path] = Elements(shape, places, values)
    elements = {path: some for path, some in elements.items() if len(some.places)}
    data = deltas.to_bytes(Delta({}, elements, {}, ABOUT | {"versions": VERSIONS}))
    stored = sum(len(some.places) for some in elements.values())
    assert (len(data) - header(data)) / stored < most
    assert header(data) < (6000 if config is MINILM else 12_000)
    again = deltas.from_bytes(data)
    for path, some in elements.items():
        np.testing.assert_array_equal(again.elements[path].places, some.places)


def test_layer_norms_of_bert_base_take_less_than_160_kilobytes():
    norms = {p: shape for p, shape in shapes(BERT).items() if "norm" in p}
    whole = {path: np.ones(shape, np.float32) for path, shape in norms.items()}
    data = deltas.to_bytes(Delta(whole, {}, {}, ABOUT | {"versions": VERSIONS}))
    assert len(norms) == 50 and sum(a.nbytes for a in whole.values()) == 153_600
    assert len(data) < 160_000

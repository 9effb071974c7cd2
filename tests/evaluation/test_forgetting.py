"""What is recorded while a network learns one task and forgets another."""

import jax
import numpy as np
import pytest

from subtune_jax import recipes, tree
from subtune_jax.errors import InputError
from subtune_jax.evaluation import (
    body,
    source_score,
    watch_forgetting,
    with_head,
    with_head_statistics,
)
from subtune_jax.head import INITIALIZERS, replace_head
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.predict import evaluate
from subtune_jax.training.settings import Settings
from tests import toy

KEY = jax.random.key(2)
SOURCE = toy.mlp()


def test_the_kept_head_reads_raw_features():
    new = replace_head(SOURCE, 5, KEY, init=INITIALIZERS["he"], normalize="batch")
    x = toy.points().x
    np.testing.assert_array_equal(with_head(new, SOURCE)(x), SOURCE(x))
    features = body(new)(x)
    head = SOURCE.params["head"]
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"][None], SOURCE(x), atol=1e-6
    )
    with pytest.raises(InputError, match="stages one, two, and its source input, stem"):
        with_head(new, toy.small_resnet())


def test_a_record_of_the_first_step_is_known_and_the_last_is_the_result_s():
    data, held = toy.points(48), toy.points(30, seed=1)
    start = replace_head(SOURCE, 3, normalize="batch")
    watch = watch_forgetting(start, held, source_score(SOURCE, data))
    result = fit(
        start,
        recipes.fast(start, adam(1e-2), 4),
        data,
        key=KEY,
        watch=watch,
        watch_at="step",
        settings=Settings(batch_size=24),
    )
    first, *_, last = result.records
    assert first.value["entropy"] == pytest.approx(1)
    assert first.value["loss"] == pytest.approx(np.log(3))
    assert first.value["energy"] == first.value["energy_initial"] == 0
    assert first.value["source"] == evaluate(SOURCE, data)
    assert result.records[1].value["source"] == first.value["source"]  # the stall
    assert [record.step for record in result.records] == [0, 1, 2, 3, 4]
    assert last.value["target"] == evaluate(result.network, held)
    assert last.value["source"] == evaluate(with_head(result.network, SOURCE), data)
    assert last.value["entropy"] < 1 and last.value["energy_initial"] == 0
    assert last.value["energy"] == pytest.approx(last.value["energy_learnt"])
    assert tree.fingerprint(SOURCE.params) == tree.fingerprint(toy.mlp().params)


def test_energy_is_what_reaches_the_raw_features():
    """Through a normalization it is ||W e / sigma||^2, at stored statistics."""
    data = toy.points(30)
    start = replace_head(SOURCE, 3, KEY, init=INITIALIZERS["he"], normalize="batch")
    start = with_head_statistics(start, data)
    x = np.asarray(body(SOURCE)(data.x))
    norm = start.stats["head"]["norm"]
    np.testing.assert_allclose(norm["mean"], x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(norm["var"], x.var(axis=0), rtol=1e-4)
    record = watch_forgetting(start, data, lambda network: 0.0)(start)
    kernel = np.asarray(start.params["head"]["kernel"])
    z = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    p = np.exp(z @ kernel) / np.exp(z @ kernel).sum(axis=1, keepdims=True)
    reached = (p - np.eye(3)[data.y]) @ kernel.T / np.sqrt(x.var(axis=0) + 1e-5)
    expected = np.square(reached).sum(axis=1).mean()
    assert record["energy"] == pytest.approx(expected, rel=1e-4)
    assert record["energy_initial"] == record["energy"] and record["energy_learnt"] == 0
    assert with_head_statistics(SOURCE, data) is SOURCE


def test_a_head_of_another_kind_is_refused():
    network = toy.small_resnet()
    headless = network._replace(stages=network.stages[:-2])
    with pytest.raises(InputError, match="'block3_0' has no kernel"):
        watch_forgetting(headless, toy.images(), lambda network: 0.0)
    with pytest.raises(InputError, match="expected 2"):
        body(network._replace(stages=network.stages[-1:]))

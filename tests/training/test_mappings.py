"""Parameters in another mapping than `dict`: the same numbers everywhere."""

from collections import OrderedDict
from functools import partial

import chex
import jax
import numpy as np
import pytest
from flax.core import FrozenDict

from subtune_jax import tree
from subtune_jax.cost import step_cost
from subtune_jax.data.batches import padded
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Network
from subtune_jax.selection import scores
from subtune_jax.selection.select import assert_frozen, select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate
from subtune_jax.training.settings import Settings
from subtune_jax.training.sweep import Run, sweep
from subtune_jax.tuning.fixed_mask import fixed_mask
from tests import toy
from tests.tuning.test_contract import TUNINGS

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


def ordered(values):
    """Returns nested OrderedDicts, in the reverse of the sorted order."""
    if not isinstance(values, dict):
        return values
    return OrderedDict((k, ordered(values[k])) for k in sorted(values, reverse=True))


MAPPINGS = {"ordered": ordered, "frozen": FrozenDict}


def networks(kind) -> tuple[Network, Network]:
    plain = toy.mlp()
    return plain, plain._replace(params=MAPPINGS[kind](plain.params))


def equal(one, other):
    chex.assert_trees_all_close(
        dict(tree.flatten(one)), dict(sorted(tree.flatten(other).items())), rtol=1e-6
    )


def phase(network, tuning):
    labels = select(network, {"body": ["two"], "head": ["head"]})
    return Phase(labels, adam(1e-2), 6, tuning=tuning)


@pytest.mark.parametrize("kind", MAPPINGS)
@pytest.mark.parametrize("name", TUNINGS)
def test_tunings_give_the_same_network(kind, name, tmp_path):
    results = []
    for number, network in enumerate(networks(kind)):
        one = phase(network, TUNINGS[name])
        settings = Settings(batch_size=16)
        run = partial(fit, network, one, toy.points(), key=KEY, settings=settings)
        made, saved = run(), run(checkpoint=tmp_path / f"{number}")
        equal(made.network.params, saved.network.params)
        chex.assert_trees_all_equal_structs(made.network.params, network.params)
        assert_frozen(network.params, made.network.params, one.labels)
        results.append(made)
    equal(*(made.network.params for made in results))
    equal(*(made.trainable for made in results))


@pytest.mark.parametrize("kind", MAPPINGS)
def test_scores_costs_evaluation_and_lanes_are_the_same(kind):
    batch, data = padded(toy.points(8), 8), toy.points()
    found = []
    for network in networks(kind):
        one = phase(network, fixed_mask({"two/kernel": np.arange(5)}))
        (lane,) = sweep(
            network, [Run(one, KEY)], data, settings=Settings(batch_size=16)
        )
        found.append(
            {
                "rgn": scores.relative_gradient_norm(network, [batch], cross_entropy),
                "fisher": scores.fisher(network, [batch], cross_entropy),
                "cost": step_cost(network, one, batch)._asdict(),
                "score": evaluate(lane.network, data),
            }
        )
    assert found[0]["rgn"] == pytest.approx(found[1]["rgn"])
    assert found[0]["fisher"] == pytest.approx(found[1]["fisher"])
    assert found[0]["score"] == found[1]["score"]
    assert found[0]["cost"]["trainable"] == found[1]["cost"]["trainable"]

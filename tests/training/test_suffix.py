"""The part of a network past a frozen prefix is a network, and trains as in the whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.cost import stage_flops
from subtune_jax.data.batches import padded
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adamw
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import predict
from subtune_jax.training.settings import Settings
from subtune_jax.training.suffix import cut, kept_cuts, rejoin
from tests import toy

KEY = jax.random.key(0)
UNITS = {"units": ["block3_0"], "head": ["head"]}
STOP = 4  # input, stem, block1_0, block2_0


def phase_of(network, steps=20):
    labels = select(network, UNITS)
    return Phase(labels, adamw(3e-3, schedule="cosine"), steps)


def test_a_suffix_is_a_network_of_the_last_stages():
    network, data = toy.small_resnet(), toy.images(10)
    suffix, (features,) = cut(network, STOP, data)
    assert [stage.name for stage in suffix.stages] == ["block3_0", "pool", "head"]
    assert suffix.first == STOP and suffix.source is None
    assert list(suffix.units["fine"]) == ["block3_0", "pool", "head"]
    assert features.x.shape == (10, 8, 8, 8) and features.y is data.y
    np.testing.assert_allclose(
        predict(suffix, features), predict(network, data), atol=1e-6
    )
    whole, (same,) = cut(network, 0, data)
    assert whole.stages == network.stages and same is data
    deeper, _ = cut(suffix, 1)
    assert [stage.name for stage in deeper.stages] == ["pool", "head"]
    assert deeper.first == STOP + 1
    for stop in (-1, 7, 1.5):
        with pytest.raises(InputError, match="stop must be from 0 to 6, which leaves"):
            cut(network, stop)


def test_a_suffix_on_features_trains_as_the_whole_run_in_float64():
    with jax.enable_x64(True):
        wide = toy.small_resnet("batch")
        network = wide._replace(
            **{
                name: jax.tree.map(
                    lambda leaf: jnp.asarray(leaf, jnp.float64), getattr(wide, name)
                )
                for name in ("params", "stats")
            }
        )
        data = toy.images(32)
        settings = Settings(batch_size=8, norm="tuned", cache_bytes=0)
        run = partial(fit, key=KEY, settings=settings)
        whole = run(network, phase_of(network), data).network
        suffix, (features,) = cut(network, STOP, data)
        part = run(suffix, phase_of(suffix), features).network
        joined = rejoin(network, part)
        assert_near((whole.params, whole.stats), (joined.params, joined.stats), 1e-9)
        moved = whole.params["block3_0"]["conv1"]["kernel"]
        assert (
            np.abs(moved - network.params["block3_0"]["conv1"]["kernel"]).max() > 1e-3
        )


def assert_near(one, other, most):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        assert a.dtype == b.dtype == jnp.float64
        assert np.max(np.abs(a - b), initial=0) < most


def test_gradients_of_the_first_step_are_those_of_the_whole_run():
    network = toy.small_resnet()
    data = toy.images(16)
    suffix, (features,) = cut(network, STOP, data)

    def gradient(part, x):
        def loss(params):
            outputs = part._replace(params={**part.params, "block3_0": params})(x)
            return cross_entropy(outputs, data.y).mean()

        return jax.grad(loss)(part.params["block3_0"])

    pairs = gradient(network, data.x), gradient(suffix, features.x)
    for a, b in zip(*map(jax.tree.leaves, pairs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_flops_of_a_step_fall_by_exactly_the_prefix():
    network, data = toy.small_resnet(), toy.images(8)
    suffix, (features,) = cut(network, STOP, data)
    whole = stage_flops(network, data.x, phase_of(network).labels)
    part = stage_flops(suffix, features.x, phase_of(suffix).labels)
    forward = stage_flops(network, data.x)
    prefix = [stage.name for stage in network.stages[:STOP]]
    assert sum(whole.values()) - sum(part.values()) == sum(forward[n] for n in prefix)


def test_keys_of_dropout_are_those_of_the_whole_network():
    network, data = toy.transformer("bert")
    suffix, (features,) = cut(network, 2, data)

    def outputs(part, x):
        phase = Phase(select(part, {"g": ["layer_1", "head"]}), adamw(1e-2), 3)
        run = fit(
            part,
            phase,
            x,
            key=KEY,
            settings=Settings(batch_size=4, cache_bytes=0),
        )
        return run.network.params["layer_1"]

    chosen = outputs(network, data), outputs(suffix, features)
    for a, b in zip(*map(jax.tree.leaves, chosen), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_cuts_are_made_once_from_the_deepest_before_within_the_budget():
    network, data = toy.small_resnet(), toy.images(10)
    forward = stage_flops(network, padded(data, 10).x)
    names = [stage.name for stage in network.stages]

    def flops(begin, stop):
        return sum(forward[name] for name in names[begin:stop])

    at = kept_cuts(network, (data,), 2**30)
    assert at(3).flops == flops(0, 3)
    assert at(5).flops == flops(3, 5)  # from the activations of the third
    assert at(4).flops == flops(3, 4)
    assert at(3).flops == at(5).flops == at(4).flops == 0
    assert at(0).data[0] is data
    # A cut of 8 x 8 x 8 floats an image does not fit beside another one.
    at = kept_cuts(network, (data,), 8 * 8 * 8 * 4 * 10)
    assert at(3).flops and at(4).flops == flops(3, 4) and at(3).flops == flops(0, 3)
    assert tree.nbytes(at(3).data[0].x) == 8 * 8 * 8 * 4 * 10
    # Where it does not fit at all, pixels as floats do, and then nothing but the images.
    at = kept_cuts(network, (data,), 8 * 8 * 4 * 10)
    assert at(3).network.first == 1 and at(6).network.first == 6
    at = kept_cuts(network, (data,), 100)
    assert at(3).network.first == 0 and at(3).data[0] is data

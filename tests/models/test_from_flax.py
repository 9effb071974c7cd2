"""A user's own modules, as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from subtune_jax import (
    InputError,
    Phase,
    adam,
    assert_frozen,
    fit,
    from_linen,
    from_nnx,
    select,
    tree,
)
from subtune_jax.training.settings import Settings
from tests import toy

NORMS_AND_HEAD = [
    f"model/{n}" for n in ("norm/bias", "norm/scale", "out/bias", "out/kernel")
]


class Theirs(nnx.Module):
    """A model nobody wrote for us: a list of layers, a batch norm, dropout."""

    def __init__(self, rngs):
        self.layers = nnx.List(
            [nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)]
        )
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.again = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.out(self.again(self.dropout(self.norm(x))))


class TheirsLinen(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.relu(linen.Dense(8, name="first")(x))
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(3, name="out")(x)


def test_adopt_an_nnx_module_select_by_pattern_fit_and_get_the_tuned_leaves():
    model = Theirs(nnx.Rngs(0))
    network = from_nnx(model)
    data = toy.points()
    model.eval()
    np.testing.assert_allclose(network(data.x), model(data.x), rtol=1e-5)
    labels = select(network, {"norms": ["norm"], "head": ["out"]})
    result = fit(
        network, Phase(labels, adam(1e-2), steps=20), data, key=jax.random.key(0)
    )
    assert sorted(tree.flatten(result.trainable)) == NORMS_AND_HEAD
    assert_frozen(network.params, result.network.params, labels)
    assert "model/layers/0/kernel" in tree.flatten(network.params)
    assert tree.fingerprint(network.stats) == tree.fingerprint(result.network.stats)


def test_adopt_a_linen_module_select_by_pattern_fit_and_get_the_tuned_leaves():
    model = TheirsLinen()
    data = toy.points()
    variables = model.init(jax.random.key(0), data.x)
    network = from_linen(model, variables, flag="train")
    np.testing.assert_allclose(
        network(data.x), model.apply(variables, data.x), rtol=1e-5
    )
    labels = select(network, {"tuned": ["norm|out"]})
    result = fit(
        network,
        Phase(labels, adam(1e-2), steps=20),
        data,
        key=jax.random.key(0),
        # One argument switches norms, which stay stored, and dropout.
        settings=Settings(dropout="none"),
    )
    assert sorted(tree.flatten(result.trainable)) == NORMS_AND_HEAD
    assert_frozen(network.params, result.network.params, labels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_norms_of_an_adopted_model_follow_the_norm_mode(kind):
    data = toy.points()
    if kind == "nnx":
        network = from_nnx(Theirs(nnx.Rngs(0)))
    else:
        model = TheirsLinen()
        network = from_linen(model, model.init(jax.random.key(0), data.x), flag="train")
    phase = Phase(select(network, {"g": ["norm"]}), adam(1e-2), steps=4)
    moved = {
        norm: tree.fingerprint(network.stats)
        != tree.fingerprint(
            fit(
                network,
                phase,
                data,
                key=jax.random.key(0),
                settings=Settings(
                    norm=norm,
                    dropout="none" if norm == "stored" else "tuned",
                    batch_size=16,
                ),
            ).network.stats
        )
        for norm in ("stored", "tuned")
    }
    assert moved == {"stored": False, "tuned": True}


def test_dropout_draws_anew_with_every_key_and_layer_and_is_off_without():
    network = from_nnx(
        {
            "a": nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
            "b": nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        }
    )
    (first, apply), x = network.stages[0], jnp.ones((1, 1000))

    def run(stage, seed):
        return apply({}, {}, x, batch_stats=False, key=jax.random.key(seed))[0]

    assert np.mean(run(first, 0) == run(first, 1)) == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(run(first, 0), run(first, 0))
    np.testing.assert_array_equal(network(x), x)

    class Two(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.one, self.two = (
                nnx.Dropout(0.5, rngs=rngs),
                nnx.Dropout(0.5, rngs=rngs),
            )

        def __call__(self, x):
            return jnp.concatenate([self.one(x), self.two(x)])

    one, two = (
        from_nnx(Two())
        .stages[0]
        .apply({}, {}, x, batch_stats=False, key=jax.random.key(0))[0]
    )
    assert np.mean(one == two) == pytest.approx(0.5, abs=0.1)


class Dropping(linen.Module):
    @linen.compact
    def __call__(self, x, deterministic=True):
        x = linen.Dropout(0.5, deterministic=deterministic)(
            linen.Dense(64, name="in")(x)
        )
        return linen.Dense(3, name="out")(x)


def test_dropout_of_an_adopted_linen_model_runs_iff_a_key_is_given():
    model, data = Dropping(), toy.points()
    network = from_linen(
        model, model.init(jax.random.key(0), data.x), flag="deterministic"
    )
    (stage,) = network.stages

    def outputs(seed):
        key = None if seed is None else jax.random.key(seed)
        args = network.params["model"], {}, data.x
        return np.asarray(stage.apply(*args, batch_stats=False, key=key)[0])

    assert np.any(outputs(0) != outputs(1))
    np.testing.assert_array_equal(outputs(None), outputs(None))
    np.testing.assert_array_equal(outputs(None), network(data.x))
    with pytest.raises(
        InputError, match="unknown flag 'training': expected one of x, determ"
    ):
        from_linen(model, model.init(jax.random.key(0), data.x), flag="training")


def test_norms_of_a_stage_that_train_in_part_cannot_be_tuned():
    class TwoNorms(nnx.Module):
        def __init__(self, rngs):
            self.n1, self.n2 = nnx.BatchNorm(4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.out = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(self.n2(self.n1(x)))

    network = from_nnx(TwoNorms(nnx.Rngs(0)))
    phase = Phase(select(network, {"g": ["n2"]}), adam(1e-2), steps=2)
    with pytest.raises(InputError, match="stage 'model' has both"):
        fit(
            network,
            phase,
            toy.points(),
            key=jax.random.key(0),
            settings=Settings(norm="tuned"),
        )


def test_stages_of_equal_modules_share_one_apply():
    rngs = nnx.Rngs(0)
    network = from_nnx(
        {"a": nnx.Linear(4, 4, rngs=rngs), "b": nnx.Linear(4, 4, rngs=rngs)}
    )
    assert network.stages[0].apply is network.stages[1].apply


def test_what_cannot_be_adopted_is_refused():
    class Holder(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x):
            return self.inner(x)

    class Cached(nnx.Module):
        def __init__(self):
            self.memory = nnx.Cache(jnp.zeros(3))

    shared = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="stages 'a' and 'b' share a variable: tied"):
        from_nnx({"a": Holder(shared), "b": Holder(shared)})
    with pytest.raises(InputError, match="stage 'model' has no __call__"):
        from_nnx(Cached())
    with pytest.raises(
        InputError, match="stage 'model' is a list: expected an nnx.Module"
    ):
        from_nnx([shared])
    with pytest.raises(
        InputError, match="stage 'a' is a function: expected an nnx.Module"
    ):
        from_nnx({"a": lambda x: x})
    with pytest.raises(
        InputError, match="expected the collections params and batch_stats, found cache"
    ):
        from_linen(TheirsLinen(), {"cache": {}})

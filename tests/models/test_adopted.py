"""What an adopted nnx model holds beside its weights: constants, counters, tied weights,
tables of integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from subtune_jax import deltas, tree
from subtune_jax.data.batches import Dataset, in_order
from subtune_jax.errors import InputError
from subtune_jax.models.from_flax import from_nnx
from subtune_jax.models.to_flax import to_nnx
from subtune_jax.selection.scores import relative_gradient_norm
from subtune_jax.selection.select import count_trainable, select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
DATA = Dataset(X, np.arange(32) % 3)
KEY = jax.random.key(0)


class Buffer(nnx.Variable):
    """A kind of one's own."""


class Scaled(nnx.Module):
    def __init__(self, scale, seed=0):
        self.lin, self.scale = nnx.Linear(4, 3, rngs=nnx.Rngs(seed)), scale

    def __call__(self, x):
        given = isinstance(self.scale, nnx.Variable)
        scale = self.scale[...] if given else self.scale
        return self.lin(x) * jnp.asarray(scale)[None]


def tuned(network, *entries):
    labels = select(network, {"tuned": [*entries]})
    return fit(network, Phase(labels, adam(1e-2), 5), DATA, key=KEY).network


SCALES = {
    "jax array": lambda v: jnp.asarray(v),
    "numpy array": lambda v: np.asarray(v, np.float32),
    "Variable": lambda v: nnx.Variable(jnp.asarray(v)),
    "own kind": lambda v: Buffer(jnp.asarray(v)),
    "Cache": lambda v: nnx.Cache(jnp.asarray(v)),
}


@pytest.mark.parametrize("kind", SCALES)
def test_arrays_and_buffers_are_constants(kind):
    module = Scaled(SCALES[kind]([1.0, 2.0, 3.0]))
    network = from_nnx(module)
    assert set(tree.flatten(network.params)) == {"model/lin/kernel", "model/lin/bias"}
    np.testing.assert_allclose(network(X), module(X), rtol=1e-6)
    after = tuned(network, ".*")
    plain = X @ after.params["model"]["lin"]["kernel"]
    plain = plain + after.params["model"]["lin"]["bias"][None]
    np.testing.assert_allclose(after(X), plain * np.array([[1, 2, 3]]), rtol=1e-5)
    delta = deltas.extract(network, after)
    np.testing.assert_array_equal(deltas.apply(network, delta)[0](X), after(X))
    np.testing.assert_allclose(to_nnx(after, module)(X), after(X), rtol=1e-6)


def test_models_of_other_constants_are_other_functions():
    one, same, other = (
        from_nnx(Scaled(jnp.asarray(v)))
        for v in ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    )
    assert one.stages == same.stages
    assert one.stages != other.stages
    assert np.abs(np.asarray(one(X) - other(X))[:, 2]).min() > 0


class Counting(nnx.Module):
    def __init__(self, count):
        self.lin, self.count = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), count

    def __call__(self, x):
        if isinstance(self.count, nnx.Variable):
            self.count[...] += 1
        else:
            self.count = self.count + 1
        return self.lin(x)


@pytest.mark.parametrize(
    "count",
    [
        lambda: nnx.Variable(jnp.zeros((), jnp.int32)),
        lambda: Buffer(jnp.zeros(())),
        lambda: jnp.zeros(()),
    ],
)
def test_counters_are_refused_with_the_way_out(count):
    network = from_nnx(Counting(count()))
    for run in (lambda: network(X), lambda: tuned(network, ".*")):
        with pytest.raises(
            InputError, match="changes 'count' when it is called.*Batch"
        ):
            run()


class Tied(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.inner = nnx.Linear(4, 4, rngs=rngs)
        self.outer = nnx.Linear(4, 4, rngs=rngs)
        self.outer.kernel = self.inner.kernel
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.outer(nnx.relu(self.inner(x))))


@pytest.mark.parametrize(
    ("entry", "count"),
    [
        ("inner/kernel", 16),
        ("outer/kernel", 16),
        ("outer", 20),
        ("inner", 20),
        ("outer/bias", 4),
        ("tied:outer", 20),
    ],
)
def test_tied_weights_are_selected_by_each_name(entry, count):
    network = from_nnx(Tied())
    assert count_trainable(network, select(network, {"tuned": [entry]})) == count


def test_tied_weights_move_together():
    after = tuned(from_nnx(Tied()), "outer/kernel")
    module = to_nnx(after, Tied())
    assert module.inner.kernel is module.outer.kernel
    np.testing.assert_allclose(module(X), after(X), rtol=1e-6)
    units = {"fine": {"outer": ("outer",)}}  # one's own units come first
    network = from_nnx(Tied(), units)
    assert count_trainable(network, select(network, {"tuned": ["outer"]})) == 4
    assert from_nnx(Scaled(jnp.ones(3))).units == {}


class Permuted(nnx.Module):
    def __init__(self):
        self.lin = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.order = nnx.Param(jnp.array([2, 0, 1]))

    def __call__(self, x):
        return self.lin(x)[:, self.order[...]]


@pytest.mark.parametrize("entry", [".*", "model", "lin", "lin/.*|.*"])
def test_integers_are_left_out_of_a_selection(entry):
    network = from_nnx(Permuted())
    labels = select(network, {"tuned": [entry]})
    assert labels["model"]["order"] == "frozen"
    assert count_trainable(network, labels) == 15
    after = tuned(network, entry)
    np.testing.assert_array_equal(after.params["model"]["order"], [2, 0, 1])
    scores = relative_gradient_norm(network, in_order(DATA, 16), groups={"g": [entry]})
    assert scores["g"] > 0


def test_integers_alone_are_refused():
    network = from_nnx(Permuted())
    with pytest.raises(
        InputError, match="'order' matches only model/order int32: only"
    ):
        select(network, {"tuned": ["order"]})


@pytest.mark.parametrize("kind", ["jax array", "Variable", "Cache"])
def test_long_constants_are_known_by_all_their_values(kind, tmp_path):
    """A text of a long array leaves most of it out, and a checkpoint would be another's."""

    class Picked(nnx.Module):
        def __init__(self, place):
            self.lin = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
            self.where = SCALES[kind](np.eye(5000, dtype=np.float32)[place])

        def __call__(self, x):
            held = isinstance(self.where, nnx.Variable)
            where = self.where[...] if held else self.where
            return self.lin(x) * (1 + where[2500])

    one, other = from_nnx(Picked(2000)), from_nnx(Picked(2500))
    assert one.stages[0].apply is not other.stages[0].apply
    labels = select(one, {"tuned": [".*"]})
    phase = Phase(labels, adam(1e-2), 2)
    fit(one, phase, DATA, key=KEY, checkpoint=tmp_path)
    with pytest.raises(InputError):
        fit(other, phase, DATA, key=KEY, checkpoint=tmp_path)


def test_constants_may_be_keys_and_trees():
    for constant in (jax.random.key(0), nnx.Variable(jax.random.key(1))):
        module = Scaled(jnp.ones(3))
        module.extra = nnx.data(constant)
        np.testing.assert_allclose(from_nnx(module)(X), module(X), rtol=1e-6)
    module = Scaled(jnp.ones(3))
    module.extra = nnx.Variable({"a": jnp.ones(2)})
    np.testing.assert_allclose(from_nnx(module)(X), module(X), rtol=1e-6)

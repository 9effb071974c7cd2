"""What is another program and what is another value."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from subtune_jax.cost import cost_table, step_cost
from subtune_jax.data.batches import Dataset, padded
from subtune_jax.errors import InputError
from subtune_jax.head import replace_head
from subtune_jax.losses import cross_entropy, entropy, squared_error
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.from_flax import from_nnx
from subtune_jax.network import Network, Stage
from subtune_jax.selection.select import select
from subtune_jax.training.loop import DivergedError, fit
from subtune_jax.training.optimizers import adam, adamw, sgd
from subtune_jax.training.phases import Phase, Settings, check
from subtune_jax.training.predict import evaluate
from subtune_jax.training.test_time import adapt_to_stream
from subtune_jax.tuning.anchor import l1_sp, l2_sp
from subtune_jax.tuning.rescaled import rescaled
from subtune_jax.tuning.subset import subset
from tests import toy

KEY = jax.random.key(0)
WEIGHTS = np.ones(3, "float32")


def weighted(outputs, labels):
    return cross_entropy(outputs, labels) * jnp.asarray(WEIGHTS)[labels]


def test_a_loss_is_known_by_what_it_reads(tmp_path):
    global WEIGHTS
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 5)

    def run(loss, **more):
        fitted = fit(
            network,
            phase,
            toy.points(),
            key=KEY,
            settings=Settings(loss=loss),
            **more,
        )
        return np.asarray(fitted.network.params["head"]["bias"])

    WEIGHTS = np.ones(3, "float32")
    before = run(weighted, checkpoint=tmp_path)
    WEIGHTS = np.array([100, 1, 1], "float32")
    after = run(weighted)
    np.testing.assert_array_equal(after, run(lambda o, y: weighted(o, y)))
    assert np.any(before != after)
    with pytest.raises(InputError, match="differ: what a step of phase 0 computes"):
        run(weighted, checkpoint=tmp_path)


@pytest.mark.parametrize(
    "phases",
    [
        [adam(1e-2, l2=value) for value in (0.0, 1e-4, 0.1)],
        [sgd(1e-2, momentum=value) for value in (0.0, 0.5, 0.9)],
        [adamw(1e-2, weight_decay=value) for value in (0.0, 0.1, 0.2)],
        [adam(1e-2, clip_norm=value) for value in (0.1, 1.0, 10.0)],
        [adam(1e-2, schedule="linear", warmup=value) for value in (0, 1, 2)],
        [2, 4, 6],
        [l2_sp(value) for value in (0.1, 0.2, 0.3)],
    ],
)
def test_numbers_are_values_of_one_program(phases):
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["two"]}), adam(1e-2, schedule="cosine"), 4)

    def program(value):
        field = {"int": "steps", "Rule": "rules", "Tuning": "tuning"}
        changed = phase._replace(**{field[type(value).__name__]: value})
        return check(network, [changed], Settings(cross_entropy))[0]

    assert len({program(value) for value in phases}) == 1


def test_networks_and_layers_with_dropout_share_their_programs():
    config = BertConfig(40, 16, 3, 4, 24, 40, dropout=0.1)
    networks = [bert(config, jax.random.key(seed)) for seed in range(5)]
    assert len({network.stages for network in networks}) == 1
    assert len({s.apply for s in networks[0].stages if "layer" in s.name}) == 1


def test_narrow_weights_move_under_small_rates():
    network = toy.mlp(dtype=jnp.bfloat16)
    phase = Phase(select(network, {"g": ["two/kernel"]}), sgd(1e-4), 200)
    fitted = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    )
    wide = toy.mlp()
    wide = wide._replace(
        params=jax.tree.map(lambda x: x.astype("float32"), network.params)
    )
    right = fit(wide, phase, toy.points(), key=KEY, settings=Settings(batch_size=16))
    moved, expected = (
        np.asarray(f.network.params["two"]["kernel"], "float32")
        - np.asarray(network.params["two"]["kernel"], "float32")
        for f in (fitted, right)
    )
    assert fitted.network.params["two"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(moved, expected, atol=4e-3)
    assert np.abs(moved).max() > 0


def test_a_finite_float16_gradient_is_not_divergence():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    half = nnx.Linear(
        4, 1, rngs=nnx.Rngs(0), dtype=jnp.float16, param_dtype=jnp.float16
    )
    network = from_nnx(half)

    def loss(outputs, targets):
        return ((outputs.astype(jnp.float32) - targets) ** 2).mean(1)

    phase = Phase(
        select(network, {"t": ["kernel"]}), adam(1e-3, clip_norm=1.0), steps=3
    )
    fitted = fit(
        network,
        phase,
        Dataset(x, 300 * x[:, :1]),
        key=KEY,
        settings=Settings(loss=loss),
    )
    moved = fitted.network.params["model"]["kernel"] - network.params["model"]["kernel"]
    np.testing.assert_allclose(np.abs(moved).ravel()[:1], 3e-3, rtol=0.1)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_parameters_that_cannot_be_trained_are_refused_by_name(dtype):
    network = toy.mlp()
    odd = network.params["two"] | {"kernel": jnp.ones((6, 6), dtype)}
    network = network._replace(params=network.params | {"two": odd})
    labels = {name: dict.fromkeys(p, "frozen") for name, p in network.params.items()}
    labels["two"]["kernel"] = "t"  # by hand: a selection leaves integers out
    phase = Phase(labels, adam(1e-3), steps=3)
    with pytest.raises(InputError, match="leaf 'two/kernel' is .*: only real"):
        fit(network, phase, toy.points(), key=KEY)


def test_a_run_that_diverges_late_has_its_best_epoch():
    network = toy.mlp()
    labels = select(network, {"g": ["head"]})
    phases = [Phase(labels, adam(1e-2), 6), Phase(labels, sgd(1e38), 6)]
    with pytest.raises(DivergedError) as error:
        fit(
            network,
            phases,
            toy.points(),
            key=KEY,
            settings=Settings(batch_size=16),
            validate=lambda net: evaluate(net, toy.points(seed=1)),
        )
    kept = error.value.kept
    assert kept.epoch <= 2 and evaluate(kept.network, toy.points(seed=1)) == max(
        kept.scores[:2]
    )


def test_the_lowest_score_is_kept_where_lower_is_better():
    network, scores = toy.mlp(), iter([0.0, 3.0, 1.0, np.nan, 1.0, 2.0])
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 15)
    result = fit(
        network,
        phase,
        toy.points(),
        key=KEY,
        validate=lambda net: next(scores),
        mode="min",
        settings=Settings(batch_size=16),
    )
    assert result.epoch == 2
    with pytest.raises(InputError, match="unknown mode 'least'"):
        fit(network, phase, toy.points(), key=KEY, mode="least")
    with pytest.raises(InputError, match="validate must return a number, got dict"):
        fit(network, phase, toy.points(), key=KEY, validate=lambda net: {})


def test_a_selection_that_cannot_learn_is_an_error():
    network = replace_head(toy.mlp(), 3, KEY)
    phase = Phase(select(network, {"g": ["two"]}), adam(1e-2), 6)
    with pytest.raises(
        InputError, match="exactly 0 in steps 1 to 3.*nothing can learn"
    ):
        fit(network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16))


@pytest.mark.parametrize("rule", [sgd(0.5, schedule="linear"), sgd(0.5, warmup=1)])
def test_a_stream_has_no_schedule(rule):
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["two"]}), rule, 2)
    views = [(toy.points().x, toy.points().x)]
    with pytest.raises(InputError, match="a stream has none: expected a constant rate"):
        list(adapt_to_stream(network, phase, views, loss=entropy, key=KEY))


def test_a_warm_up_that_never_reaches_its_rate_is_refused():
    network = toy.mlp()
    labels = select(network, {"g": ["two"]})
    phase = Phase(labels, adam(1e-2, warmup=10), 40)
    fit(network, phase, toy.points(), key=KEY)
    with pytest.raises(InputError, match="takes 10 updates and its phase has 5"):
        fit(
            network,
            phase,
            toy.points(),
            key=KEY,
            settings=Settings(accumulate=8, batch_size=4),
        )
    with pytest.raises(
        InputError, match="warmup is a whole number of updates, got 0.1"
    ):
        adam(1e-2, warmup=0.1)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda o, y: cross_entropy(o, y)[:, None], r"\[48, 1\]"),
        (lambda o, y: cross_entropy(o, y).mean(), r"\[\]"),
    ],
)
def test_a_loss_of_another_shape_is_refused_when_traced(loss, shape):
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["two"]}), adam(1e-2), 2)
    with pytest.raises(
        InputError, match=rf"returned shape {shape}.*expected one number"
    ):
        fit(
            network,
            phase,
            toy.points(),
            key=KEY,
            settings=Settings(loss=loss, batch_size=48),
        )


def test_only_tuned_stages_drop_out_and_phases_may_say_otherwise():
    seen = []

    def stage(name):
        def apply(params, stats, x, *, batch_stats, key):
            seen.append((name, key is not None))
            return x * params["w"], stats

        return apply

    params = {n: {"w": jnp.ones((1, 1))} for n in "abc"}
    stages = tuple(Stage(n, stage(n)) for n in "abc")
    network = Network(stages, params, {n: {} for n in params}, {})
    labels = select(network, {"g": ["b"]})
    data = Dataset(toy.points(8).x, np.zeros((8, 4), np.float32))

    def drawn(**phase):
        seen.clear()
        one = Phase(labels, sgd(1e-3), 1, **phase)
        fit(
            network,
            one,
            data,
            key=KEY,
            settings=Settings(batch_size=8, loss=squared_error),
        )
        return {name for name, key in seen if key}

    assert drawn() == {"b"}
    assert drawn(dropout="all") == {"a", "b", "c"}
    assert drawn(dropout="none") == set()
    assert drawn(dropout=["c"]) == {"c"}
    with pytest.raises(InputError, match="unknown stage 'd'"):
        drawn(dropout=["d"])


def scaled(params, stats, x, *, batch_stats, key):
    return x @ params["w"].astype(x.dtype) * params["times"], stats


@pytest.mark.parametrize("tuning", [subset(), l1_sp(0.1), rescaled()])
def test_leaves_of_every_type_are_trained_or_refused_by_name(tuning):
    params = {
        "w": jnp.full((2, 1), 3.0, jnp.float16),
        "times": jnp.int32(1),
        "phase": jnp.ones(2, jnp.complex64),
        "none": jnp.zeros((0, 3)),
    }
    network = Network((Stage("one", scaled),), {"one": params}, {"one": {}}, {})
    data = Dataset(np.ones((8, 2), np.float32), np.zeros((8, 1), np.float32))
    phase = Phase(
        select(network, {"g": ["w", "none"]}), adam(1e-2, clip_norm=1.0), 4, tuning
    )
    run = partial(fit, key=KEY, settings=Settings(loss=squared_error, batch_size=4))
    moved = run(network, phase, data).network.params["one"]["w"]
    assert moved.dtype == jnp.float16 and np.all(np.asarray(moved) < 3)
    assert step_cost(network, phase, padded(data, 8), loss=squared_error).trainable == 2
    table = cost_table(network, {"w": phase}, padded(data, 8), loss=squared_error)
    assert "| all | 2 |" in table
    labels = select(network, {"g": ["phase"]})
    with pytest.raises(InputError, match="leaf 'one/phase.*' is complex64: only real"):
        run(network, phase._replace(labels=labels), data)
    with pytest.raises(InputError, match="matches only one/times int32: only real"):
        select(network, {"g": ["times"]})


def test_costs_under_accumulation_are_those_of_a_micro_batch():
    network, batch = toy.mlp(), padded(toy.points(8), 8)
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 5)
    one, two = (step_cost(network, phase, batch, accumulate=n) for n in (1, 2))
    assert (one.trainable, one.floor, one.flops) == (
        two.trainable,
        two.floor,
        two.flops,
    )
    assert "| head |" in cost_table(network, {"head": phase}, batch, accumulate=2)

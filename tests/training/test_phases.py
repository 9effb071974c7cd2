"""Moments, counts and values across the phases of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import tree
from subtune_jax.data.batches import padded
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.programs import Traces
from subtune_jax.selection.select import assert_frozen, select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam, adamw, set_multipliers, sgd
from subtune_jax.training.phases import Phase, Settings, check
from subtune_jax.training.state import advance, frozen_params, start
from subtune_jax.training.step import compiled_step
from subtune_jax.tuning.anchor import l2_sp
from subtune_jax.tuning.subset import subset
from tests import toy

KEY = jax.random.key(0)


def run(network, phases, steps=3, accumulate=1):
    """Returns the states before and after each phase's steps."""
    settings = Settings(cross_entropy, accumulate=accumulate)
    check(network, phases, settings)
    batch, states = padded(toy.points(16), 16), []
    running, state = start(network, phases[0], settings, KEY)
    for i in range(len(phases)):
        if i:
            running, state = advance(network, running, state, phases, settings)
        states.append(tree.copy(state))
        for _ in range(steps):
            frozen = frozen_params(network.params, state, phases)
            state, _ = compiled_step(Traces(), running.program)(state, frozen, batch)
        states.append(tree.copy(state))
    return states


def direction(state, group):
    inner = getattr(state.opt_state, "inner_opt_state", state.opt_state)
    return inner["move"].inner_states[group].inner_state.direction


def growing(network, rule=adam(1e-2)):
    head, every = select(network, {"head": ["head"]}), select(network, {"all": [".*"]})
    return [Phase(head, rule, 4), Phase(every, rule, 4)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_phase_that_adds_leaves_keeps_moments_and_newcomers_count_from_zero(
    accumulate,
):
    network = toy.mlp()
    _, old, new, end = run(network, growing(network), steps=4, accumulate=accumulate)
    updates = 4 // accumulate
    np.testing.assert_array_equal(
        direction(old, "head@0").mu["head"]["kernel"],
        direction(new, "all@0").mu["head"]["kernel"],
    )
    assert int(direction(new, "all@0").count) == updates
    assert int(direction(new, "all@1").count) == 0
    assert not np.any(direction(new, "all@1").nu["one"]["kernel"])
    assert int(direction(end, "all@0").count) == 2 * updates
    assert int(direction(end, "all@1").count) == updates
    np.testing.assert_array_equal(
        old.trainable["head"]["kernel"], new.trainable["head"]["kernel"]
    )


def test_a_newcomers_first_adam_step_is_the_rate_not_twice_it():
    network, rate = toy.mlp(), 1e-3
    phases = growing(network, adam(rate))
    _, _, new, end = run(network, [phases[0]._replace(steps=1), phases[1]], steps=1)
    moved = np.abs(
        np.asarray(end.trainable["one"]["kernel"] - new.trainable["one"]["kernel"])
    )
    np.testing.assert_allclose(moved, rate, rtol=1e-2)


def test_a_leaf_that_trains_no_longer_is_held_at_its_value():
    network = toy.mlp()
    head, body = select(network, {"h": ["head"]}), select(network, {"b": ["one"]})
    phases = [
        Phase(head, adam(1e-2), 5),
        Phase(body, adam(1e-2), 5),
        Phase(head, adam(1e-2), 5),
    ]
    only = fit(network, phases[:1], toy.points(), key=KEY).network
    two = fit(network, phases[:2], toy.points(), key=KEY).network
    three = fit(network, phases, toy.points(), key=KEY).network
    np.testing.assert_array_equal(
        only.params["head"]["kernel"], two.params["head"]["kernel"]
    )
    np.testing.assert_array_equal(
        two.params["one"]["kernel"], three.params["one"]["kernel"]
    )
    assert np.any(two.params["head"]["kernel"] != three.params["head"]["kernel"])
    assert_frozen(network.params, three.params, select(network, {"g": ["one", "head"]}))


def test_one_trace_per_phase():
    traces: list = []
    network, after = toy.mlp(traces=traces), []
    for seed, rate in enumerate((1e-2, 1e-3, 1e-4)):
        fit(
            network,
            growing(network, adam(rate)),
            toy.points(seed=seed),
            key=jax.random.key(seed),
            settings=Settings(cache_bytes=0),
        )
        after.append(len(traces))
    # In each call a step of each phase; in the first, the shapes that the network can take.
    assert after == [3, 5, 7]


def test_multipliers_scale_rates_keep_moments_and_do_not_retrace():
    traces: list = []
    network = toy.mlp(traces=traces)
    phase = Phase(select(network, {"g": ["two", "head/bias"]}), adam(1e-2), 4)
    running, state = start(network, phase, Settings(cross_entropy), KEY)
    step, batch = compiled_step(Traces(), running.program), padded(toy.points(16), 16)
    state, _ = step(state, network.params, batch)
    halves = jax.tree.map(lambda _: 0.5, state.trainable)
    halves["head"]["bias"] = 0.0
    results = []
    for wanted in (jax.tree.map(lambda _: 1.0, state.trainable), halves):
        from_here = tree.copy(state)
        opt_state = set_multipliers(from_here.opt_state, tree.flatten(wanted))
        np.testing.assert_array_equal(
            direction(from_here, "g@0").mu["two"]["kernel"],
            opt_state["move"]
            .inner_states["g@0"]
            .inner_state.direction.mu["two"]["kernel"],
        )
        after, _ = step(from_here._replace(opt_state=opt_state), network.params, batch)
        results.append(after.trainable)
    one, half = (jax.tree.map(lambda a, b: a - b, r, state.trainable) for r in results)
    np.testing.assert_allclose(
        half["two"]["kernel"], one["two"]["kernel"] / 2, rtol=1e-3
    )
    assert not np.any(half["head"]["bias"])
    assert len(traces) == 1


def test_every_group_has_its_rule_and_a_missing_one_is_named():
    network = toy.mlp()
    labels = select(network, {"head": ["head"], "body": ["two"]})
    before, after = run(
        network, [Phase(labels, {"head": sgd(1.0), "body": adamw(1e-3)}, 4)], 1
    )
    moved = {
        name: float(
            jnp.abs(
                after.trainable[name]["kernel"] - before.trainable[name]["kernel"]
            ).max()
        )
        for name in ("two", "head")
    }
    assert moved["two"] < 1.1e-3 < 0.01 < moved["head"]
    with pytest.raises(
        InputError, match="rules are given for groups head but .* body, head"
    ):
        run(network, [Phase(labels, {"head": sgd(0.1)}, 4)])


@pytest.mark.parametrize(
    ("phase", "settings", "message"),
    [
        ({"steps": 0}, {}, "steps must be a positive whole number, got 0"),
        (
            {"steps": 5},
            {"accumulate": 2},
            r"steps \(5\) must be a multiple of accumulate \(2\)",
        ),
        ({"labels": {}}, {}, "phase 0 trains nothing"),
        (
            {"labels": {"one": "g"}},
            {},
            "labels of phase 0 are not those of the network",
        ),
        ({}, {"norm": "eval"}, "unknown norm mode 'eval'"),
    ],
)
def test_phases_that_cannot_be_are_refused_in_a_sentence(phase, settings, message):
    network = toy.mlp()
    frozen = jax.tree.map(lambda _: "frozen", network.params)
    made = Phase(select(network, {"g": ["head"]}), adam(1e-2), 4)._replace(**phase)
    made = made._replace(labels=made.labels or frozen)
    with pytest.raises(InputError, match=message):
        check(network, [made], Settings(cross_entropy, **settings))


def test_dropout_keys_differ_by_step_and_stage():
    from subtune_jax.network import Network, Stage

    seen = []

    def stage(params, stats, x, *, batch_stats, key):
        if key is not None:
            data = jax.random.key_data(key)
            jax.debug.callback(lambda k: seen.append(k.tobytes()), data)
        return x * params["w"], stats

    names = ("a", "b")
    params = {n: {"w": jnp.ones((1, 1))} for n in names}
    network = Network(
        tuple(Stage(n, stage) for n in names), params, {n: {} for n in names}, {}
    )
    phase = Phase(select(network, {"g": [".*"]}), sgd(1e-3), 3)
    fit(network, phase, toy.points(8), key=KEY, settings=Settings(batch_size=8))
    jax.effects_barrier()
    assert len(set(seen)) == 6


def test_a_leaf_whose_optimizer_changes_starts_with_moments_and_count_of_its_own():
    network, rate = toy.mlp(), 1e-3
    labels = select(network, {"head": ["head"], "body": ["one"]})
    both = select(network, {"all": ["head", "one"]})
    phases = [
        Phase(labels, {"head": sgd(0.1), "body": adam(rate)}, 50),
        Phase(both, adam(rate), 50),
    ]
    _, _, new, end = run(network, phases, steps=1)
    assert int(direction(new, "all@0").count) == 1
    assert int(direction(new, "all@1").count) == 0
    moved = jnp.abs(end.trainable["head"]["kernel"] - new.trainable["head"]["kernel"])
    np.testing.assert_allclose(moved, rate, rtol=1e-2)


def test_a_change_of_tuning_between_phases_is_refused():
    network = toy.mlp()
    other = subset()._replace(
        materialize=lambda trainable, fixed, params, key: params, take_over=None
    )
    phases = growing(network)
    with pytest.raises(InputError, match="phase 1 changes the tuning"):
        run(network, [phases[0], phases[1]._replace(tuning=other)])
    run(network, [phases[0], phases[1]._replace(tuning=l2_sp(0.1))])
    with pytest.raises(InputError, match="at least one phase"):
        check(network, [], Settings(cross_entropy))

"""Rules against the formulas they state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subtune_jax.errors import InputError
from subtune_jax.training.optimizers import (
    adam,
    adamw,
    ascent,
    normalized_sgd,
    optimizer,
    sgd,
    uncorrected_epsilon,
)
from subtune_jax.training.phases import rules_by_group
from subtune_jax.training.settings import Settings

W, G = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.3, 0.4])}
GROUPS, WAVES = {"w": "g"}, {"w": 0}


def trajectory(rule, steps, updates=0, grads=G):
    tx, w, seen = optimizer({"g": rule}, GROUPS, WAVES, updates), W, []
    state = tx.init(w)
    for _ in range(steps):
        u, state = tx.update(grads, state, w)
        w = optax.apply_updates(w, u)
        seen.append(np.asarray(w["w"]))
    return seen


def test_sgd_with_momentum():
    # v1 = g; v2 = 0.9 g + g
    first, second = trajectory(sgd(0.1), 2)
    np.testing.assert_allclose(first, [1 - 0.03, -2 - 0.04], rtol=1e-6)
    np.testing.assert_allclose(
        second, first - 0.1 * 1.9 * np.array([0.3, 0.4]), rtol=1e-6
    )


def test_adam_with_coupled_l2_puts_decay_before_the_moments():
    w, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t, seen in enumerate(trajectory(adam(0.01, l2=0.5), 5), 1):
        g = np.array([0.3, 0.4]) + 0.5 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(seen, w, rtol=1e-5)


def test_adamw_decay_is_outside_the_moments():
    (seen,) = trajectory(adamw(0.01, weight_decay=0.5), 1)
    w = np.array([1.0, -2.0])
    np.testing.assert_allclose(
        seen, w - 0.01 * (np.sign([0.3, 0.4]) + 0.5 * w), rtol=1e-5
    )


def test_the_clip_bounds_the_gradient_of_the_whole_group():
    (seen,) = trajectory(sgd(1.0, momentum=0.0, clip_norm=0.05), 1)
    np.testing.assert_allclose(seen, [1 - 0.03, -2 - 0.04], rtol=1e-6)
    tx = optimizer(
        {"g": sgd(1.0, clip_norm=1.0)}, {"a": "g", "b": "g"}, {"a": 0, "b": 1}, 0
    )
    trees = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = tx.update(trees, tx.init(trees), trees)
    np.testing.assert_allclose(updates["a"], [-0.6], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "warmup", "sizes"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [0, 0.5, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1, 0.85355339, 0.5, 0.14644661]),
        ("linear", 2, [0, 0.5, 1, 0.5]),
    ],
)
def test_schedules(schedule, warmup, sizes):
    rule = sgd(1.0, momentum=0.0, schedule=schedule, warmup=warmup)
    seen = np.array(trajectory(rule, 4, updates=4))
    steps = -np.diff(np.vstack([np.asarray(W["w"]), seen]), axis=0)[:, 0] / 0.3
    np.testing.assert_allclose(steps, sizes, atol=1e-5)


def test_the_rate_is_a_float32_array_in_the_state():
    def rate(value):
        state = optimizer({"g": adam(value)}, GROUPS, WAVES, 0).init(W)
        return state["move"].inner_states["g@0"].inner_state.learning_rate

    assert rate(0.25) == 0.25
    assert jax.tree.map(jnp.asarray, rate(0.25)).dtype == jnp.float32
    assert not rate(0.25).weak_type


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adam(0), "learning_rate must be a positive number, got 0"),
        (
            lambda: adam(float("nan")),
            "learning_rate must be a positive number, got nan",
        ),
        (lambda: sgd(0.1, clip_norm=-1.0), "clip_norm must be a positive number"),
        (
            lambda: adamw(0.1, weight_decay=-1.0),
            "weight_decay must be a number from 0 up, got -1.0",
        ),
        (lambda: sgd(0.1, schedule="cosin"), "unknown schedule 'cosin'.*mean 'cosine'"),
    ],
)
def test_rules_that_cannot_be_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_accumulated_micro_batches_equal_one_batch():
    from subtune_jax.selection.select import select
    from subtune_jax.training.loop import fit
    from subtune_jax.training.phases import Phase
    from tests import toy

    network, data = toy.mlp(), toy.points(16)
    labels = select(network, {"g": [".*"]})
    results = [
        fit(
            network,
            Phase(labels, sgd(0.1), 3 * k),
            data,
            key=jax.random.key(0),
            settings=Settings(batch_size=16 // k, accumulate=k),
        ).trainable
        for k in (1, 4)
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_epsilon_before_the_bias_correction():
    """The AdamW of early transformers, by hand: eps is added to sqrt(v), then corrected.

    A gradient of 1e-9 moves w by lr * 1e-9 / 1e-8 under `adamw` at the first step, and by
    lr * 1e-9 * sqrt(1 - b2) / (1e-9 * sqrt(1 - b2) + 1e-8) here.
    """
    grads, params = {"w": jnp.float32(1e-9)}, {"w": jnp.float32(0)}

    def first(rule):
        tx = optimizer({"g": rule}, {"w": "g"}, {"w": 0}, 10)
        return float(tx.update(grads, tx.init(params), params)[0]["w"])

    root = np.sqrt(1e-3)
    assert first(adamw(1.0, weight_decay=0)) == pytest.approx(
        -1e-9 / (1e-9 + 1e-8), 1e-4
    )
    by_hand = -1e-9 * root / (1e-9 * root + 1e-8)
    early = uncorrected_epsilon(adamw(1.0, weight_decay=0))
    assert first(early) == pytest.approx(by_hand, 1e-4)


def test_normalized_steps_are_in_proportion_and_of_the_rate_in_the_mean():
    """g = (3, 4) and (0, 0), rms 2.5; half of 1.2 and 1.6 at the first step, then 3/4."""
    rule = normalized_sgd(0.1, momentum=0.5)
    names = {"a": "g", "b": "g"}
    tx = optimizer({"g": rule}, names, dict.fromkeys(names, 0), 10)
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.zeros(2)}
    params, state = jax.tree.map(jnp.zeros_like, grads), None
    state = tx.init(params)
    for share in (0.5, 0.75):
        updates, state = tx.update(grads, state, params)
        expected = -0.1 * share * np.array([1.2, 1.6])
        np.testing.assert_allclose(updates["a"], expected, rtol=1e-6)
        assert not np.any(updates["b"])
    still, _ = tx.update(jax.tree.map(jnp.zeros_like, grads), tx.init(params), params)
    assert not np.any(still["a"])


def test_only_adam_has_an_epsilon():
    with pytest.raises(InputError, match="this rule is 'sgd'"):
        uncorrected_epsilon(sgd(0.1))


def test_ascent_climbs_and_groups_are_clipped_together():
    rules = {
        "w": sgd(1.0, momentum=0, clip_norm=1.0, clip_group="both"),
        "head": sgd(1.0, momentum=0, clip_norm=1.0, clip_group="both"),
        "m": ascent(0.5),
    }
    names = {"w": "w", "head": "head", "m": "m"}
    tx = optimizer(rules, names, dict.fromkeys(names, 0), 10)
    grads = {"w": jnp.float32(3), "head": jnp.float32(4), "m": jnp.float32(10)}
    params = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = tx.update(grads, tx.init(params), params)
    got = {name: float(value) for name, value in updates.items()}
    assert got == pytest.approx({"w": -0.6, "head": -0.8, "m": 5.0})


def test_a_clip_of_several_groups_has_one_norm():
    one, two = (sgd(1.0, clip_norm=n, clip_group="both") for n in (1.0, 2.0))
    with pytest.raises(InputError, match="norms 1.0 and 2.0: give them one"):
        rules_by_group({"a": one, "b": two}, {"a", "b"})
    with pytest.raises(InputError, match="needs a clip_norm"):
        sgd(1.0, clip_group="both")


RULE = adamw(0.1, weight_decay=0)


@pytest.mark.parametrize(
    ("rule", "steps"), [(RULE, 174), (uncorrected_epsilon(RULE), 384)]
)
def test_how_long_the_penalty_of_diff_pruning_alone_takes_to_close_a_gate(rule, steps):
    """From log alpha 5 below 0 at strength 1.25e-7 and rate 0.1: papers/diff_pruning.md
    1.5, point 3, computed there by other code."""
    tx = optimizer({"g": rule}, {"a": "g"}, {"a": 0}, 1000)
    a = {"a": jnp.float32(5)}

    def step(carry, _):
        a, state = carry
        s = jax.nn.sigmoid(a["a"])
        updates, state = tx.update({"a": 1.25e-7 * s * (1 - s)}, state, a)
        a = optax.apply_updates(a, updates)
        return (a, state), a["a"]

    _, seen = jax.lax.scan(step, (a, tx.init(a)), length=500)
    assert int(np.argmax(np.asarray(seen) < 0)) + 1 == pytest.approx(steps, abs=1)

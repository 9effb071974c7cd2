"""Gates against closed forms and a million samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit as sigmoid

from subtune_jax.tuning.hard_concrete import (
    HardConcrete,
    deterministic,
    expected_l0,
    probability_nonzero,
    sample,
)

PAPER, LOUIZOS, WIDE = (
    HardConcrete(),
    HardConcrete(-0.1, 1.1, 2 / 3),
    HardConcrete(-0.5, 2.5, 1.5),
)
N = 1_000_000
every_gate = pytest.mark.parametrize("gate", [PAPER, LOUIZOS, WIDE])


@every_gate
@pytest.mark.parametrize("log_alpha", [5.0, 0.3, -2.0])
def test_the_share_of_open_gates_is_the_closed_form(gate, log_alpha):
    z = sample(jax.random.key(3), jnp.full(N, log_alpha), gate)
    left, right, temperature = gate
    p = sigmoid(log_alpha - temperature * np.log(-left / right))
    error = np.sqrt(p * (1 - p) / N)
    assert abs(float((z > 0).mean()) - p) < 4 * error
    np.testing.assert_allclose(
        probability_nonzero(jnp.float32(log_alpha), gate), p, 1e-5
    )
    np.testing.assert_allclose(expected_l0(jnp.full(7, log_alpha), gate), 7 * p, 1e-5)
    fully = 1 - sigmoid(temperature * np.log((1 - left) / (right - 1)) - log_alpha)
    assert abs(float((z == 1).mean()) - fully) < 4 * np.sqrt(fully * (1 - fully) / N)


@pytest.mark.parametrize("log_alpha", [-8.0, -9.5])
def test_nearly_shut_gates_open_as_often_as_expected(log_alpha):
    z = sample(jax.random.key(5), jnp.full(16 * N, log_alpha), PAPER)
    opened, expected = int((z > 0).sum()), 16 * N * sigmoid(log_alpha)
    assert abs(opened - expected) < 4 * np.sqrt(expected)


def test_gates_of_16_bits_open_as_often_as_those_of_32():
    wide = jnp.full(N, -5.0)
    narrow = sample(jax.random.key(5), wide.astype(jnp.bfloat16), PAPER)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        narrow > 0, sample(jax.random.key(5), wide, PAPER) > 0
    )
    total = float(expected_l0(wide.astype(jnp.bfloat16), PAPER))
    assert total == pytest.approx(N * sigmoid(-5.0), rel=1e-5)


@pytest.mark.parametrize(
    ("log_alpha", "nonzero", "one", "mean"),
    [(5, 0.9933, 0.967, 0.985), (2, 0.881, 0.597, 0.772), (-2, 0.119, 0.026, 0.066)],
)
def test_the_figures_of_the_paper_s_gates(log_alpha, nonzero, one, mean):
    """papers/diff_pruning.md 1.1, checked there by other samples."""
    z = sample(jax.random.key(0), jnp.full(N, float(log_alpha)), PAPER)
    values = float((z > 0).mean()), float((z == 1).mean()), float(z.mean())
    np.testing.assert_allclose(values, (nonzero, one, mean), atol=2e-3)


@every_gate
def test_the_slope_is_that_of_the_paper_and_0_at_the_edges(gate):
    """z' = (r - l) s (1 - s) / T where 0 < s (r - l) + l < 1, else 0."""
    log_alpha = jnp.linspace(-9, 9, 37)
    key = jax.random.key(1)
    slope = jax.grad(lambda a: sample(key, a, gate).sum())(log_alpha)
    u = np.float64(jax.random.uniform(key, (37,))) + 2.0**-24
    left, right, temperature = gate
    s = sigmoid((np.log(u) - np.log1p(-u) + np.float64(log_alpha)) / temperature)
    wide = s * (right - left) + left
    expected = (right - left) * s * (1 - s) / temperature * ((wide > 0) & (wide < 1))
    np.testing.assert_allclose(slope, expected, atol=2e-4)


def test_at_an_edge_the_slope_is_0():
    assert float(jax.grad(deterministic)(jnp.float32(0), PAPER)) == 0  # s = 1/2: z = 0


def test_deterministic_gates():
    log_alpha = jnp.array([-1.0, 0.0, 1.0, np.log(5.0) + 1e-4, 3.0])
    one = 3 * sigmoid(1.0) - 1.5
    np.testing.assert_allclose(
        deterministic(log_alpha, PAPER), [0, 0, one, 1, 1], rtol=1e-6
    )


@every_gate
@pytest.mark.parametrize("log_alpha", [1e4, 80.0, -80.0, -1e4])
def test_extremes_are_finite_and_so_are_their_slopes(gate, log_alpha):
    a = jnp.full(4, log_alpha)

    def total(a):
        drawn = sample(jax.random.key(0), a, gate)
        return drawn.sum() + deterministic(a, gate).sum() + expected_l0(a, gate)

    value, slope = jax.value_and_grad(total)(a)
    assert float(value) == pytest.approx(12 if log_alpha > 0 else 0)
    np.testing.assert_allclose(slope, np.zeros(4), atol=1e-30)


def test_the_temperature_is_no_part_of_deterministic_gates():
    """At log alpha = 0.5 it would shut or open: 0.28, 1.5 (2 sigmoid(x / T) - 1)."""
    log_alpha = jnp.array([0.5])
    expected = [3 * sigmoid(0.5) - 1.5]
    for temperature in (0.5, 1.0, 2.0):
        gate = HardConcrete(temperature=temperature)
        found = deterministic(log_alpha, gate)
        np.testing.assert_allclose(found, expected, rtol=1e-6)

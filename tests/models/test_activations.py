"""Activations beside their formulas in float64."""

from math import erf

import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.models.transformer import exact_gelu

X = np.linspace(-5, 5, 201)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_exact_gelu_keeps_its_negative_tail(dtype, rtol):
    x = jnp.asarray(X, dtype)
    exact = [v * (1 + erf(v / 2**0.5)) / 2 for v in np.asarray(x, np.float64)]
    assert exact_gelu(x).dtype == x.dtype
    got = np.asarray(exact_gelu(x), np.float64)
    np.testing.assert_allclose(got, exact, rtol=rtol, atol=1e-6)

"""Statistics of weights, by hand."""

import numpy as np
import pytest

from subtune_jax.errors import InputError
from subtune_jax.selection.weight_sizes import statistics, unit_weights
from tests import toy


def test_closed_forms():
    found = statistics(np.array([[3.0, -1.0], [1.0, -3.0]]))
    assert found.count == 4 and found.mean == 2.0 and found.max == 3.0
    np.testing.assert_allclose(found.l2, np.sqrt(20))
    np.testing.assert_allclose(found.rms, np.sqrt(5))
    np.testing.assert_allclose(found.kurtosis, (81 + 1 + 1 + 81) / 4 / 25)


def test_kurtosis_is_3_for_a_normal_and_unknown_for_a_constant():
    normal = np.random.default_rng(0).standard_normal(200_000)
    assert abs(statistics(normal).kurtosis - 3) < 0.1
    assert abs(statistics(7 + 5 * normal).kurtosis - 3) < 0.1
    assert np.isnan(statistics(np.ones(5)).kurtosis)
    with pytest.raises(InputError, match="no weights"):
        statistics(np.zeros(0))


def test_weights_of_a_unit_and_of_its_parts():
    network = toy.mlp()
    assert unit_weights(network, "two").size == 36 + 6
    kernel = unit_weights(network, "two", "kernel")
    np.testing.assert_array_equal(kernel, np.ravel(network.params["two"]["kernel"]))
    assert unit_weights(network, "two", "scale").size == 0
    with pytest.raises(InputError, match="matches no unit and no path"):
        unit_weights(network, "three")

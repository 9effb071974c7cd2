import jax
import jax.numpy as jnp
import pytest

from subtune_jax.flops import contraction_flops, depends_on, trained_flops


def conv(x, w, stride=1, padding=((1, 1), (1, 1))):
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


X, W = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))


def test_matrix_product():
    assert (
        contraction_flops(lambda a, b: a @ b, jnp.zeros((3, 4)), jnp.zeros((4, 5)))
        == 2 * 60
    )


def test_convolution_counts_no_padding():
    # 8 outputs x 3 taps an axis, less one tap outside at each end: 22
    assert contraction_flops(conv, X, W) == 2 * 2 * 22 * 22 * 3 * 5


@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradients_of_a_convolution_cost_what_it_costs(stride):
    def loss(x, w):
        return conv(x, w, stride).sum()

    one = contraction_flops(loss, X, W)
    assert contraction_flops(jax.value_and_grad(loss, 0), X, W) == 2 * one
    assert contraction_flops(jax.value_and_grad(loss, 1), X, W) == 2 * one
    assert contraction_flops(jax.value_and_grad(loss, (0, 1)), X, W) == 3 * one
    assert trained_flops(loss, [False, True], X, W) == 2 * one
    assert trained_flops(loss, [True, True], X, W) == 3 * one


def test_a_scan_counts_as_often_as_it_runs_and_a_carry_spreads():
    def chain(x, w):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, length=7)[0].sum()

    x, w = jnp.zeros((2, 4)), jnp.zeros((4, 4))
    one = 2 * 2 * 4 * 4
    assert contraction_flops(chain, x, w) == 7 * one
    assert trained_flops(chain, [False, True], x, w) == 21 * one
    assert contraction_flops(jax.grad(chain, 1), x, w) == 21 * one


def test_the_floor_stops_at_the_lowest_leaf_that_trains():
    def net(x, w1, w2, w3):
        return jnp.tanh(jnp.tanh(x @ w1) @ w2) @ w3

    args = jnp.zeros((2, 4)), *[jnp.zeros((4, 4))] * 3
    one = 2 * 2 * 4 * 4
    assert trained_flops(net, [False, False, False, True], *args) == 4 * one
    assert trained_flops(net, [False, False, True, False], *args) == 5 * one
    assert trained_flops(net, [False, True, True, True], *args) == 8 * one


def test_what_holds_a_jaxpr_and_is_no_call_passes_dependence_on():
    a, b, x = jnp.zeros((4, 4)), jnp.zeros((4, 4)), jnp.zeros((2, 4))
    one = 2 * 2 * 4 * 4

    def scatter(a, b, x):
        return (x @ a).at[0].add(x[0]) @ b

    def branch(a, b, x):
        made = jax.lax.cond(x.sum() > 0, lambda: x @ a, lambda: jnp.zeros((2, 4)))
        return made @ b

    for f in (scatter, branch):
        assert trained_flops(f, [True, True, False], a, b, x) == 5 * one


def test_dependence_on_a_key():
    def used(key):
        return jax.random.normal(key)

    key = jax.random.key(0)
    assert depends_on(used, [True], key)
    assert not depends_on(lambda key: jnp.zeros(()), [True], key)

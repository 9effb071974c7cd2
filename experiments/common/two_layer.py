"""Two-layer networks f(x) = v^T phi(B x): what tuning one layer can and cannot repair.

The theory of surgical fine-tuning (Lee et al. 2023). The construction that shows
its Theorem 1 is our own: the paper's proof was not read.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Gap(NamedTuple):
    """Target losses during gradient descent, divided by the loss at the start.

    train and population: float[logs] on the sample and over all inputs.
    """

    train: jax.Array
    population: jax.Array


@partial(jax.jit, static_argnames=("d", "k", "n", "steps", "every", "tuned"))
def theorem_gap(
    key: jax.Array,
    *,
    tuned: str,
    d: int = 100,
    k: int = 5,
    n: int = 25,
    shift: float = -3.0,
    rate: float = 0.02,
    steps: int = 40_000,
    every: int = 100,
) -> Gap:
    """Returns the losses of tuning the `first` layer, the `last` or both (`full`).

    Linear network w = B^T v, B ~ N(0, 1/k) of [k, d], v ~ 0.3 N(0, 1/k). One-hot
    inputs: e_1 with probability 1/2, the others uniform. The target weight is w_0 with
    its first coordinate multiplied by `shift`. Full-batch gradient descent on a sample
    of n inputs, squared loss.
    """
    b_key, v_key, sample_key = jax.random.split(key, 3)
    b = jax.random.normal(b_key, (k, d)) / jnp.sqrt(k)
    v = 0.3 * jax.random.normal(v_key, (k,)) / jnp.sqrt(k)
    chances = jnp.full(d, 0.5 / (d - 1)).at[0].set(0.5)
    drawn = jax.random.choice(sample_key, d, (n,), p=chances)
    sample = jnp.zeros(d).at[drawn].add(1 / n)
    goal = (b.T @ v) * jnp.ones(d).at[0].set(shift)
    moves = {"first": (1.0, 0.0), "last": (0.0, 1.0), "full": (1.0, 1.0)}[tuned]

    def loss(weights, chances):
        b, v = weights
        return jnp.sum(chances * (b.T @ v - goal) ** 2)

    def descend(weights, _):
        grads = jax.grad(loss)(weights, sample)
        return tuple(
            w - rate * m * g for w, g, m in zip(weights, grads, moves, strict=True)
        ), None

    def log(weights, _):
        weights, _ = jax.lax.scan(descend, weights, None, length=every)
        return weights, (loss(weights, sample), loss(weights, chances))

    _, (train, population) = jax.lax.scan(log, (b, v), None, length=steps // every)
    return Gap(train / loss((b, v), sample), population / loss((b, v), chances))


class Repair(NamedTuple):
    """Mean squared target errors, divided by the variance of the target outputs."""

    first: jax.Array
    last: jax.Array


def input_shift(key: jax.Array, *, d: int = 10, k: int = 20, n: int = 5000) -> Repair:
    """Returns what each layer repairs of x_target = A x_source (Proposition 1).

    B = B_0 A^-1 makes the error 0 for any invertible A; the best last layer, by least
    squares, need not. phi is relu, x_source Gaussian, A = I + N(0, 1/d).
    """
    keys = jax.random.split(key, 4)
    b, v = jax.random.normal(keys[0], (k, d)), jax.random.normal(keys[1], (k,))
    a = jnp.eye(d) + jax.random.normal(keys[2], (d, d)) / jnp.sqrt(d)
    source = jax.random.normal(keys[3], (n, d))
    target, y = source @ a.T, jax.nn.relu(source @ b.T) @ v
    first = jax.nn.relu(target @ (b @ jnp.linalg.inv(a)).T) @ v
    hidden = jax.nn.relu(target @ b.T)
    last = hidden @ jnp.linalg.lstsq(hidden, y)[0]
    return Repair(_error(first, y), _error(last, y))


def output_shift(key: jax.Array, *, d: int = 10, k: int = 20, n: int = 5000) -> Repair:
    """Returns what each layer repairs of y_target = -y_source (Proposition 2).

    v = -v_0 makes the error 0. With v_0 > 0 and phi = relu, no first layer gives a
    negative output, so its error is at least E[y^2], returned as `first`.
    """
    b_key, v_key, x_key = jax.random.split(key, 3)
    b, v = jax.random.normal(b_key, (k, d)), jax.random.uniform(v_key, (k,))
    hidden = jax.nn.relu(jax.random.normal(x_key, (n, d)) @ b.T)
    y = -(hidden @ v)
    last = hidden @ -v
    bound = jnp.mean(y**2) / jnp.var(y)
    return Repair(bound, _error(last, y))


def _error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((outputs - y) ** 2) / jnp.var(y)

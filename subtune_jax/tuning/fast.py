"""FAST: a head that starts at maximum entropy, and a backbone spared the first errors.

z = (f - mean(f)) / sqrt(var(f) + 1e-5),   p = softmax(z W + b),   e = p - y

of features f [batch, d]. The backbone receives e W^T through the normalization. From a
random W that is noise, the contamination; from W = 0 it is 0, the outputs are uniform,
and the first step turns W into the means of the classes. Only the abstracts of FAST
(Varno et al. 2020) and of its predecessor ENTAME (2019) could be read: these equations
are our derivation, and docs/methods.md says what is a reading of ours.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from subtune_jax.head import linear_params, standardize
from subtune_jax.network import Params


def maximum_entropy_head(features: int, num_classes: int) -> Params:
    """Returns the head W = 0, b = 0: every class has the probability 1 / K, the loss is
    log K, and no error reaches the features."""
    return linear_params(None, features, num_classes, jax.nn.initializers.zeros)


@jax.jit
def normalized_features(features: jax.Array) -> jax.Array:
    """Returns z, features float[batch, d] with mean 0 and variance 1 over the batch."""
    return standardize(features, features.mean(axis=0), features.var(axis=0))


@jax.jit
def output_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns e = softmax(logits) - y, float[batch, classes]: the gradient of each
    example's cross-entropy by its logits. labels: int[batch]."""
    return jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])


@jax.jit
def contamination_energy(kernel: jax.Array, error: jax.Array) -> jax.Array:
    """Returns the mean over the batch of ||W e||^2, what reaches the (normalized) features.

    kernel: W float[d, classes]; error: e float[batch, classes]. Of W drawn with variance
    s^2 it is d s^2 ||e||^2 on average.
    """
    return jnp.square(error @ kernel.T).sum(axis=-1).mean()


class EnergySplit(NamedTuple):
    """Contamination energy of the head, of its initial weights, and of what it learnt.

    total is initial + learnt + twice the mean of the two parts' product.
    """

    total: jax.Array
    initial: jax.Array
    learnt: jax.Array


@jax.jit
def energy_split(
    kernel: jax.Array, initial: jax.Array, error: jax.Array
) -> EnergySplit:
    """Returns the energy of W_t, of W_0 and of W_t - W_0 on the same errors."""
    parts = kernel, initial, kernel - initial
    return EnergySplit(*(contamination_energy(part, error) for part in parts))


@partial(jax.jit, static_argnames=("optimizer", "head"))
def stalled_update(
    optimizer: optax.GradientTransformation,
    trainable: dict[str, Any],
    state: dict[str, Any],
    gradients: dict[str, Any],
    *,
    head: str = "head",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the trainable trees and optimizer states after an update of the head alone.

    All three are dicts with a tree for each group. What is not the head keeps its
    parameters, moments, decay and count bit for bit. It states what a phase of the head
    alone must equal (`recipes.fast`), which costs no backward pass through the backbone.
    """
    update, head_state = optimizer.update(gradients[head], state[head], trainable[head])
    moved = optax.apply_updates(trainable[head], update)
    return {**trainable, head: moved}, {**state, head: head_state}

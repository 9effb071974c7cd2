"""Losses without labels, for test-time training; targets are ignored."""

import jax
import jax.numpy as jnp


def entropy(logits: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Returns H(softmax(logits)) per example, float[batch], in nats.

    The loss of TENT (Wang et al. 2021).
    """
    del targets
    return _entropy(jax.nn.log_softmax(logits))


def marginal_entropy(logits: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """Returns H(mean over the batch of softmax(logits)) at every row, float[batch].

    The loss of MEMO over the copies of one image (Zhang, Levine and Finn 2022): a mean
    of probabilities, taken in log space. One batch is one image; no padding rows.
    """
    del targets
    mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(logits))
    return jnp.full(len(logits), _entropy(mean))


def _entropy(log_p: jax.Array) -> jax.Array:
    """Returns -sum p log p over the last axis; finite where a p is 0."""
    log_p = jnp.maximum(log_p, jnp.finfo(log_p.dtype).min)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

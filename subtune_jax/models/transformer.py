"""What the transformer families share: attention, activations, names of modules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from subtune_jax.errors import InputError, unknown


def exact_gelu(x: jax.Array) -> jax.Array:
    """Returns x Phi(x) = x (1 + erf(x / sqrt 2)) / 2.

    As PyTorch computes it, in float32 at least: in bfloat16 1 + erf would lose the
    negative tail. `nnx.gelu` takes erfc, which keeps the digits of the tail but
    has two branches and an exponential: three times the time on a CPU.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * (0.5 * (1 + jax.lax.erf(wide * 0.5**0.5)))).astype(x.dtype)


def tanh_gelu(x: jax.Array) -> jax.Array:
    """Returns x Phi(x), with tanh for Phi."""
    return nnx.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x sigmoid(1.702 x)."""
    return x * nnx.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": exact_gelu,
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "quick_gelu": quick_gelu,
    "relu": nnx.relu,
}
DTYPES = ("float32", "bfloat16", "float64")
INIT = nnx.initializers.normal(0.02)


def activation(name: str) -> Callable:
    """Returns an activation by the name that `config.json` files have for it."""
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def require_heads(width: int, heads: int) -> None:
    """Raises `InputError` unless the width divides into the heads."""
    if heads < 1 or width % heads:
        raise InputError(f"width {width} does not divide into {heads} attention heads")


def dense(
    inputs: int, outputs: int, dtype: str, rngs: nnx.Rngs, bias: bool = True
) -> nnx.Linear:
    """Returns a linear layer with float32 parameters that computes in `dtype`."""
    return nnx.Linear(
        inputs, outputs, use_bias=bias, dtype=dtype, kernel_init=INIT, rngs=rngs
    )


def by_row(layer: Callable, x: jax.Array) -> jax.Array:
    """Returns layer(x), of x with all axes but the last as one.

    On a CPU the gradient of a matrix that is contracted over [batch, tokens] takes twice
    as long as over one axis of both (58 ms and 25 ms for 384 x 1536 and 2,048 rows).
    """
    rows = layer(x.reshape(-1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axis.

    In float32 at least; the variance is taken around the mean, as in PyTorch. With
    nnx.LayerNorm, which multiplies by the scale and the deviation at once, XLA writes
    the scale out for every token in the backward pass: 3 % of a step on a CPU.
    """

    def __init__(self, width: int, epsilon: float, dtype: str):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = (
            p[...].reshape(*[1] * (x.ndim - 1), -1) for p in (self.scale, self.bias)
        )
        return (normed * scale + bias).astype(self.dtype)


def embedding(count: int, width: int, dtype: str, rngs: nnx.Rngs) -> nnx.Embed:
    """Returns a table of float32[count, width] that is read in `dtype`."""
    return nnx.Embed(count, width, dtype=dtype, embedding_init=INIT, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(d)) V, then an output projection.

    Attention probabilities are not dropped out, whatever a config says. `norm`, if
    given, is kept beside the projections; it is the layer that applies it. bias: whether
    the projections to Q, K and V have one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dtype: str,
        rngs: nnx.Rngs,
        norm: LayerNorm | None = None,
        bias: bool = True,
    ):
        self.heads = heads
        if norm is not None:
            self.norm = norm
        self.query = dense(width, width, dtype, rngs, bias)
        self.key = dense(width, width, dtype, rngs, bias)
        self.value = dense(width, width, dtype, rngs, bias)
        self.output = dense(width, width, dtype, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x: float[batch, tokens, width]; mask: bool[batch, tokens], True where a token
        may be attended to."""
        split = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        projections = (self.query, self.key, self.value)
        q, k, v = (by_row(f, x).reshape(split) for f in projections)
        mixed = attend(q, k, v, mask)
        return by_row(self.output, mixed.reshape(x.shape))


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """Returns softmax(Q K^T / sqrt(d)) V, as float[batch, tokens, heads, d] as Q, K and V
    are; `mask` is bool[batch, tokens].

    Q is scaled, not every logit, and the sum of the exponentials divides what is mixed,
    not every probability; heads come before tokens. On a CPU the gradient takes 36 ms
    instead of the 50 ms of `jax.nn.dot_product_attention` (16 x 128 tokens, 12 heads of
    32).
    """
    q, v = (x.transpose(0, 2, 1, 3) for x in (q * q.shape[-1] ** -0.5, v))
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.matmul(q, k.transpose(0, 2, 3, 1), preferred_element_type=wide)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(wide).min / 2)
    highest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    shares = jnp.exp(logits - highest)
    mixed = jnp.matmul(shares.astype(v.dtype), v, preferred_element_type=wide)
    mixed = mixed / shares.sum(axis=-1, keepdims=True)
    return mixed.astype(v.dtype).transpose(0, 2, 1, 3)


def call(module: nnx.Module, x: Any, *, batch_stats: bool, key) -> Any:
    """Runs a stage: dropout iff there is a key; no transformer has batch statistics."""
    del batch_stats
    module.set_attributes(deterministic=key is None, raise_if_not_found=False)
    return module(x)


def kinds(layers: str) -> dict[str, tuple[str, ...]]:
    """Returns the kinds of module (AkbarTajari et al. 2022) in the layers whose stage
    names match `layers`, a regular expression."""
    attention = tuple(
        f"{layers}/attention/{n}" for n in ("query", "key", "value", "output")
    )
    norms = (f"{layers}/attention/norm", f"{layers}/norm")
    feed = (f"{layers}/intermediate", f"{layers}/output")
    return {
        "query": attention[:1],
        "key": attention[1:2],
        "value": attention[2:3],
        "attention_output": attention[3:],
        "attention_norm": norms[:1],
        "intermediate": feed[:1],
        "output": feed[1:],
        "output_norm": norms[1:],
        "layer_norms": norms,
        "attention": attention,
        "feed_forward": feed,
        "biases": (f"{layers}/(?:.*/)?bias",),
    }

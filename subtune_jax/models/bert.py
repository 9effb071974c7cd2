"""BERT-style encoders: BERT, RoBERTa, MiniLM and others with their configuration.

Stages: `embeddings`, `layer_{i}`, `pooler`, `head`. Inputs are a dict of int32[batch,
tokens]: `input_ids`, `attention_mask` and, where there are two texts, `token_type_ids`;
between layers, a dict of `hidden` float[batch, tokens, width] and `mask` bool[batch, tokens].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from subtune_jax.errors import InputError, require_positive, require_whole, unknown
from subtune_jax.head import linear, linear_params, span
from subtune_jax.models.dropout import dropout, require_dropout
from subtune_jax.models.nnx_stages import split_stages
from subtune_jax.models.transformer import (
    DTYPES,
    INIT,
    Attention,
    LayerNorm,
    activation,
    by_row,
    call,
    dense,
    embedding,
    kinds,
    require_heads,
)
from subtune_jax.network import Network, Source, Stage, Tokens, UnitTable

POOLINGS = ("dense", "cls", "mean")
HEADS = ("outputs", "span")


class BertConfig(NamedTuple):
    """What an encoder is built from; the defaults are BERT-base, uncased.

    roberta: positions count the tokens that are not padding, from `pad_token_id` + 1. pooling:
    `dense` (tanh of a dense layer on the first token), `cls` (the first token) or
    `mean` (over the tokens that are not padding). head: `outputs` (logits or a
    regression per example) or `span` (2 logits per token). dtype: of the computation;
    parameters are float32.
    """

    vocab_size: int = 30_522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    type_vocab_size: int = 2
    epsilon: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1
    pad_token_id: int = 0
    roberta: bool = False
    pooling: str = "dense"
    head: str = "outputs"
    num_classes: int = 2
    dtype: str = "float32"


class Embeddings(nnx.Module):
    """Word, position and token-type embeddings, summed, normed and dropped out."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        width, dtype = config.hidden_size, config.dtype
        self.word = embedding(config.vocab_size, width, dtype, rngs)
        self.position = embedding(config.max_positions, width, dtype, rngs)
        self.token_type = embedding(config.type_vocab_size, width, dtype, rngs)
        self.norm = LayerNorm(width, config.epsilon, dtype)
        self.dropout = dropout(config.dropout, rngs)
        self.pad, self.roberta = config.pad_token_id, config.roberta

    def __call__(self, x: dict[str, jax.Array]) -> dict[str, jax.Array]:
        ids, most = x["input_ids"], self.position.num_embeddings
        if ids.shape[1] + (self.pad + 1) * self.roberta > most:
            raise InputError(
                f"texts have {ids.shape[1]} tokens: the network has {most} positions"
            )
        # RoBERTa counts its positions from pad_token_id + 1 and leaves padding at
        # pad_token_id, wherever padding stands; BERT counts from 0, padding included.
        places = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        if self.roberta:
            real = (ids != self.pad).astype(jnp.int32)
            places = jnp.cumsum(real, axis=1) * real + self.pad
        total = self.word(ids) + self.position(places)
        types = x.get("token_type_ids", jnp.zeros_like(ids))
        hidden = self.norm(total + self.token_type(types))
        return {"hidden": self.dropout(hidden), "mask": x["attention_mask"] > 0}


class Layer(nnx.Module):
    """norm(x + attention(x)), then norm(x + output(f(intermediate(x))))."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        norm = LayerNorm(config.hidden_size, config.epsilon, config.dtype)
        self.attention = Attention(
            config.hidden_size, config.num_heads, config.dtype, rngs, norm
        )
        self.intermediate = dense(
            config.hidden_size, config.intermediate_size, config.dtype, rngs
        )
        self.output = dense(
            config.intermediate_size, config.hidden_size, config.dtype, rngs
        )
        self.norm = LayerNorm(config.hidden_size, config.epsilon, config.dtype)
        self.dropout1 = dropout(config.dropout, rngs)
        self.dropout2 = dropout(config.dropout, rngs)
        self.activation = activation(config.activation)

    def __call__(self, x: dict[str, jax.Array]) -> dict[str, jax.Array]:
        hidden, mask = x["hidden"], x["mask"]
        hidden += self.dropout1(self.attention(hidden, mask))
        hidden = self.attention.norm(hidden)
        inner = self.activation(by_row(self.intermediate, hidden))
        hidden = self.norm(hidden + self.dropout2(by_row(self.output, inner)))
        return {"hidden": hidden, "mask": mask}


class Pooler(nnx.Module):
    """From hidden states to one vector per example; see `BertConfig.pooling`."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.pooling = config.pooling
        if config.pooling == "dense":
            self.dense = dense(
                config.hidden_size, config.hidden_size, config.dtype, rngs
            )
        self.dropout = dropout(config.dropout, rngs)

    def __call__(self, x: dict[str, jax.Array]) -> jax.Array:
        # The head computes in float32 at least: logits in bfloat16 have three digits.
        pooled = self.dropout(self.pooled(x))
        return pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32))

    def pooled(self, x: dict[str, jax.Array]) -> jax.Array:
        """Returns float[batch, width]."""
        hidden, mask = x["hidden"], x["mask"][..., None].astype(x["hidden"].dtype)
        if self.pooling == "mean":
            return (hidden * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)
        first = hidden[:, 0]
        return jnp.tanh(self.dense(first)) if self.pooling == "dense" else first


def bert(config: BertConfig, key: jax.Array) -> Network:
    """Returns an encoder with random weights and its head.

    Raises `InputError` for a width that does not divide into the heads, and unknown
    poolings, heads, activations and dtypes.
    """
    _check(config)
    body_key, head_key = jax.random.split(key)
    rngs = nnx.Rngs(body_key)
    modules: dict[str, nnx.Module] = {"embeddings": Embeddings(config, rngs)}
    modules |= {f"layer_{i}": Layer(config, rngs) for i in range(config.num_layers)}
    if config.head == "outputs":
        modules["pooler"] = Pooler(config, rngs)
    stages, params, stats = split_stages(modules, call)
    outputs = config.num_classes if config.head == "outputs" else 2
    params["head"] = linear_params(head_key, config.hidden_size, outputs, INIT)
    head = Stage("head", linear if config.head == "outputs" else span)
    # RoBERTa's positions count from the one after padding's.
    offset = config.pad_token_id + 1 if config.roberta else 0
    longest = config.max_positions - offset
    reads = Tokens(config.vocab_size, config.type_vocab_size, longest)
    stats = {**stats, "head": {}}
    return Network((*stages, head), params, stats, units(config), source=Source(reads))


SIZES = (
    *("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"),
    *("max_positions", "type_vocab_size", "num_classes"),
)


def _check(config: BertConfig) -> None:
    require_whole(**{name: getattr(config, name) for name in SIZES})
    require_heads(config.hidden_size, config.num_heads)
    require_dropout(config.dropout)
    require_positive(epsilon=config.epsilon)
    closed = {"pooling": POOLINGS, "head": HEADS, "dtype": DTYPES}
    for name, choices in closed.items():
        if getattr(config, name) not in choices:
            raise unknown(name, getattr(config, name), choices)


def units(config: BertConfig) -> UnitTable:
    """Returns the unit tables: `fine` holds every leaf exactly once, `kinds` the kinds of
    module over all layers, and a table for each layer those of that layer alone."""
    layers = [f"layer_{i}" for i in range(config.num_layers)]
    pooler = {"pooler": ("pooler",)} if config.head == "outputs" else {}
    pooler = pooler if config.pooling == "dense" else {}
    fine = {name: (name,) for name in ("embeddings", *layers, *pooler, "head")}
    parts = {"word": "word", "position": "position", "token_type": "token_type"}
    embeddings = {f"{n}_embeddings": (f"embeddings/{p}",) for n, p in parts.items()}
    embeddings["embedding_norm"] = ("embeddings/norm",)
    every: dict = kinds(r"layer_\d+") | embeddings | pooler
    every |= {"norms": ("norm",), "head": ("head",)}
    return {"fine": fine, "kinds": every} | {name: kinds(name) for name in layers}

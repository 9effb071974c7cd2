"""Vision transformers: ViT and CLIP's image tower.

Stages: `input` (pixels 0 to 255 to normalized floats, no parameters), `embeddings`,
`layer_{i}`, `pooler` (pooling and the final norm), `head`. Between layers: float[batch,
tokens, width], the class token first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from subtune_jax.errors import InputError, require_positive, require_whole, unknown
from subtune_jax.head import linear, linear_params
from subtune_jax.models.dropout import dropout, require_dropout
from subtune_jax.models.nnx_stages import split_stages
from subtune_jax.models.pixels import normalize
from subtune_jax.models.transformer import (
    DTYPES,
    INIT,
    Attention,
    LayerNorm,
    activation,
    by_row,
    call,
    dense,
    kinds,
    require_heads,
)
from subtune_jax.network import Network, Pixels, Source, Stage, UnitTable

POOLINGS = ("cls", "mean")


class ViTConfig(NamedTuple):
    """What a vision transformer is built from; the defaults are ViT-B/16.

    pooling: `cls` (the class token) or `mean` (over the patches); the final norm comes
    after it. pre_norm: a LayerNorm before the first layer, and patch_bias: a bias of
    the patch embedding (CLIP has the one and not the other). qkv_bias: biases of the
    projections to queries, keys and values. dtype: of the computation; parameters are
    float32. mean, std: of pixels in [0, 1], one number or one for each channel.
    """

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    epsilon: float = 1e-6
    activation: str = "gelu"
    dropout: float = 0.0
    class_token: bool = True
    pooling: str = "cls"
    pre_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    num_classes: int = 1000
    dtype: str = "float32"
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


class Embeddings(nnx.Module):
    """Patches through one linear map, the class token before them, plus positions."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        width, dtype, patch = config.hidden_size, config.dtype, config.patch_size
        self.image = config.image_size
        self.patch = nnx.Conv(
            config.channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            use_bias=config.patch_bias,
            dtype=dtype,
            kernel_init=INIT,
            rngs=rngs,
        )
        tokens = (config.image_size // patch) ** 2
        if config.class_token:
            self.class_token = nnx.Param(INIT(rngs.params(), (width,), jnp.float32))
            tokens += 1
        self.position = nnx.Param(INIT(rngs.params(), (tokens, width), jnp.float32))
        if config.pre_norm:
            self.norm = LayerNorm(width, config.epsilon, dtype)
        self.dropout = dropout(config.dropout, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: float[batch, image, image, channels]; raises `InputError` for others."""
        expected = self.image, self.image, self.patch.in_features
        if x.shape[1:] != expected:
            found, taken = (" x ".join(map(str, s)) for s in (x.shape[1:], expected))
            raise InputError(f"images are {found}: the network takes {taken}")
        x = self.patch(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if hasattr(self, "class_token"):
            token = self.class_token.get_value().astype(x.dtype)[None, None]
            x = jnp.concatenate(
                [jnp.broadcast_to(token, (len(x), 1, x.shape[-1])), x], 1
            )
        x += self.position.get_value().astype(x.dtype)[None]
        return self.dropout(self.norm(x) if hasattr(self, "norm") else x)


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + output(f(intermediate(norm(x))))."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        width, dtype = config.hidden_size, config.dtype
        norm = LayerNorm(width, config.epsilon, dtype)
        heads, bias = config.num_heads, config.qkv_bias
        self.attention = Attention(width, heads, dtype, rngs, norm, bias)
        self.norm = LayerNorm(width, config.epsilon, dtype)
        self.intermediate = dense(width, config.intermediate_size, dtype, rngs)
        self.output = dense(config.intermediate_size, width, dtype, rngs)
        self.dropout1 = dropout(config.dropout, rngs)
        self.dropout2 = dropout(config.dropout, rngs)
        self.activation = activation(config.activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        x += self.dropout1(self.attention(self.attention.norm(x)))
        inner = self.activation(by_row(self.intermediate, self.norm(x)))
        return x + self.dropout2(by_row(self.output, inner))


class Pooler(nnx.Module):
    """From tokens to one normed vector per image; see `ViTConfig.pooling`."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        self.pooling, self.first = config.pooling, int(config.class_token)
        self.norm = LayerNorm(config.hidden_size, config.epsilon, config.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """float[batch, tokens, width] to float[batch, width]."""
        x = x[:, 0] if self.pooling == "cls" else x[:, self.first :].mean(axis=1)
        x = self.norm(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def vit(config: ViTConfig, key: jax.Array) -> Network:
    """Returns a vision transformer with random weights for pixels 0 to 255 [batch, h, w, c].

    Raises `InputError` for sizes that do not divide, a class-token pooling without the
    token, and unknown poolings, activations and dtypes.
    """
    _check(config)
    body_key, head_key = jax.random.split(key)
    rngs = nnx.Rngs(body_key)
    modules: dict[str, nnx.Module] = {"embeddings": Embeddings(config, rngs)}
    modules |= {f"layer_{i}": Layer(config, rngs) for i in range(config.num_layers)}
    modules["pooler"] = Pooler(config, rngs)
    stages, params, stats = split_stages(modules, call)
    pixels = Stage("input", normalize(config.mean, config.std))
    head = linear_params(head_key, config.hidden_size, config.num_classes, INIT)
    params = {"input": {}, **params, "head": head}
    stats = {"input": {}, **stats, "head": {}}
    stages = (pixels, *stages, Stage("head", linear))
    source = Source(
        Pixels(config.channels, (config.image_size,) * 2, config.mean, config.std)
    )
    return Network(stages, params, stats, units(config), source=source)


SIZES = (
    *("image_size", "patch_size", "channels", "hidden_size", "num_layers"),
    *("num_heads", "intermediate_size", "num_classes"),
)


def _check(config: ViTConfig) -> None:
    require_whole(**{name: getattr(config, name) for name in SIZES})
    require_heads(config.hidden_size, config.num_heads)
    require_dropout(config.dropout)
    require_positive(epsilon=config.epsilon)
    for name, choices in {"pooling": POOLINGS, "dtype": DTYPES}.items():
        if getattr(config, name) not in choices:
            raise unknown(name, getattr(config, name), choices)
    if config.image_size % config.patch_size:
        raise InputError(
            f"images of {config.image_size} pixels do not divide into patches of "
            f"{config.patch_size}"
        )
    for name in ("mean", "std"):
        if len(getattr(config, name)) not in (1, config.channels):
            raise InputError(
                f"{name} has {len(getattr(config, name))} numbers: expected 1, or one for "
                f"each of the {config.channels} channels"
            )
    if config.pooling == "cls" and not config.class_token:
        raise InputError("pooling 'cls' needs a class token: use pooling 'mean'")


def units(config: ViTConfig) -> UnitTable:
    """Returns the unit tables: `fine` holds every leaf exactly once, `kinds` the kinds of
    module over all layers, a table for each layer those of that layer alone.

    `surgical` is the mapping of surgical fine-tuning for ViT-B/16 (Lee et
    al. 2023): embedding, first three layers, last three, last (the head).
    """
    layers = [f"layer_{i}" for i in range(config.num_layers)]
    parts = {"patch_embeddings": "patch", "position_embeddings": "position"}
    parts |= {"class_token": "class_token"} if config.class_token else {}
    parts |= {"embedding_norm": "norm"} if config.pre_norm else {}
    embeddings = {name: (f"embeddings/{part}",) for name, part in parts.items()}
    ends = {"final_norm": ("pooler",), "norms": ("norm",), "head": ("head",)}
    fine = {name: (name,) for name in ("embeddings", *layers, "pooler", "head")}
    surgical = {"embedding": ("embeddings",), "first3": tuple(layers[:3])}
    surgical |= {"last3": tuple(layers[-3:]), "last": ("head",)}
    every: dict = {"fine": fine, "kinds": kinds(r"layer_\d+") | embeddings | ends}
    return every | {"surgical": surgical} | {name: kinds(name) for name in layers}

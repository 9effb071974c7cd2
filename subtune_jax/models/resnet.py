"""Residual networks for small images: the CIFAR family, down to 8 x 8 digits.

Stages: `input` (pixels to normalized floats, no parameters), `stem`,
`block{stage}_{i}` (one residual block each), `pool` (with the final norm of
pre-activation networks), `head`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from subtune_jax.errors import InputError, unknown
from subtune_jax.head import linear, linear_params
from subtune_jax.models.nnx_stages import split_stages
from subtune_jax.models.pixels import normalize
from subtune_jax.network import Network, Pixels, Source, Stage, UnitTable

NORMS = ("group", "batch")
_INIT = nnx.initializers.he_normal()


class ResNetConfig(NamedTuple):
    """What a residual network is built from.

    preactivation: norm, relu, conv (ResNet-26 of MEMO, with a pooled option-A
    shortcut) or conv, norm, relu with a relu after the sum (He et al. 2016 for CIFAR,
    with a subsampled one). No shortcut has parameters.
    """

    blocks: tuple[int, ...] = (1, 1, 1)
    widths: tuple[int, ...] = (16, 32, 64)
    norm: str = "group"
    groups: int = 8
    preactivation: bool = True
    channels: int = 3
    num_classes: int = 10
    mean: tuple[float, ...] = (0.5,)  # of pixels in [0, 1], per channel or for all
    std: tuple[float, ...] = (0.5,)


def _conv(inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        strides=stride,
        padding=((1, 1), (1, 1)),
        use_bias=False,
        kernel_init=_INIT,
        rngs=rngs,
    )


def _norm(config: ResNetConfig, width: int, rngs: nnx.Rngs) -> nnx.Module:
    if config.norm == "group":
        return nnx.GroupNorm(width, num_groups=config.groups, epsilon=1e-5, rngs=rngs)
    return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)


def _normed(norm: nnx.Module, x: jax.Array, batch_stats: bool) -> jax.Array:
    if isinstance(norm, nnx.BatchNorm):
        return norm(x, use_running_average=not batch_stats)
    return norm(x)


class Stem(nnx.Module):
    """A 3 x 3 convolution; with norm and relu unless blocks are pre-activated."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        self.conv = _conv(config.channels, config.widths[0], 1, rngs)
        if not config.preactivation:
            self.norm = _norm(config, config.widths[0], rngs)

    def __call__(self, x: jax.Array, batch_stats: bool) -> jax.Array:
        """x: float[batch, height, width, channels]."""
        x = self.conv(x)
        return (
            nnx.relu(_normed(self.norm, x, batch_stats)) if hasattr(self, "norm") else x
        )


class Block(nnx.Module):
    """A basic residual block: two convolutions, two norms, an option-A shortcut."""

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.preactivation = config.preactivation
        self.stride = 1 if inputs == outputs else 2
        self.norm1 = _norm(config, inputs if config.preactivation else outputs, rngs)
        self.conv1 = _conv(inputs, outputs, self.stride, rngs)
        self.norm2 = _norm(config, outputs, rngs)
        self.conv2 = _conv(outputs, outputs, 1, rngs)

    def __call__(self, x: jax.Array, batch_stats: bool) -> jax.Array:
        """x: float[batch, height, width, inputs]."""
        if self.preactivation:
            y = self.conv1(nnx.relu(_normed(self.norm1, x, batch_stats)))
            y = self.conv2(nnx.relu(_normed(self.norm2, y, batch_stats)))
            return pooled_shortcut(x, y.shape[-1]) + y
        y = nnx.relu(_normed(self.norm1, self.conv1(x), batch_stats))
        y = _normed(self.norm2, self.conv2(y), batch_stats)
        return nnx.relu(subsampled_shortcut(x, y.shape[-1]) + y)


class Pool(nnx.Module):
    """Global average pooling, after the final norm and relu of pre-activated blocks."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        if config.preactivation:
            self.norm = _norm(config, config.widths[-1], rngs)

    def __call__(self, x: jax.Array, batch_stats: bool) -> jax.Array:
        """float[batch, height, width, features] to float[batch, features]."""
        if hasattr(self, "norm"):
            x = nnx.relu(_normed(self.norm, x, batch_stats))
        return x.mean(axis=(1, 2))


def pooled_shortcut(x: jax.Array, width: int) -> jax.Array:
    """Returns x, 2 x 2 average-pooled and zero channels appended if it is narrower."""
    missing = width - x.shape[-1]
    if not missing:
        return x
    x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))


def subsampled_shortcut(x: jax.Array, width: int) -> jax.Array:
    """Returns every second pixel of x, zero channels on both sides, if it is narrower."""
    missing = width - x.shape[-1]
    if not missing:
        return x
    side = missing // 2
    return jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (side, missing - side)))


def _call(module: nnx.Module, x, *, batch_stats: bool, key) -> jax.Array:
    del key  # no dropout in this family
    return module(x, batch_stats)


def resnet(config: ResNetConfig, key: jax.Array) -> Network:
    """Returns a residual network with random weights for pixels 0 to 255 [batch, h, w, c].

    Raises `InputError` for a norm that is neither `group` nor `batch`.
    """
    if config.norm not in NORMS:
        raise unknown("norm", config.norm, NORMS)
    if len(config.blocks) != len(config.widths):
        raise InputError(
            f"there are {len(config.blocks)} stages of blocks and "
            f"{len(config.widths)} widths: expected one width a stage"
        )
    if config.norm == "group" and any(w % max(config.groups, 1) for w in config.widths):
        raise InputError(
            f"widths {config.widths} do not divide into {config.groups} groups"
        )
    body_key, head_key = jax.random.split(key)
    rngs = nnx.Rngs(body_key)
    modules: dict[str, nnx.Module] = {"stem": Stem(config, rngs)}
    inputs = config.widths[0]
    for stage, (count, width) in enumerate(
        zip(config.blocks, config.widths, strict=True), 1
    ):
        for i in range(count):
            modules[f"block{stage}_{i}"] = Block(config, inputs, width, rngs)
            inputs = width
    modules["pool"] = Pool(config, rngs)
    stages, params, stats = split_stages(modules, _call)
    pixels = Stage("input", normalize(config.mean, config.std))
    params |= {"input": {}, "head": linear_params(head_key, inputs, config.num_classes)}
    stats |= {"input": {}, "head": {}}
    stages = (pixels, *stages, Stage("head", linear))
    source = Source(Pixels(config.channels, None, config.mean, config.std))
    return Network(stages, params, stats, units(config), source=source)


def units(config: ResNetConfig) -> UnitTable:
    """Returns the unit tables: `coarse` and `fine` hold every leaf exactly once.

    `surgical` is the mapping of surgical fine-tuning (Lee et al. 2023): the
    final norm is in no block, and the head is called `last`.
    """
    n = len(config.blocks)
    blocks: dict[str, tuple[str, ...]] = {
        f"block{s}": (f"block{s}_\\d+",) for s in range(1, n + 1)
    }
    blocks["block1"] = ("stem", *blocks["block1"])
    final = ("pool",) if config.preactivation else ()  # else pooling has no parameters
    fine = [
        f"block{s}_{i}" for s in range(1, n + 1) for i in range(config.blocks[s - 1])
    ]
    return {
        "coarse": blocks
        | {f"block{n}": blocks[f"block{n}"] + final, "head": ("head",)},
        "fine": {name: (name,) for name in ("stem", *fine, *final, "head")},
        "surgical": blocks | {"last": ("head",)},
        "kinds": {"conv": (r"conv\d?",), "norms": (r"norm\d?",), "head": ("head",)},
    }

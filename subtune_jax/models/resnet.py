"""Residual networks for small images: the CIFAR family, down to 8 x 8 digits.

Stages: `input` (pixels to normalized floats, no parameters), `stem`,
`block{stage}_{i}` (one residual block each), `pool` (with the final norm of
pre-activation networks), `head`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from subtune_jax.errors import InputError, require_whole, unknown
from subtune_jax.head import linear, linear_params
from subtune_jax.models.nnx_stages import split_stages
from subtune_jax.models.pixels import normalize
from subtune_jax.network import Network, Params, Pixels, Source, Stage, UnitTable

NORMS = ("group", "batch")
_INIT = nnx.initializers.he_normal()


class ResNetConfig(NamedTuple):
    """What a residual network is built from.

    preactivation: norm, relu, conv (ResNet-26 of MEMO, with a pooled option-A
    shortcut) or conv, norm, relu with a relu after the sum (He et al. 2016 for CIFAR,
    with a subsampled one). projection: a shortcut that changes the width is a 1 x 1
    convolution of the pre-activated input (wide residual networks, Zagoruyko and
    Komodakis 2016) instead of one without parameters. stem_width: default the first width.
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
    projection: bool = False
    stem_width: int | None = None


WIDE_28_10 = ResNetConfig(
    blocks=(4, 4, 4),
    widths=(160, 320, 640),
    norm="batch",
    mean=(0.0,),  # RobustBench's networks take pixels from 0 to 1 as they are
    std=(1.0,),
    projection=True,
    stem_width=16,
)


def conv(inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a convolution without bias that pads as PyTorch's: by half of its size."""
    half = size // 2
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=((half, half), (half, half)),
        use_bias=False,
        kernel_init=_INIT,
        rngs=rngs,
    )


def _norm(config: Any, width: int, rngs: nnx.Rngs) -> nnx.Module:
    if config.norm == "group":
        return nnx.GroupNorm(width, num_groups=config.groups, epsilon=1e-5, rngs=rngs)
    return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)


def normed(norm: nnx.Module, x: jax.Array, batch_stats: bool) -> jax.Array:
    if isinstance(norm, nnx.BatchNorm):
        return norm(x, use_running_average=not batch_stats)
    return norm(x)


class Stem(nnx.Module):
    """A 3 x 3 convolution; with norm and relu unless blocks are pre-activated."""

    def __init__(self, config: ResNetConfig, width: int, rngs: nnx.Rngs):
        self.conv = conv(config.channels, width, 3, 1, rngs)
        if not config.preactivation:
            self.norm = _norm(config, width, rngs)

    def __call__(self, x: jax.Array, batch_stats: bool) -> jax.Array:
        """x: float[batch, height, width, channels]."""
        x = self.conv(x)
        return (
            nnx.relu(normed(self.norm, x, batch_stats)) if hasattr(self, "norm") else x
        )


class Block(nnx.Module):
    """A basic residual block: two convolutions, two norms, a shortcut of option A or a
    projection."""

    def __init__(
        self,
        config: ResNetConfig,
        inputs: int,
        outputs: int,
        stride: int,
        rngs: nnx.Rngs,
    ):
        self.preactivation = config.preactivation
        self.norm1 = _norm(config, inputs if config.preactivation else outputs, rngs)
        self.conv1 = conv(inputs, outputs, 3, stride, rngs)
        self.norm2 = _norm(config, outputs, rngs)
        self.conv2 = conv(outputs, outputs, 3, 1, rngs)
        if config.projection and inputs != outputs:
            self.shortcut = conv(inputs, outputs, 1, stride, rngs)

    def __call__(self, x: jax.Array, batch_stats: bool) -> jax.Array:
        """x: float[batch, height, width, inputs]."""
        if self.preactivation:
            inner = nnx.relu(normed(self.norm1, x, batch_stats))
            y = self.conv1(inner)
            if hasattr(self, "shortcut"):
                x = self.shortcut(inner)
            y = self.conv2(nnx.relu(normed(self.norm2, y, batch_stats)))
            return pooled_shortcut(x, y.shape[-1]) + y
        y = nnx.relu(normed(self.norm1, self.conv1(x), batch_stats))
        y = normed(self.norm2, self.conv2(y), batch_stats)
        return nnx.relu(subsampled_shortcut(x, y.shape[-1]) + y)


class Pool(nnx.Module):
    """Global average pooling, after the final norm and relu of pre-activated blocks."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        if config.preactivation:
            self.norm = _norm(config, config.widths[-1], rngs)

    def __call__(self, x: jax.Array, batch_stats: bool) -> jax.Array:
        """float[batch, height, width, features] to float[batch, features]."""
        if hasattr(self, "norm"):
            x = nnx.relu(normed(self.norm, x, batch_stats))
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

    Raises `InputError` for a norm that is neither `group` nor `batch`, and sizes that are
    no positive whole numbers.
    """
    require_sizes(config)
    if config.norm not in NORMS:
        raise unknown("norm", config.norm, NORMS)
    if config.projection and not config.preactivation:
        raise InputError("a projection needs pre-activated blocks")
    changes = (config.stem_width or config.widths[0]) != config.widths[0]
    if changes and not config.projection:
        raise InputError(
            "a stem of another width than the first blocks needs projection=True"
        )
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
    rngs, inputs = nnx.Rngs(body_key), config.stem_width or config.widths[0]
    modules: dict[str, nnx.Module] = {"stem": Stem(config, inputs, rngs)}
    for stage, (count, width) in enumerate(
        zip(config.blocks, config.widths, strict=True), 1
    ):
        for i in range(count):
            stride = 2 if stage > 1 and inputs != width else 1
            modules[f"block{stage}_{i}"] = Block(config, inputs, width, stride, rngs)
            inputs = width
    modules["pool"] = Pool(config, rngs)
    head = linear_params(head_key, inputs, config.num_classes)
    tables = units(config.blocks, pool=config.preactivation)
    return assembled(modules, head, tables, config.channels, config.mean, config.std)


def require_sizes(config: Any) -> None:
    """Raises `InputError` for numbers of blocks, widths, channels and classes of a
    residual network that are no positive whole numbers."""
    for name in ("blocks", "widths"):
        for value in getattr(config, name):
            require_whole(**{name: value})
    if config.stem_width is not None:
        require_whole(stem_width=config.stem_width)
    require_whole(channels=config.channels, num_classes=config.num_classes)


def assembled(
    modules: Mapping[str, nnx.Module],
    head: Params,
    tables: UnitTable,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Network:
    """Returns the network of pixels, these modules in their order, and a linear head."""
    stages, params, stats = split_stages(modules, _call)
    pixels = Stage("input", normalize(mean, std))
    stages = (pixels, *stages, Stage("head", linear))
    params |= {"input": {}, "head": head}
    stats |= {"input": {}, "head": {}}
    source = Source(Pixels(channels, None, mean, std))
    return Network(stages, params, stats, tables, source=source)


def units(blocks: Sequence[int], *, pool: bool) -> UnitTable:
    """Returns the unit tables: `coarse` and `fine` hold every leaf exactly once.

    blocks: how many each stage has. pool: whether the pooling has parameters.
    `surgical` is the mapping of surgical fine-tuning (Lee et al. 2023): the
    final norm is in no block, and the head is called `last`.
    """
    n = len(blocks)
    coarse: dict[str, tuple[str, ...]] = {
        f"block{s}": (f"block{s}_\\d+",) for s in range(1, n + 1)
    }
    coarse["block1"] = ("stem", *coarse["block1"])
    final = ("pool",) if pool else ()
    fine = [f"block{s}_{i}" for s in range(1, n + 1) for i in range(blocks[s - 1])]
    return {
        "coarse": coarse
        | {f"block{n}": coarse[f"block{n}"] + final, "head": ("head",)},
        "fine": {name: (name,) for name in ("stem", *fine, *final, "head")},
        "surgical": coarse | {"last": ("head",)},
        "kinds": {
            "conv": (r"conv\d?", "shortcut"),
            "norms": (r"norm\d?",),
            "head": ("head",),
        },
    }

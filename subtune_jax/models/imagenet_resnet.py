"""Residual networks for ImageNet: ResNet-18 to 152, as torchvision's (He et al. 2015).

Stages: `input` (pixels to normalized floats), `stem` (a 7 x 7 convolution and a pooling),
`block{stage}_{i}` (one residual block each), `pool`, `head`.
"""

from typing import NamedTuple

import jax
from flax import nnx

from subtune_jax.errors import unknown
from subtune_jax.head import linear_params
from subtune_jax.models.resnet import (
    Pool,
    ResNetConfig,
    assembled,
    conv,
    normed,
    require_sizes,
    units,
)
from subtune_jax.network import Network

# name: blocks by stage, and whether they are bottlenecks
SIZES = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
EXPANSION = 4  # of a bottleneck: its outputs over its inner width
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageNetResNetConfig(NamedTuple):
    """What a residual network for ImageNet is built from; widths are the inner ones."""

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    channels: int = 3
    num_classes: int = 1000
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def sized(name: str) -> ImageNetResNetConfig:
    """Returns the configuration of `resnet18` to `resnet152`."""
    if name not in SIZES:
        raise unknown("residual network", name, SIZES)
    blocks, bottleneck = SIZES[name]
    return ImageNetResNetConfig(blocks, bottleneck)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)


class Stem(nnx.Module):
    """A 7 x 7 convolution with stride 2, norm, relu, and 3 x 3 max pooling with stride 2."""

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs):
        self.conv, self.norm = conv(channels, width, 7, 2, rngs), _norm(width, rngs)

    def __call__(self, x: jax.Array, batch_stats: bool) -> jax.Array:
        """x: float[batch, height, width, channels]."""
        x = nnx.relu(normed(self.norm, self.conv(x), batch_stats))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Shortcut(nnx.Module):
    """A 1 x 1 convolution and a norm, where a block changes the width or the size."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        self.conv = conv(inputs, outputs, 1, stride, rngs)
        self.norm = _norm(outputs, rngs)

    def __call__(self, x: jax.Array, batch_stats: bool) -> jax.Array:
        return normed(self.norm, self.conv(x), batch_stats)


class Block(nnx.Module):
    """Convolutions, each with a norm and all but the last with a relu; a relu follows the
    sum with the shortcut.

    Two of 3 x 3, or of a bottleneck 1 x 1, 3 x 3 and 1 x 1, with the stride in the 3 x 3
    (torchvision's, called version 1.5).
    """

    def __init__(
        self, inputs: int, width: int, stride: int, bottleneck: bool, rngs: nnx.Rngs
    ):
        outputs = width * EXPANSION if bottleneck else width
        widths, sizes = [inputs, width, width], [3, 3]
        if bottleneck:
            widths, sizes = [inputs, width, width, outputs], [1, 3, 1]
        strided = sizes.index(3)
        self.depth = len(sizes)
        for i, size in enumerate(sizes):
            step = stride if i == strided else 1
            layer = conv(widths[i], widths[i + 1], size, step, rngs)
            setattr(self, f"conv{i + 1}", layer)
            setattr(self, f"norm{i + 1}", _norm(widths[i + 1], rngs))
        if stride > 1 or inputs != outputs:
            self.shortcut = Shortcut(inputs, outputs, stride, rngs)

    def __call__(self, x: jax.Array, batch_stats: bool) -> jax.Array:
        """x: float[batch, height, width, inputs]."""
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"conv{i}")(y)
            y = normed(getattr(self, f"norm{i}"), y, batch_stats)
            y = nnx.relu(y) if i < self.depth else y
        if hasattr(self, "shortcut"):
            x = self.shortcut(x, batch_stats)
        return nnx.relu(x + y)


def imagenet_resnet(config: ImageNetResNetConfig, key: jax.Array) -> Network:
    """Returns a residual network with random weights for pixels 0 to 255 [batch, h, w, c].

    Of every stage but the first the first block halves height and width. The unit tables
    are those of `resnet.units`; a block of SubTuning is one of the table `fine`. Raises
    `InputError` for sizes that are no positive whole numbers.
    """
    require_sizes(config)
    body_key, head_key = jax.random.split(key)
    rngs, inputs = nnx.Rngs(body_key), config.stem_width
    modules: dict[str, nnx.Module] = {"stem": Stem(config.channels, inputs, rngs)}
    expansion = EXPANSION if config.bottleneck else 1
    stages = zip(config.blocks, config.widths, strict=True)
    for stage, (count, width) in enumerate(stages, start=1):
        for i in range(count):
            stride = 2 if stage > 1 and i == 0 else 1
            block = Block(inputs, width, stride, config.bottleneck, rngs)
            modules[f"block{stage}_{i}"] = block
            inputs = width * expansion
    modules["pool"] = Pool(ResNetConfig(preactivation=False), rngs)
    head = linear_params(head_key, inputs, config.num_classes)
    tables = units(config.blocks, pool=False)
    return assembled(modules, head, tables, config.channels, config.mean, config.std)

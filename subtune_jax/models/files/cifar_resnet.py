"""Files of residual networks of the CIFAR family: tensor names and configuration."""

from collections.abc import Mapping
from typing import Any

import jax

from subtune_jax.errors import InputError, unknown
from subtune_jax.models.files import convert
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.network import Pixels, Source

CIFAR_RESNET = [
    *convert.RESNET_BODY,
    *convert.norm_names("bn", "pool/norm"),
    convert.Name(r"(?:fc|linear)\.weight", "params/head/kernel", convert.LINEAR),
    convert.Name(r"(?:fc|linear)\.bias", "params/head/bias"),
]


# Zagoruyko's names, in RobustBench's networks among others.
_WIDE = r"block(\d)\.layer\.(\d+)\."
WIDE = [
    convert.Name(
        rf"{_WIDE}conv(\d)\.weight", r"params/block\1_\2/conv\3/kernel", convert.CONV
    ),
    convert.Name(
        rf"{_WIDE}convShortcut\.weight",
        r"params/block\1_\2/shortcut/kernel",
        convert.CONV,
    ),
    *convert.norm_names(rf"{_WIDE}bn(\d)", r"block\1_\2/norm\3"),
    *convert.norm_names("bn1", "pool/norm"),
]


def resnet_family(
    config: Mapping[str, Any], options: Mapping[str, Any]
) -> convert.Family:
    """Returns a residual network; raises `InputError` for options, which it has none of.

    `"shortcut": "projection"` and `stem_width` describe a wide residual network.
    """
    norms = {"group_norm": "group", "batch_norm": "batch"}
    blocks = {"pre-activation basic block": True, "post-activation basic block": False}
    norm, block = config["norm"]["type"], config["block"]["type"]
    if norm not in norms:
        raise unknown("norm type", norm, norms)
    if block not in blocks:
        raise unknown("block type", block, blocks)
    shape = ResNetConfig(
        blocks=tuple(config["blocks_per_stage"]),
        widths=tuple(config["widths"]),
        norm=norms[norm],
        groups=config["norm"].get("num_groups", 0),
        preactivation=blocks[block],
        channels=config["input_size"][-1],
        num_classes=config["num_classes"],
        mean=tuple(config["normalization"]["mean"]),
        std=tuple(config["normalization"]["std"]),
        projection=config.get("shortcut") == "projection",
        stem_width=config.get("stem_width"),
    )
    if options:
        raise InputError(
            f"config.json describes a residual network, which has no {', '.join(options)}"
        )
    network = resnet(shape, jax.random.key(0))
    height, width, channels = config["input_size"]
    source = Source(Pixels(channels, (height, width), shape.mean, shape.std))
    # `bn1` is the stem's norm in one layout and the final one in the other.
    names = [*WIDE, *CIFAR_RESNET] if shape.projection else CIFAR_RESNET
    return convert.Family(network._replace(source=source), names)

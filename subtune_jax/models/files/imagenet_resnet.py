"""Files of residual networks for ImageNet: torchvision's and timm's.

torchvision brings no configuration: write timm's beside its tensors,
`{"architecture": "resnet50", "num_classes": 1000, "pretrained_cfg": {}}`.
"""

from collections.abc import Mapping
from typing import Any

import jax

from subtune_jax.errors import InputError, unknown
from subtune_jax.models.files.convert import (
    CONV,
    LINEAR,
    RESNET_BODY,
    Family,
    Name,
    norm_names,
)
from subtune_jax.models.files.entries import require_known
from subtune_jax.models.imagenet_resnet import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIZES,
    ImageNetResNetConfig,
    imagenet_resnet,
    sized,
)
from subtune_jax.network import Pixels, Source

TORCHVISION = [
    *RESNET_BODY,
    Name(
        r"layer(\d)\.(\d+)\.downsample\.0\.weight",
        r"params/block\1_\2/shortcut/conv/kernel",
        CONV,
    ),
    *norm_names(r"layer(\d)\.(\d+)\.downsample\.1", r"block\1_\2/shortcut/norm"),
    Name(r"fc\.weight", "params/head/kernel", LINEAR),
    Name(r"fc\.bias", "params/head/bias"),
]


TIMM_ARGUMENTS = (  # what is read, and rates of training
    *("num_classes", "in_chans", "global_pool", "pretrained"),
    *("drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last"),
)


def timm_resnet(config: Mapping[str, Any], options: Mapping[str, Any]) -> Family:
    """Returns a residual network that timm or torchvision wrote; raises `InputError` for
    model arguments that change its layers."""
    name = config["architecture"].partition(".")[0]
    if name not in SIZES:
        raise unknown("residual network", name, SIZES)
    given = config.get("model_args") or {}
    require_known(given, TIMM_ARGUMENTS, "config.json", "timm model arguments")
    if given.get("global_pool", config.get("global_pool", "avg")) != "avg":
        raise InputError(
            f"{name} pools by {given.get('global_pool', config.get('global_pool'))!r}: "
            "expected avg"
        )
    pretrained = config.get("pretrained_cfg") or {}
    channels, *size = pretrained.get("input_size", (3, 224, 224))
    shape = sized(name)._replace(
        num_classes=config.get("num_classes") or 2,  # 0: the file has no head
        mean=tuple(pretrained.get("mean", IMAGENET_MEAN)),
        std=tuple(pretrained.get("std", IMAGENET_STD)),
        channels=given.get("in_chans", channels),
    )
    return _family(shape, tuple(size), options)


def _family(
    shape: ImageNetResNetConfig, size: tuple[int, ...], options: Mapping[str, Any]
) -> Family:
    if options:
        raise InputError(
            f"config.json describes a residual network, which has no {', '.join(options)}"
        )
    network = imagenet_resnet(shape, jax.random.key(0))
    height, width = size
    reads = Pixels(shape.channels, (height, width), shape.mean, shape.std)
    return Family(network._replace(source=Source(reads)), TORCHVISION)

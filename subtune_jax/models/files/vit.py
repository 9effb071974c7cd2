"""Files of vision transformers: timm, torchvision, Hugging Face and CLIP.

One table reads the tensors of all four layouts; a configuration is timm's, or Hugging
Face's (`model_type` `vit`, `clip` or `clip_vision_model`). torchvision has none: write
one of the `vit` kind beside its tensors, and a `preprocessor_config.json` with ImageNet's
`image_mean` [0.485, 0.456, 0.406] and `image_std` [0.229, 0.224, 0.225].
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from subtune_jax.errors import InputError, unknown
from subtune_jax.models.files.convert import (
    CONV,
    Family,
    Name,
    layer_norm_names,
    linear_names,
    unused,
    with_options,
)
from subtune_jax.models.vit import ViTConfig, vit

_LAYER = (
    r"(?:(?:vit\.)?encoder\.layer|blocks"
    r"|(?:vision_model\.)?encoder\.layers(?:\.encoder_layer_)?)\.?(\d+)\."
)
_EMBEDDINGS = r"(?:vit\.embeddings|(?:vision_model\.)?embeddings|encoder)\."
_PATCH = (
    rf"(?:patch_embed\.proj|conv_proj|{_EMBEDDINGS}patch_embedding(?:s\.projection)?)"
)
_TOKEN = rf"(?:cls_token|class_token|{_EMBEDDINGS}(?:cls_token|class_embedding))"
_POSITION = (
    rf"(?:pos_embed|{_EMBEDDINGS}(?:pos_embedding|position_embeddings"
    r"|position_embedding\.weight))"
)
_FINAL = r"(?:norm|fc_norm|encoder\.ln|(?:vit\.)?layernorm|(?:vision_model\.)?post_layernorm)"
_ATTENTION = r"(?:attn|self_attn|self_attention|attention\.attention)"
_PARTS = {
    "query": "(?:query|q_proj)",
    "key": "(?:key|k_proj)",
    "value": "(?:value|v_proj)",
}
_OUTPUT = (
    r"(?:attn\.proj|self_attn\.out_proj|self_attention\.out_proj"
    r"|attention\.output\.dense)"
)
_FIRST = r"(?:mlp\.fc1|mlp\.0|mlp\.linear_1|intermediate\.dense)"
_SECOND = r"(?:mlp\.fc2|mlp\.3|mlp\.linear_2|output\.dense)"

VIT = [
    Name(
        rf"{_PATCH}\.weight",
        "params/embeddings/patch/kernel",
        CONV,
    ),
    Name(rf"{_PATCH}\.bias", "params/embeddings/patch/bias"),
    Name(_TOKEN, "params/embeddings/class_token"),
    Name(_POSITION, "params/embeddings/position"),
    *layer_norm_names(r"(?:vision_model\.)?pre_layrnorm", "embeddings/norm"),
    *(
        name
        for part, theirs in _PARTS.items()
        for name in linear_names(
            rf"{_LAYER}{_ATTENTION}\.{theirs}", rf"layer_\1/attention/{part}"
        )
    ),
    *linear_names(rf"{_LAYER}{_OUTPUT}", r"layer_\1/attention/output"),
    *layer_norm_names(
        rf"{_LAYER}(?:norm1|ln_1|layer_norm1|layernorm_before)",
        r"layer_\1/attention/norm",
    ),
    *layer_norm_names(
        rf"{_LAYER}(?:norm2|ln_2|layer_norm2|layernorm_after)", r"layer_\1/norm"
    ),
    *linear_names(rf"{_LAYER}{_FIRST}", r"layer_\1/intermediate"),
    *linear_names(rf"{_LAYER}{_SECOND}", r"layer_\1/output"),
    *layer_norm_names(_FINAL, "pooler/norm"),
    unused(
        r"(?:vit\.)?pooler\.dense\..*|text_model\..*|(?:text|visual)_projection\.weight"
        r"|logit_scale|(?:vision_model\.)?embeddings\.position_ids",
        "params/embeddings/position",
    ),
]


_HEAD = r"(?:head|heads\.head|classifier)"
CLIP = [*VIT, unused(rf"{_HEAD}\..*", "params/head/kernel")]  # not on its pooled token
VIT += linear_names(_HEAD, "head")


def plain_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors with fused projections in three, and embeddings without axes of
    size 1 before them."""
    plain: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        fused = re.fullmatch(r"(.*)(?:\.qkv\.|\.in_proj_)(weight|bias)", name)
        if fused:
            thirds = np.array_split(tensor, 3)
            for part, third in zip(_PARTS, thirds, strict=True):
                plain[f"{fused[1]}.{part}.{fused[2]}"] = third
        elif re.fullmatch(f"{_TOKEN}|{_POSITION}", name):
            plain[name] = tensor.reshape(
                tensor.shape[np.argmin(np.equal(tensor.shape, 1)) :]
            )
        else:
            plain[name] = tensor
    return plain


# name in timm: width, layers, heads
TIMM = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
TIMM_POOLINGS = {"token": "cls", "avg": "mean"}
TIMM_SIZES = ("embed_dim", "patch_size", "depth", "num_heads", "mlp_ratio")
TIMM_OPTIONS = (*TIMM_SIZES, "class_token", "global_pool")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def timm_config(config: Mapping[str, Any]) -> ViTConfig:
    """Returns what timm's configuration describes; raises `InputError` where its
    architecture is not a plain ViT."""
    name = re.fullmatch(
        r"vit_([a-z]+)_patch(\d+)_(\d+)(?:\..*)?", config["architecture"]
    )
    if name is None:
        raise InputError(
            f"{config['architecture']!r} is not an architecture that is known: expected "
            "timm's vit_SIZE_patchN_PIXELS"
        )
    if name[1] not in TIMM:
        raise unknown("size of ViT", name[1], TIMM)
    given, pretrained = config.get("model_args", {}), config.get("pretrained_cfg", {})
    for option in given:
        if option not in TIMM_OPTIONS:
            raise unknown("timm model argument", option, TIMM_OPTIONS)
    width, layers, heads = TIMM[name[1]]
    width = given.get("embed_dim", width)
    pooling = given.get("global_pool", config.get("global_pool", "token"))
    if pooling not in TIMM_POOLINGS:
        raise unknown("timm pooling", pooling, TIMM_POOLINGS)
    return ViTConfig(
        image_size=pretrained.get("input_size", (3, int(name[3])))[-1],
        patch_size=given.get("patch_size", int(name[2])),
        channels=pretrained.get("input_size", (3,))[0],
        hidden_size=width,
        num_layers=given.get("depth", layers),
        num_heads=given.get("num_heads", heads),
        intermediate_size=int(width * given.get("mlp_ratio", 4)),
        class_token=given.get("class_token", True),
        pooling=TIMM_POOLINGS[pooling],
        num_classes=config["num_classes"] or 2,  # 0: the file has no head
        mean=tuple(pretrained.get("mean", (0.5,))),
        std=tuple(pretrained.get("std", (0.5,))),
    )


def hugging_face_config(
    config: Mapping[str, Any], images: Mapping[str, Any]
) -> ViTConfig:
    """Returns what a `vit` configuration describes; `images` is what its
    `preprocessor_config.json` says, {} if there is none."""
    return ViTConfig(
        **_sizes(config),
        epsilon=config["layer_norm_eps"],
        activation=config["hidden_act"],
        dropout=config.get("hidden_dropout_prob", 0.0),
        num_classes=len(config.get("id2label") or (0, 0)),
        **_pixels(images, (0.5,), (0.5,)),
    )


def clip_config(config: Mapping[str, Any], images: Mapping[str, Any]) -> ViTConfig:
    """Returns the image tower of a `clip` or `clip_vision_model` configuration, as
    `hugging_face_config`; what it leaves out is CLIP ViT-B/32's."""
    base: dict[str, Any] = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    base |= {"intermediate_size": 3072, "image_size": 224, "patch_size": 32}
    base |= {"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
    tower = base | dict(config.get("vision_config") or config)
    return ViTConfig(
        **_sizes(tower),
        epsilon=tower["layer_norm_eps"],
        activation=tower["hidden_act"],
        pre_norm=True,
        patch_bias=False,
        num_classes=2,
        **_pixels(images, CLIP_MEAN, CLIP_STD),
    )


def _pixels(images: Mapping[str, Any], mean: tuple, std: tuple) -> dict[str, Any]:
    if not images.get("do_normalize", True):
        return {"mean": (0.0,), "std": (1.0,)}
    given = images.get("image_mean", mean), images.get("image_std", std)
    return {"mean": tuple(given[0]), "std": tuple(given[1])}


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_size": _side(config["image_size"]),
        "patch_size": _side(config["patch_size"]),
        "channels": config.get("num_channels", 3),
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "intermediate_size": config["intermediate_size"],
    }


def _side(size: Any) -> int:
    """Returns a length in pixels that may be written as [height, width]."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise InputError(f"images and patches must be square, got {list(size)}")
    return sides.pop()


CLIP_TYPES = ("clip", "clip_vision_model")


def vit_family(
    images: Mapping[str, Any], config: Mapping[str, Any], options: Mapping[str, Any]
) -> Family:
    """Returns a ViT of Hugging Face, or CLIP's image tower."""
    if config["model_type"] == "vit":
        return _of_vit(hugging_face_config(config, images), options, VIT)
    return _of_vit(clip_config(config, images), options, CLIP)


def timm_family(config: Mapping[str, Any], options: Mapping[str, Any]) -> Family:
    """Returns a ViT of timm."""
    return _of_vit(timm_config(config), options, VIT)


def _of_vit(
    config: ViTConfig, options: Mapping[str, Any], names: Sequence[Name]
) -> Family:
    full = with_options(config, options, ("pooling", "dropout", "dtype"))
    return Family(vit(full, jax.random.key(0)), names, plain_tensors)

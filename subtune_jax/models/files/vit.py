"""Files of vision transformers: timm, torchvision, Hugging Face and CLIP.

One table reads the tensors of all four layouts; a configuration is timm's, or Hugging
Face's (`model_type` `vit`, `clip` or `clip_vision_model`). torchvision has none: write
one of the `vit` kind beside its tensors, and a `preprocessor_config.json` with ImageNet's
`image_mean` [0.485, 0.456, 0.406] and `image_std` [0.229, 0.224, 0.225].
"""

import math
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
from subtune_jax.models.files.entries import (
    CLIP,
    COMMON,
    PROCESSOR,
    VIT,
    require_known,
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

VIT_NAMES = [
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
        r"|logit_scale|(?:vision_model\.)?embeddings\.position_ids"
        r"|(?:vit\.)?embeddings\.mask_token|decoder\..*",  # of masked images
        "params/embeddings/position",
    ),
]


_HEAD = r"(?:head|heads\.head|classifier)"
# A classifier beside CLIP is not on its pooled token.
CLIP_NAMES = [*VIT_NAMES, unused(rf"{_HEAD}\..*", "params/head/kernel")]
VIT_NAMES += linear_names(_HEAD, "head")


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
TIMM_OPTIONS = (
    *("embed_dim", "patch_size", "depth", "num_heads", "mlp_ratio", "class_token"),
    *("global_pool", "num_classes", "in_chans", "img_size", "qkv_bias"),
)
# Rates of training, and what begins or takes images of other sizes.
TIMM_UNUSED = (
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate"),
    *("attn_drop_rate", "drop_path_rate", "weight_init", "fix_init", "pretrained"),
    *("dynamic_img_size", "dynamic_img_pad", "strict_img_size"),
)
# What we compute; `fc_norm` beside these is a question of the pooling.
TIMM_DEFAULTS = {
    **{"pos_embed": "learn", "final_norm": True, "proj_bias": True, "pre_norm": False},
    **{"qk_norm": False, "init_values": None, "reg_tokens": 0, "no_embed_class": False},
}
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
    given, pretrained = (
        _mapping(config, "model_args"),
        _mapping(config, "pretrained_cfg"),
    )
    width, layers, heads = TIMM[name[1]]
    width = given.get("embed_dim", width)
    pooling = given.get("global_pool", config.get("global_pool", "token"))
    if pooling not in TIMM_POOLINGS:
        raise unknown("timm pooling", pooling, TIMM_POOLINGS)
    _require_plain(given, pooling)
    channels, *sizes = pretrained.get("input_size", (3, int(name[3])))
    return ViTConfig(
        image_size=_side(given.get("img_size", sizes)),
        patch_size=_side(given.get("patch_size", int(name[2]))),
        channels=given.get("in_chans", channels),
        hidden_size=width,
        num_layers=given.get("depth", layers),
        num_heads=given.get("num_heads", heads),
        intermediate_size=int(width * given.get("mlp_ratio", 4)),
        class_token=given.get("class_token", True),
        qkv_bias=given.get("qkv_bias", True),
        pooling=TIMM_POOLINGS[pooling],
        num_classes=config["num_classes"] or 2,  # 0: the file has no head
        mean=tuple(pretrained.get("mean", (0.5,))),
        std=tuple(pretrained.get("std", (0.5,))),
    )


def _mapping(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return config.get(name) or {}


def _require_plain(given: Mapping[str, Any], pooling: str) -> None:
    """Raises `InputError` for arguments of timm by which a ViT is not a plain one."""
    # The final norm is that of the pooled features: the same after the class token.
    mean = pooling == "avg"
    defaults = TIMM_DEFAULTS | {"fc_norm": None if mean else given.get("fc_norm")}
    defaults |= {"fc_norm": True} if mean and given.get("fc_norm") else {}
    for name, value in defaults.items():
        if given.get(name, value) != value:
            raise InputError(
                f"timm model argument {name}={given[name]!r} is not known here: expected "
                f"{value!r}"
            )
    known = (*TIMM_OPTIONS, *TIMM_UNUSED, *defaults)
    require_known(given, known, "config.json", "timm model arguments")


def hugging_face_config(
    config: Mapping[str, Any], images: Mapping[str, Any]
) -> ViTConfig:
    """Returns what a `vit` or `vit_mae` configuration describes; `images` is what its
    `preprocessor_config.json` says, {} if there is none."""
    require_known(config, COMMON | VIT, "config.json")
    return ViTConfig(
        **_sizes(config),
        epsilon=config["layer_norm_eps"],
        activation=config["hidden_act"],
        dropout=config.get("hidden_dropout_prob", 0.0),
        qkv_bias=config.get("qkv_bias", True),
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
    require_known(config, COMMON | CLIP, "config.json")
    tower = base | dict(config.get("vision_config") or config)
    require_known(tower, COMMON | CLIP, "vision_config of config.json")
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
    """Returns mean and std, in [0, 1], of (f x - mean) / std with the factor f of a file."""
    require_known(images, PROCESSOR, "preprocessor_config.json")
    given = {
        "mean": images.get("image_mean", mean),
        "std": images.get("image_std", std),
    }
    if not images.get("do_normalize", True):
        given = {"mean": (0.0,), "std": (1.0,)}
    factor = images.get("rescale_factor", 1 / 255)
    if not images.get("do_rescale", True):
        factor = 1
    # The networks divide by 255; where the file has that too, its numbers stay as they are.
    scale = 1 if math.isclose(factor, 1 / 255) else 255 * factor
    return {
        name: tuple(v / scale for v in _numbers(value)) for name, value in given.items()
    }


def _numbers(value: Any) -> Sequence[float]:
    """Returns numbers by channel, of which a file may have one alone."""
    return value if isinstance(value, list | tuple) else (value,)


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
    if isinstance(size, dict):
        size = [*size.values()]
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise InputError(f"images and patches must be square, got {list(size)}")
    return sides.pop()


CLIP_TYPES = ("clip", "clip_vision_model")
VIT_TYPES = ("vit", "vit_mae")


def vit_family(
    images: Mapping[str, Any], config: Mapping[str, Any], options: Mapping[str, Any]
) -> Family:
    """Returns a ViT of Hugging Face, or CLIP's image tower."""
    if config["model_type"] in CLIP_TYPES:
        return _of_vit(clip_config(config, images), options, CLIP_NAMES)
    return _of_vit(hugging_face_config(config, images), options, VIT_NAMES)


def timm_family(config: Mapping[str, Any], options: Mapping[str, Any]) -> Family:
    """Returns a ViT of timm."""
    return _of_vit(timm_config(config), options, VIT_NAMES)


def _of_vit(
    config: ViTConfig, options: Mapping[str, Any], names: Sequence[Name]
) -> Family:
    full = with_options(config, options, ("pooling", "dropout", "dtype"))
    return Family(vit(full, jax.random.key(0)), names, plain_tensors)

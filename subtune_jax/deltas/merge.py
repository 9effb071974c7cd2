"""A tuned network as a full checkpoint, in the layout of the file that its base was
loaded from: what else reads that file reads this one."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from subtune_jax import tree
from subtune_jax.deltas.delta import Delta, Elements, flat
from subtune_jax.deltas.elements import swapped
from subtune_jax.deltas.extract import difference
from subtune_jax.deltas.file import load, save
from subtune_jax.errors import InputError
from subtune_jax.head import span
from subtune_jax.models.files.convert import Family, head_tensors, laid_back
from subtune_jax.models.files.folder import (
    INDEX,
    config_of,
    stored_by_file,
    wrapper,
)
from subtune_jax.models.load import body_fingerprint, class_names, family_of
from subtune_jax.network import Network, require_network

HEAD, OVERWRITTEN, CONFIG = "head.safetensors", "overwritten.delta", "config.json"
# Weights in other formats would be the base's beside ours: they are not copied.
COPIED = (".json", ".txt", ".md", ".model")
NAMES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}


class Merged(NamedTuple):
    """What `merge` wrote: the folder, the names of the tensors that differ from the
    base's, and the file that holds the head."""

    folder: Path
    changed: tuple[str, ...]
    head: Path


def merge(network: Network, folder: str | Path) -> Merged:
    """Writes a network that was tuned from `load_pretrained` as a full checkpoint.

    The tensors of the source's files are written name by name, in their stored types,
    with the network's values; those that no stage reads, and those that were not tuned,
    keep their bytes. The head goes in their place where the file has one and its class
    computes ours; else into `head.safetensors`, a linear layer of PyTorch (`weight`,
    `bias`) for the pooled features. Configuration, tokenizer and other texts are copied,
    with the task's class names in `config.json`. `overwritten.delta` holds what `restore`
    needs to take it all back. Raises `InputError` for a network of another origin, a
    source that has changed since, a value beyond its stored type, and a folder that
    exists.
    """
    require_network(network)
    source = network.source
    if source is None or not source.folder:
        raise InputError(
            "merge writes the layout of the file that a network was loaded from, and this "
            "one was not: write it with models.save"
        )
    options = {k: v for k, v in source.options.items() if k != "num_classes"}
    origin = Path(source.folder)
    files, family = stored_by_file(origin), family_of(origin, options)
    tensors = _joined(files)
    prefix = wrapper(tensors)
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if body_fingerprint(plain) != source.fingerprint:
        raise InputError(f"the weights in {origin} have changed since they were loaded")
    inside = _reads_our_head(network, family, plain, options)
    laid = laid_back(flat(network), plain, family, fresh=not inside)
    written = {prefix + name: tensor for name, tensor in laid.items()}
    with _new_folder(Path(folder)) as new:
        _write_weights(
            origin, new, {file: {n: written[n] for n in files[file]} for file in files}
        )
        _copy_texts(origin, new)
        _write_total_size(new, written)
        if inside:
            _write_config(new, network)
        else:
            _write_head(new / HEAD, network)
        text = (origin / CONFIG).read_text()
        overwritten = _overwritten(written, tensors, text)
        save(overwritten, new / OVERWRITTEN)
    changed = tuple(sorted(overwritten.whole.keys() | overwritten.elements.keys()))
    own = {prefix + name for name in head_tensors(plain, family)}
    homes = [file for file, held in files.items() if own & held.keys()]
    return Merged(Path(folder), changed, Path(folder) / (homes[0] if inside else HEAD))


def restore(merged: str | Path, folder: str | Path) -> Path:
    """Writes the base's checkpoint again, from a folder that `merge` wrote.

    Every tensor and `config.json` are as they were. Raises `InputError` for a folder that
    is not as `merge` left it, and where `folder` exists.
    """
    merged = Path(merged)
    delta = load(merged / OVERWRITTEN)
    files = stored_by_file(merged)
    tensors = _joined(files)
    if tree.fingerprint(tensors) != delta.about["base"]["arrays"]:
        raise InputError(f"the weights in {merged} are not those that were merged")
    tensors |= {name: np.array(array) for name, array in delta.whole.items()}
    for name, (_, places, values) in delta.elements.items():
        tensors[name], _ = swapped(tensors[name], places, values)
    with _new_folder(Path(folder)) as new:
        _write_weights(
            merged, new, {file: {n: tensors[n] for n in files[file]} for file in files}
        )
        _copy_texts(merged, new)
        _write_total_size(new, tensors)
        (new / CONFIG).write_text(delta.about["config"])
    return Path(folder)


def _joined(files: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: tensor for held in files.values() for name, tensor in held.items()}


def _reads_our_head(
    network: Network,
    family: Family,
    tensors: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
) -> bool:
    """Returns whether the class of a file computes the head on the features that we do."""
    names, last = head_tensors(tensors, family), network.stages[-1]
    plain = network.params[last.name].keys() == {"kernel", "bias"}
    spans = any("qa_outputs" in name for name in names)
    same_kind = (last.apply is span) == spans and not network.stats[last.name]
    return bool(names) and plain and same_kind and "pooling" not in options


def _overwritten(
    written: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray], config: str
) -> Delta:
    """Returns the delta from the merged file to the one that it was made of."""
    whole: dict[str, np.ndarray] = {}
    elements: dict[str, Elements] = {}
    for name, tensor in tensors.items():
        if written[name] is tensor:
            continue
        if written[name].shape != tensor.shape:
            whole[name] = tensor
            continue
        change = difference(written[name], tensor)
        if isinstance(change, Elements):
            elements[name] = change
        elif change is not None:
            whole[name] = change
    base = {
        "arrays": tree.fingerprint(dict(written)),
        "file": "",
        "name": "",
        "options": {},
    }
    return Delta(whole, elements, {}, {"base": base, "head": None, "config": config})


def _write_weights(
    origin: Path, new: Path, files: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    for file, tensors in files.items():
        with safe_open(origin / file, "np") as opened:
            metadata = opened.metadata()  # Hugging Face wants its format=pt
        whole = {n: np.asarray(tensor, order="C") for n, tensor in tensors.items()}
        save_file(whole, new / file, metadata)


def _write_total_size(new: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Corrects the bytes in the index of shards, where there is one."""
    if not (new / INDEX).exists():
        return
    index = json.loads((new / INDEX).read_text())
    if "total_size" in index.get("metadata", {}):
        index["metadata"]["total_size"] = sum(t.nbytes for t in tensors.values())
        (new / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _copy_texts(origin: Path, new: Path) -> None:
    for file in sorted(origin.rglob("*")):
        path = file.relative_to(origin)
        if file.is_file() and _is_copied(origin, path) and not (new / path).exists():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, new / path)


def _is_copied(origin: Path, path: Path) -> bool:
    """Returns whether a file belongs to the checkpoint, and is not written anew."""
    folders = [*path.parents][:-1]
    # A folder of the source may be another merge, or this one under its temporary name.
    other = any((origin / folder / OVERWRITTEN).exists() for folder in folders)
    hidden = any(part.startswith(".") for part in path.parts)
    # A module of sentence-transformers has weights of its own in its folder.
    kinds = (*COPIED, ".safetensors") if folders else COPIED
    return path.suffix in kinds and not (other or hidden)


def _write_config(new: Path, network: Network) -> None:
    """Writes the task's classes into `config.json`, where they are not those of the base."""
    config, count = config_of(new), len(network.params[network.stages[-1].name]["bias"])
    names = () if network.source is None else network.source.classes
    if names and len(names) != count:
        raise InputError(
            f"the network has {count} outputs and {len(names)} class names"
        )
    before = config.get("num_classes", len(config.get("id2label") or (0, 0)))
    if count == before and names == class_names(config):
        return
    if "num_classes" in config:
        config |= {"num_classes": count}
        listed = "label_names" if "pretrained_cfg" in config else "class_names"
        config.pop(listed, None)
        config |= {listed: list(names)} if names else {}
    else:
        labels = names or tuple(f"LABEL_{i}" for i in range(count))
        config["id2label"] = {str(i): name for i, name in enumerate(labels)}
        config["label2id"] = {name: i for i, name in enumerate(labels)}
    (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _write_head(file: Path, network: Network) -> None:
    """Writes the head as a linear layer of PyTorch, and its normalization as `norm.*`."""
    last = network.stages[-1].name
    leaves = tree.flatten(network.params[last]) | tree.flatten(network.stats[last])
    tensors = {}
    for path, leaf in leaves.items():
        *above, ending = path.split("/")
        name = ".".join([*above, NAMES.get(ending, ending)]).replace("kernel", "weight")
        array = np.asarray(leaf)
        tensors[name] = np.asarray(array.T if ending == "kernel" else array, order="C")
    names = () if network.source is None else network.source.classes
    save_file(tensors, file, {"format": "pt", "classes": json.dumps(names)})


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder that gets its name once it is whole."""
    if folder.exists():
        raise InputError(f"{folder} exists: give a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from None
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(folder)
    except SafetensorError as error:  # its own class for a disk that is full
        raise InputError(f"cannot write {folder}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

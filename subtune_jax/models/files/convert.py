"""Name tables: how tensors of a file (PyTorch layout) become leaves of ours."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, listed, unknown
from subtune_jax.network import Network


class Name(NamedTuple):
    """A tensor name as a regular expression, our path for it, and an axis order.

    `path` may refer to groups of the expression, and begins with `params/` or `stats/`.
    A tensor that is not `used` may only stand beside the leaf at that path.
    """

    pattern: str
    path: str
    axes: tuple[int, ...] | None = None
    used: bool = True


CONV = (2, 3, 1, 0)  # OIHW to HWIO
LINEAR = (1, 0)  # (out, in) to (in, out)
HEAD = r"(?:fc|linear|classifier|qa_outputs|head|heads\.head)(?:\.out_proj)?\.(?:weight|bias)"

HINTS = {  # where a path is missing
    "params/head/": "num_classes=N gives a fresh head, 0 the features",
    "params/pooler/dense": "pooling='mean' or 'cls' does without a pooler",
}


def norm_names(pattern: str, path: str) -> list[Name]:
    return [
        Name(rf"{pattern}\.weight", f"params/{path}/scale"),
        Name(rf"{pattern}\.bias", f"params/{path}/bias"),
        Name(rf"{pattern}\.running_mean", f"stats/{path}/mean"),
        Name(rf"{pattern}\.running_var", f"stats/{path}/var"),
        Name(rf"{pattern}\.num_batches_tracked", f"stats/{path}/mean", used=False),
    ]


_ENDINGS = {"weight": ("kernel", LINEAR), "bias": ("bias", None)}


def linear_names(pattern: str, path: str, used: bool = True) -> list[Name]:
    """Returns the entries of a linear layer."""
    return [
        Name(rf"{pattern}\.{theirs}", f"params/{path}/{ours}", axes, used)
        for theirs, (ours, axes) in _ENDINGS.items()
    ]


def layer_norm_names(pattern: str, path: str) -> list[Name]:
    """Returns the entries of a LayerNorm, under its old names too."""
    return [
        Name(rf"{pattern}\.(?:weight|gamma)", f"params/{path}/scale"),
        Name(rf"{pattern}\.(?:bias|beta)", f"params/{path}/bias"),
    ]


def unused(pattern: str, beside: str) -> Name:
    """Returns the entry of tensors that a network with a leaf `beside` does without."""
    return Name(pattern, beside, used=False)


def filled(
    network: Network,
    tensors: Mapping[str, np.ndarray],
    table: Sequence[Name],
    file: str,
    fresh: str | None = None,
) -> Network:
    """Returns the network with the values of `tensors`, all of them and no others.

    `fresh` names a stage that keeps the network's own values, whatever the file has for
    it. Raises `InputError` that names missing, unexpected and misshapen tensors, the first
    ten of each.
    """
    wanted = tree.flatten({"params": network.params, "stats": network.stats})
    kept = {path: leaf for path, leaf in wanted.items() if path.split("/")[1] == fresh}
    wanted = {path: leaf for path, leaf in wanted.items() if path not in kept}
    found: dict[str, np.ndarray] = {}
    unexpected, misshapen = [], []
    for name, tensor in tensors.items():
        ours = _entry(name, table)
        path = None if ours is None else ours.path
        if path in kept or (path or "").split("/")[1:2] == [fresh]:
            continue
        if ours is None or path not in wanted or (ours.used and path in found):
            unexpected.append(name)
        elif ours.used:
            value = _laid_out(tensor, ours.axes)
            found[path], shape = value, wanted[path].shape
            if value.shape != shape or value.dtype.kind not in "fV":
                given = f"{name} {value.dtype}{list(value.shape)}"
                misshapen.append(f"{given} (expected float{list(shape)} in our layout)")
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": unexpected,
        "misshapen": misshapen,
    }
    said = [f"{kind}: {listed(names)}" for kind, names in problems.items() if names]
    said += [h for p, h in HINTS.items() if any(p in n for n in problems["missing"])]
    if said:
        raise InputError(f"{file} does not fit the network: {'; '.join(said)}")
    values = tree.map_with_path(
        lambda path, leaf: (
            np.asarray(found[path], leaf.dtype) if path in found else leaf
        ),
        {"params": network.params, "stats": network.stats},
    )
    return network._replace(**values)


def _entry(name: str, table: Sequence[Name]) -> Name | None:
    """Returns the table's entry for a tensor, its path filled in."""
    for entry in table:
        match = re.fullmatch(entry.pattern, name)
        if match:
            return entry._replace(path=match.expand(entry.path))
    return None


def _laid_out(tensor: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    fits = axes is not None and tensor.ndim == len(axes)
    return tensor.transpose(axes) if fits else tensor


def laid_back(
    leaves: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    family: "Family",
    fresh: bool,
) -> dict[str, np.ndarray]:
    """Returns a file's tensors with the values of leaves, by path, in their place.

    A tensor keeps its stored type, and its very bytes where its leaves have its values;
    one that no leaf was read from stays. fresh: the head's stay too. Raises `InputError`
    for a leaf of another shape, the head's outputs apart.
    """
    read = family.plain(tensors)
    return {
        name: _laid_back(name, tensor, leaves, family, read, fresh)
        for name, tensor in tensors.items()
    }


def _laid_back(
    name: str,
    tensor: np.ndarray,
    leaves: Mapping[str, Any],
    family: "Family",
    read: Mapping[str, np.ndarray],
    fresh: bool,
) -> np.ndarray:
    parts = []
    # One tensor of a file may be several of ours (a fused projection), one or none.
    for part, values in family.plain({name: tensor}).items():
        entry = _entry(part, family.names)
        if entry is None or not entry.used or part not in read:
            return tensor
        if fresh and entry.path.startswith("params/head/"):
            return tensor
        if entry.path not in leaves:
            raise InputError(
                f"the network has no {entry.path!r}, which {name} holds: give the whole "
                "network, not a suffix of it"
            )
        leaf = np.asarray(leaves[entry.path])
        axes = None if entry.axes is None else np.argsort(entry.axes)
        new = leaf if axes is None else leaf.transpose(axes)
        same_rows = new.shape[1:] == values.shape[1:]
        if new.shape != values.shape and not ("/head/" in entry.path and same_rows):
            raise InputError(
                f"{name} is {list(values.shape)} in the file and {list(new.shape)} in the "
                "network"
            )
        parts.append(new)
    if not parts:
        return tensor
    whole = np.concatenate(parts)
    whole = whole.reshape(tensor.shape) if whole.size == tensor.size else whole
    if tensor.astype(whole.dtype).tobytes() == whole.tobytes():
        return tensor
    with np.errstate(over="ignore"):
        stored = whole.astype(tensor.dtype)
    if (
        np.isfinite(whole.astype(np.float32)).sum()
        > np.isfinite(stored.astype(np.float32)).sum()
    ):
        raise InputError(
            f"{name} has values beyond {tensor.dtype}, its type in the file"
        )
    return stored


def head_tensors(tensors: Iterable[str], family: "Family") -> list[str]:
    """Returns the names of a file's tensors that are read into the head."""
    entries = {name: _entry(name, family.names) for name in tensors}
    return [
        name
        for name, entry in entries.items()
        if entry and entry.used and entry.path.startswith("params/head/")
    ]


class Family(NamedTuple):
    """A network to fill, and the names of its tensors in files. `plain` lays tensors out
    as the names have them."""

    network: Network
    names: Sequence[Name]
    plain: Callable = dict


def without_values(make: Callable[[], Family]) -> Family:
    """Returns a family whose network has shapes in place of its random weights, which a
    file's take the place of: to draw and to compile them takes seconds."""
    families = []

    def build() -> Any:
        families.append(make())
        network = families[0].network
        return network.params, network.stats

    params, stats = jax.eval_shape(build)
    family = families[0]
    return family._replace(network=family.network._replace(params=params, stats=stats))


def with_options(
    config: Any, options: Mapping[str, Any], allowed: Sequence[str]
) -> Any:
    """Returns the configuration with options; raises `InputError` for one not allowed."""
    for name in options:
        if name not in allowed:
            raise unknown("option", name, allowed)
    return config._replace(**options)


RESNET_BODY = [  # the stem and the blocks' convolutions, as torchvision names them
    Name(r"conv1\.weight", "params/stem/conv/kernel", CONV),
    *norm_names("bn1", "stem/norm"),
    Name(
        r"layer(\d)\.(\d+)\.conv(\d)\.weight",
        r"params/block\1_\2/conv\3/kernel",
        CONV,
    ),
    *norm_names(r"layer(\d)\.(\d+)\.bn(\d)", r"block\1_\2/norm\3"),
]

"""Names of classes: labels of a data set by the outputs of a network."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError, listed
from subtune_jax.network import Network, require_network


def match_classes(data: Dataset, network: Network) -> Dataset:
    """Returns the data with labels that are the network's outputs of the same names.

    Names are compared as they are, then without case and separators: `Not entailment` is
    `not_entailment`. The data are returned as they are where they or the outputs have no
    names but numbers. Raises `InputError` with both lists for a name that no output has, or
    two have, and for labels that are not the numbers of their names.
    """
    require_network(network)
    own = () if network.source is None else network.source.classes
    if not named(data.classes) or not own or tuple(own) == tuple(data.classes):
        return data
    outputs, names = list(own), list(data.classes)
    if any(outputs.count(name) != 1 for name in names):
        outputs, names = [*map(plain, own)], [*map(plain, data.classes)]
    once = len(set(names)) == len(names)
    if not once or any(outputs.count(name) != 1 for name in names):
        raise different_classes(data.classes, own)
    y = np.asarray(data.y)
    whole = y.ndim == 1 and y.dtype.kind in "iu"
    if not whole or (len(y) and not 0 <= y.min() <= y.max() < len(names)):
        raise InputError(
            f"labels must be the numbers of their {len(names)} names, got "
            f"{y.dtype}{list(y.shape)} from {y.min()} to {y.max()}"
        )
    places = np.array([outputs.index(name) for name in names], np.int32)
    return data._replace(y=places[y], classes=tuple(own))


def named(classes: Sequence[str]) -> bool:
    """Returns whether labels have names that are not their numbers, 0, 1 and so on."""
    return list(classes) != [str(i) for i in range(len(classes))]


def named_outputs(network: Network, data: Dataset) -> Network:
    """Returns a network of as many outputs as the data have names, with these names where
    its outputs have none: its source carries them to what is kept and served."""
    source = network.source
    if source is None or source.classes or _outputs(network) != len(data.classes):
        return network
    return network._replace(source=source._replace(classes=tuple(data.classes)))


def require_matched(data: Dataset, network: Network) -> None:
    """Raises `InputError` where labels have names, and the outputs have others there, or
    are more or fewer."""
    own = () if network.source is None else network.source.classes
    if not named(data.classes):
        return
    if own and [*map(plain, own)] != [*map(plain, data.classes)]:
        raise different_classes(data.classes, own)
    outputs = _outputs(network)
    if not own and outputs not in (None, len(data.classes)):
        raise InputError(
            f"the data have {len(data.classes)} classes ({listed(data.classes)}), and the "
            f"network {outputs} outputs: if these are a part that lacks classes, give the "
            "names of all (class_names=, classes=); data._replace(classes=()) takes the "
            "labels as numbers"
        )


def _outputs(network: Network) -> int | None:
    """Returns how many outputs a head has, where it is a linear one."""
    head = network.params[network.stages[-1].name]
    kernel: Any = head.get("kernel") if isinstance(head, dict) else None
    return kernel.shape[-1] if getattr(kernel, "ndim", 0) == 2 else None


def different_classes(names: tuple[str, ...], own: tuple[str, ...]) -> InputError:
    """Returns the error for data of other classes than the network's head."""
    return InputError(
        f"the data have the classes {listed(names)}, and the network's head has "
        f"{listed(own)}: data.match_classes(data, network) numbers the same names alike, "
        "replace_head gives a head for others, and data._replace(classes=()) takes the "
        "labels as numbers"
    )


def plain(name: str) -> str:
    """Returns a name without case, with one space for what separates its words."""
    return re.sub(r"[\s_]+|(?<=\w)-(?=\w)", " ", name).strip().lower()

"""Names of classes: labels of a data set by the outputs of a network."""

import re

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError, listed
from subtune_jax.network import Network, require_network


def match_classes(data: Dataset, network: Network) -> Dataset:
    """Returns the data with labels that are the network's outputs of the same names.

    Names are compared without case and punctuation: `Not entailment` is `not_entailment`.
    The data are returned as they are where they or the outputs have no names. Raises
    `InputError` with both lists for a name that no output has, or two have.
    """
    require_network(network)
    own = () if network.source is None else network.source.classes
    if not data.classes or not own:
        return data
    outputs = [*map(plain, own)]
    if any(outputs.count(name) != 1 for name in map(plain, data.classes)):
        raise different_classes(data.classes, own)
    places = np.array([outputs.index(plain(name)) for name in data.classes], np.int32)
    return data._replace(y=places[data.y], classes=tuple(own))


def named_outputs(network: Network, data: Dataset) -> Network:
    """Returns a network of as many outputs as the data have names, with these names where
    its outputs have none: its source carries them to what is kept and served."""
    head = network.params[network.stages[-1].name]
    kernel = head.get("kernel") if isinstance(head, dict) else None
    outputs = 0 if kernel is None else kernel.shape[-1]
    source = network.source
    if source is None or source.classes or outputs != len(data.classes):
        return network
    return network._replace(source=source._replace(classes=tuple(data.classes)))


def require_matched(data: Dataset, network: Network) -> None:
    """Raises `InputError` where labels have names, and the outputs have others there."""
    own = () if network.source is None else network.source.classes
    if not data.classes or not own or [*map(plain, own)] == [*map(plain, data.classes)]:
        return
    raise different_classes(data.classes, own)


def different_classes(names: tuple[str, ...], own: tuple[str, ...]) -> InputError:
    """Returns the error for data of other classes than the network's head."""
    return InputError(
        f"the data have the classes {listed(names)}, and the network's head has "
        f"{listed(own)}: data.match_classes(data, network) numbers the same names alike, "
        "and replace_head gives a head for others"
    )


def plain(name: str) -> str:
    """Returns a name without case and punctuation."""
    return re.sub(r"[\W_]+", " ", name).strip().lower()

"""Our own networks in our own layout, as one safetensors file."""

import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.network import Network, require_network


def save(network: Network, file: str | Path) -> None:
    """Writes parameters and statistics, to a temporary name first.

    Raises `InputError` when the file cannot be written.
    """
    file = Path(file)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    # safetensors writes memory as it lies, and a loaded kernel lies transposed.
    tensors = {k: np.asarray(v, order="C") for k, v in _tensors(network).items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {file}: {error}") from None


def restore(network: Network, file: Path) -> Network:
    """Returns `network` with the values of a file that `save` wrote for its like.

    Raises `InputError` when names or shapes differ, or the file is damaged.
    """
    expected = _tensors(network)
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors raises its own class for a damaged header
        raise InputError(
            f"{file} is not a readable safetensors file: {error}"
        ) from None
    if {k: v.shape for k, v in tensors.items()} != {
        k: v.shape for k, v in expected.items()
    }:
        raise InputError(f"{file} holds another network than the one to restore")
    filled = tree.map_with_path(lambda name, _: tensors[name], _trees(network))
    return network._replace(**filled)


def _trees(network: Network) -> dict:
    require_network(network)
    return {"params": network.params, "stats": network.stats}


def _tensors(network: Network) -> dict:
    return tree.flatten(_trees(network))

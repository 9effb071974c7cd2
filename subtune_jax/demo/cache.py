"""Where the pretrained demo networks are kept."""

import os
from collections.abc import Callable
from pathlib import Path

from subtune_jax.models.save import restore, save
from subtune_jax.network import Network


def cached(name: str, network: Network, train: Callable[[], Network]) -> Network:
    """Returns `network` with the values of the cached file; trains and saves it first if
    there is none. The folder is $XDG_CACHE_HOME/subtune_jax (default ~/.cache)."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    file = home / "subtune_jax" / f"{name}.safetensors"
    if not file.exists():
        save(train(), file)
    return restore(network, file)

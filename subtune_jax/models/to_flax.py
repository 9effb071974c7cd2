"""Out again: a network's values in your own nnx module, Linen variables or Orbax folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.models.from_flax import WHOLE
from subtune_jax.models.nnx_stages import filled
from subtune_jax.network import Network, require_network


def to_nnx(network: Network, modules: Any) -> Any:
    """Returns copies of the modules that `from_nnx` took, with the network's values.

    modules: an `nnx.Module`, or the dict of them; they are left as they are. A stage whose
    head was replaced by one of another size needs a module of that size in its place.
    Raises `InputError` for other stages, paths or shapes.
    """
    require_network(network)
    several = isinstance(modules, Mapping)
    given = dict(modules) if several else {WHOLE: modules}
    names = [stage.name for stage in network.stages]
    if list(given) != names:
        raise InputError(
            f"the network has the stages {', '.join(names)} and the modules are "
            f"{', '.join(given)}: give a module for each, in their order"
        )
    for name, module in given.items():
        if not isinstance(module, nnx.Module):
            raise InputError(
                f"stage {name!r} is a {type(module).__name__}: expected an nnx.Module"
            )
    copies = {
        name: filled(name, module, network.params[name], network.stats[name])
        for name, module in given.items()
    }
    return copies if several else copies[WHOLE]


def to_linen(network: Network) -> dict[str, Any]:
    """Returns the variables of a network that `from_linen` made: `params` and, if any,
    `batch_stats`. Raises `InputError` for a network of other stages."""
    require_network(network)
    if set(network.params) != {WHOLE}:
        raise InputError(
            f"the network has the stages {', '.join(network.params)}: expected one that "
            "from_linen made"
        )
    stats = network.stats[WHOLE]
    return {"params": network.params[WHOLE]} | ({"batch_stats": stats} if stats else {})


def to_orbax(network: Network, folder: str | Path) -> None:
    """Writes parameters and statistics as an Orbax checkpoint, `params` and `stats`.

    Raises `InputError` where the folder is there already or cannot be written.
    """
    require_network(network)
    from orbax.checkpoint.experimental import v1 as ocp

    folder = Path(folder).absolute()
    if folder.exists():
        raise InputError(f"{folder} is there already: give a folder that is not")
    try:
        ocp.save(folder, _trees(network))
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror or error}"
        ) from None


def from_orbax(network: Network, folder: str | Path) -> Network:
    """Returns the network with the values of an Orbax checkpoint that `to_orbax` wrote.

    Every leaf comes in the type and on the devices of the network's leaf, whatever mesh
    it was written from. Raises `InputError` for no checkpoint, or one of other leaves.
    """
    require_network(network)
    from orbax.checkpoint.experimental import v1 as ocp

    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise InputError(f"there is no checkpoint {folder}")
    like = jax.tree.map(_described, _trees(network))
    try:
        stored = tree.flatten(ocp.metadata(folder).metadata)
    except Exception as error:  # Orbax has many
        line = str(error).strip().splitlines()[0]
        raise InputError(f"{folder} is not a checkpoint: {line}") from None
    # Before it is loaded: a load that fails half-way leaves threads of Orbax behind.
    ours, theirs = (
        {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}
        for leaves in (tree.flatten(like), stored)
    )
    differing = sorted(p for p in ours | theirs if ours.get(p) != theirs.get(p))
    if differing:
        path = differing[0]
        raise InputError(
            f"{folder} is not a checkpoint of the network: {path!r} is "
            f"{theirs.get(path, 'absent')} in it and {ours.get(path, 'absent')} in the "
            "network"
        )
    values = ocp.load(folder, like)
    return network._replace(
        params={name: values["params"].get(name, {}) for name in network.params},
        stats={name: values["stats"].get(name, {}) for name in network.stats},
    )


def _trees(network: Network) -> dict[str, Any]:
    """Returns what is written: stages without leaves are left out, as Orbax does."""
    both = {"params": network.params, "stats": network.stats}
    return {
        k: {n: v for n, v in t.items() if jax.tree.leaves(v)} for k, t in both.items()
    }


def _described(leaf: Any) -> Any:
    """Returns what Orbax is to load: of an array of NumPy, the array's like."""
    if not isinstance(leaf, jax.Array):
        return np.zeros(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

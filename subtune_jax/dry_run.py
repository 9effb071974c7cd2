"""A forward pass without numbers: what a network cannot take is a sentence, and early."""

from functools import lru_cache, partial
from typing import Any

import jax

from subtune_jax import function_identity
from subtune_jax.errors import InputError
from subtune_jax.network import Network, Stage, require_network


def output_shapes(network: Network, x: Any, code: str | None = None) -> Any:
    """Returns the outputs for one row of a batch `x`, as `jax.ShapeDtypeStruct`s with that
    row first; nothing is computed. code: a fingerprint of the stages, where the caller has
    one (it takes as long as a small step).

    Raises `InputError` for what is not a network, and naming the first stage that cannot
    take its input. Under `cause`, the exception that the stage raised.
    """
    require_network(network)
    state = jax.tree.map(_shape, (network.params, network.stats))
    row = jax.tree.map(lambda leaf: _shape(leaf, (1, *leaf.shape[1:])), x)
    leaves, structure = jax.tree.flatten((*state, row))
    code = code or function_identity.fingerprint(network.stages)
    return _output_shapes(network.stages, code, structure, tuple(leaves))


def _shape(leaf: Any, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape if shape is None else shape, leaf.dtype)


@lru_cache(256)  # a network is asked again by every fit and every evaluation
def _output_shapes(
    stages: tuple[Stage, ...], code: str, structure: Any, leaves: tuple
) -> Any:
    del code  # part of the key: what the stages read may have changed
    params, stats, x = jax.tree.unflatten(structure, leaves)
    for name, apply in stages:
        run = partial(apply, batch_stats=False, key=None)
        try:
            y, _ = jax.eval_shape(run, params[name], stats[name], x)
        except InputError:
            raise
        except Exception as error:  # whatever the stage's own code raises
            raise InputError(
                f"stage {name!r} cannot take its input, {described(x)}: {_line(error)}"
            ) from error
        x = y
    return x


def described(x: Any) -> str:
    """Returns the shapes and types of a tree of arrays: `float32[2, 5]`."""
    flat = jax.tree.leaves_with_path(x)
    named = [
        f"{jax.tree_util.keystr(keys, simple=True)} {_type(leaf)}".strip()
        for keys, leaf in flat
    ]
    return ", ".join(named) or "nothing"


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _line(error: Exception) -> str:
    """Returns the type of an exception and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__

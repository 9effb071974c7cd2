"""A forward pass without numbers: what a network cannot take is a sentence, and early."""

from functools import partial
from typing import Any

import jax

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.network import Network, Stage, require_network
from subtune_jax.programs import traces_of


def output_shapes(network: Network, x: Any) -> Any:
    """Returns the outputs for one row of a batch `x`, as `jax.ShapeDtypeStruct`s with that
    row first; nothing is computed. Shapes are traced once for a function object: a stage
    that gives other shapes for the same input needs a new one.

    Raises `InputError` for what is not a network, and naming the first stage that cannot
    take its input. Under `cause`, the exception that the stage raised.
    """
    require_network(network)
    row = jax.tree.map(lambda leaf: _shape(leaf, (1, *leaf.shape[1:])), x)

    def outputs() -> Any:
        x = row
        for stage in network.stages:
            own = network.params[stage.name], network.stats[stage.name]
            x = shapes_after(stage, *own, x)
        return x

    # All at once: a network is asked again by every fit, evaluation and prediction.
    names = tuple(stage.name for stage in network.stages)
    shapes = tree.shapes((network.params, network.stats, row))
    applies = [stage.apply for stage in network.stages]
    traces = traces_of(*applies, lasting=True)
    return traces.once(("outputs", names), applies, outputs, *shapes)


def shapes_after(stage: Stage, params: Any, stats: Any, x: Any) -> Any:
    """Returns the shapes and types of a stage's outputs: stored statistics, no dropout.
    Raises `InputError` where it cannot take its input."""
    shapes = jax.tree.map(_shape, (params, stats, x))
    run = partial(stage.apply, batch_stats=False, key=None)

    def traced() -> Any:
        try:
            return jax.eval_shape(run, *shapes)[0]
        except InputError:
            raise
        except Exception as error:  # whatever the stage's own code raises
            raise InputError(
                f"stage {stage.name!r} cannot take its input, {described(x)}: "
                f"{_line(error)}"
            ) from error

    traces = traces_of(stage.apply, lasting=True)
    return traces.once("shapes", stage.apply, traced, *tree.shapes(shapes))


def _shape(leaf: Any, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape if shape is None else shape, leaf.dtype)


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

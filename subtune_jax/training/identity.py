"""What a run is: fingerprints by which a checkpoint knows the run it belongs to."""

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data.batches import Data
from subtune_jax.training.plan import Plan


def identity(plan: Plan) -> dict[str, str]:
    """Returns fingerprints of the base (without its head) and of the run's recipe.

    The recipe is what the result depends on: labels, rules, functions with what they
    close over (see `said`), data (of the inputs, up to 64 rows), order, the head. What
    `validate` does is not known here.
    """
    network, head = plan.network, plan.network.stages[-1].name
    body = {name: leaves for name, leaves in network.params.items() if name != head}
    settings = [
        [sorted(tree.flatten(phase.labels).items()) for phase in plan.phases],
        [(phase.rules, phase.steps, phase.reset_moments) for phase in plan.phases],
        [said(phase.multipliers) for phase in plan.phases],
        [said(phase.tuning) for phase in plan.phases],
        [(p.updates, p.accumulate, sorted(p.batch_stats)) for p in plan.programs],
        [said(program.loss) for program in plan.programs],
        said(network.stages),
        (plan.batch_size, plan.drop, plan.seed, said(plan.augment)),
        tree.fingerprint({"key": jax.random.key_data(plan.key), **_sampled(plan.data)}),
        tree.fingerprint(network.params[head]),
    ]
    return {
        "base": tree.fingerprint({"params": body, "stats": network.stats}),
        "recipe": hashlib.sha256(repr(settings).encode()).hexdigest(),
    }


def said(value: Any, within: tuple[int, ...] = ()) -> str:
    """Returns what a value is, the same in every process.

    Of an array a fingerprint; of a function its name, defaults and what it closes over
    (its code may change, but that of a lambda, which has no name); of an object its
    attributes, or its `repr` without addresses.
    """
    if id(value) in within:
        return "itself"
    inner = partial(said, within=(*within, id(value)))
    if isinstance(value, np.ndarray | jax.Array):
        return inner(value.tolist()) if _holds_objects(value) else _digest(value)
    if isinstance(value, Mapping):
        items = sorted(f"{inner(k)}: {inner(v)}" for k, v in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inner, value)))}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(inner, value))}]"
    plain = _unwrapped(value)
    held = _held(plain)
    return _name(plain) if held is None else f"{_name(plain)}{inner(held)}"


def _unwrapped(value: Any) -> Any:
    """Returns the function that `jax.jit` or `functools.cache` made an object of; a function
    itself is whole: what it wraps is among what it closes over."""
    while not inspect.isfunction(value) and callable(value):
        if not hasattr(value, "__wrapped__"):
            break
        value = value.__wrapped__
    return value


def _held(value: Any) -> list | dict | None:
    """Returns what makes a value another than those of its name; `None` if nothing."""
    if isinstance(value, type):
        return None
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if inspect.isfunction(value):
        code = value.__code__ if value.__name__ == "<lambda>" else None
        code = code and (code.co_code.hex(), code.co_consts, code.co_names)
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [code, value.__defaults__, value.__kwdefaults__, cells]
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    plain = type(value).__repr__ is object.__repr__
    return getattr(value, "__dict__", None) if plain else None


def _name(value: Any) -> str:
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    if _held(value) is not None:
        return type(value).__qualname__
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is filled later, or never
        return "empty"


def _holds_objects(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.hasobject


def _digest(array: Any) -> str:
    keys = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return tree.fingerprint({"": jax.random.key_data(array) if keys else array})


def _sampled(data: Data) -> dict:
    rows = np.unique(np.linspace(0, len(data.y) - 1, 64).astype(int))
    return {"x": data.take(rows).x, "y": np.asarray(data.y)}

"""What a run is: fingerprints by which a checkpoint knows the run it belongs to."""

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
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
    (its code may change); of any other object its `repr` without addresses.
    """
    if id(value) in within:
        return "itself"
    inner = partial(said, within=(*within, id(value)))
    if isinstance(value, np.ndarray | jax.Array):
        keys = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        return tree.fingerprint({"": jax.random.key_data(value) if keys else value})
    if isinstance(value, Mapping):
        items = sorted(f"{inner(k)}: {inner(v)}" for k, v in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inner, value)))}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(inner, value))}]"
    if isinstance(value, partial):
        return inner([value.func, value.args, value.keywords])
    plain = inspect.unwrap(value) if callable(value) else value
    if inspect.isfunction(plain):
        return f"{plain.__module__}.{plain.__qualname__}{inner(_held(plain))}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _held(f: Callable) -> list[Any]:
    cells = [cell.cell_contents for cell in f.__closure__ or ()]
    return [f.__defaults__, f.__kwdefaults__, cells]


def _sampled(data: Data) -> dict:
    rows = np.unique(np.linspace(0, len(data.y) - 1, 64).astype(int))
    return {"x": data.take(rows).x, "y": np.asarray(data.y)}

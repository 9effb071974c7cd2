"""Low-rank tuning: the change of a kernel is a product of two small matrices."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive, require_whole
from subtune_jax.network import Labels, Params
from subtune_jax.tuning.axes import output_axes
from subtune_jax.tuning.method import Parts, Tuning, leaf_groups, no_penalty
from subtune_jax.tuning.subset import init as selected


class Factors(NamedTuple):
    """A low-rank change of a kernel: scale * a b, a [rows, rank] and b [rank, outputs]."""

    a: Any
    b: Any
    scale: float


def lora(
    rank: int,
    alpha: float | None = None,
    *,
    dropout: float = 0.0,
    axes: Mapping[str, int] = {},
    free: Sequence[str] = ("head",),
) -> Tuning:
    """Returns the tuning W <- W_0 + (alpha / rank) A B of every kernel outside the `free`
    groups.

    A kernel is a leaf of two axes or more. Its last axis is that of the outputs (see
    `output_axes` for those of three axes, which `axes` is for), and all others together are
    its rows: A is [rows, rank] and B [rank, outputs]. A is drawn uniformly from
    -1 / sqrt(rows) to 1 / sqrt(rows), and B is 0: the pretrained function. alpha: default
    `rank`, a factor of 1 (PEFT: 8 at a default rank of 8). dropout: the share of a kernel's
    inputs that A B does not see in a step; one draw for the batch, since the product is made
    before inputs are there (PEFT draws for every example). Both are values, so that others
    do not compile again. Selected leaves that are no kernels (biases, scales) rest, those
    of `free` groups train as they are.

    Of Hu et al. 2021 (recalled; A is drawn as in its public code, recalled too). In the
    trainable tree the factors stand at `PATH/a` and `PATH/b`. Raises `InputError` for a rank
    that is not a positive whole number, an alpha that is not positive, a dropout that is
    not from 0 up to 1, and a kernel whose outputs are not known.
    """
    require_whole(rank=rank)
    alpha = rank if alpha is None else alpha
    require_positive(alpha=alpha)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be from 0 up to 1, got {dropout!r}")
    values = {"lora": alpha / rank}
    if dropout:
        values["lora_dropout"] = dropout

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Parts:
        half, groups = selected(params, labels).trainable, tree.flatten(labels)
        outputs = {
            path: output_axes(path, leaf, axes)
            for path, leaf in tree.flatten(half).items()
            if groups[path] not in free
        }
        kernels = [path for path, count in outputs.items() if count]
        key = jax.random.key(0) if key is None else key
        keys = dict(
            zip(kernels, jax.random.split(key, len(kernels) or 1), strict=False)
        )

        def part(path: str, leaf: jax.Array) -> Any:
            if path in keys:
                return _factors(keys[path], leaf, rank, outputs[path])
            return leaf if groups[path] in free else None

        # These belong to no leaf: one number for all of them.
        return Parts(tree.map_with_path(part, half), jax.tree.map(jnp.float32, values))

    return Tuning(init, leaf_groups, materialize, no_penalty)


def materialize(
    trainable: Params, fixed: Any, params: Params, key: jax.Array | None = None
) -> Params:
    """Returns the base with the products added to its kernels, and free leaves in place;
    with a key and `lora_dropout`, without some inputs."""
    values = tree.flatten(trainable)
    paths = [path for path in tree.flatten(params) if f"{path}/a" in values]
    keys: dict[str, jax.Array] = {}
    if key is not None and "lora_dropout" in fixed and paths:
        keys = dict(zip(paths, jax.random.split(key, len(paths)), strict=True))

    def whole(path: str, leaf: jax.Array) -> jax.Array:
        if path not in paths:
            return values.get(path, leaf)
        a, b = values[f"{path}/a"], values[f"{path}/b"]
        if path in keys:
            kept = 1 - fixed["lora_dropout"]
            seen = jax.random.bernoulli(keys[path], kept, (len(a), 1)) / kept
            a = a * seen.astype(a.dtype)
        return low_rank(leaf, Factors(a, b, fixed["lora"]))

    return tree.map_with_path(whole, params)


def low_rank(kernel: Any, factors: Factors) -> jax.Array:
    """Returns W_0 + scale * A B, in the type and shape of the kernel W_0."""
    a, b = (jnp.asarray(x, kernel.dtype) for x in factors[:2])
    change = jnp.float32(factors.scale) * (a @ b)
    return jnp.asarray(kernel) + change.astype(kernel.dtype).reshape(kernel.shape)


def fits(factors: Factors, kernel: Any) -> bool:
    """Returns whether the product of factors has the rows and outputs of a kernel."""
    if np.ndim(factors.a) != 2 or np.ndim(factors.b) != 2:
        return False
    (rows, rank), (same, outputs) = factors.a.shape, factors.b.shape
    splits = {math.prod(kernel.shape[end:]) for end in range(1, len(kernel.shape))}
    return rank == same and rows * outputs == kernel.size and outputs in splits


def lora_factors(trainable: Params, scale: float = 1.0) -> dict[str, Factors]:
    """Returns `{path: Factors}` of a finished run: `lora_factors(result.trainable)`.

    scale: alpha / rank of `lora`; default, as there, 1. Raises `InputError` for a run
    without factors.
    """
    leaves = tree.flatten(trainable)
    paths = [path.removesuffix("/a") for path in leaves if path.endswith("/a")]
    if not paths or any(f"{path}/b" not in leaves for path in paths):
        raise InputError("these leaves have no factors: tune with lora(rank)")
    return {p: Factors(leaves[f"{p}/a"], leaves[f"{p}/b"], scale) for p in paths}


def _factors(
    key: jax.Array, kernel: jax.Array, rank: int, axes: int
) -> dict[str, jax.Array]:
    outputs = math.prod(kernel.shape[-axes:])
    rows = kernel.size // outputs
    bound = rows**-0.5
    a = jax.random.uniform(key, (rows, rank), kernel.dtype, -bound, bound)
    return {"a": a, "b": jnp.zeros((rank, outputs), kernel.dtype)}

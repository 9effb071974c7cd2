"""Low-rank tuning: the change of a kernel is a product of two small matrices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, require_positive, require_whole
from subtune_jax.network import Labels, Params
from subtune_jax.tuning.method import Parts, Tuning, leaf_groups, no_penalty
from subtune_jax.tuning.subset import init as selected


class Factors(NamedTuple):
    """A low-rank change of a kernel: scale * a b, a [rows, rank] and b [rank, outputs]."""

    a: Any
    b: Any
    scale: float


def lora(
    rank: int, scale: float | None = None, free: Sequence[str] = ("head",)
) -> Tuning:
    """Returns the tuning W <- W_0 + scale * A B of every kernel outside the `free` groups.

    A kernel is a leaf of two axes or more; its last is that of the outputs, and all others
    together are its rows: A is [rows, rank] and B [rank, outputs]. A is drawn uniformly
    from -1 / sqrt(rows) to 1 / sqrt(rows), and B is 0: the pretrained function. scale:
    default 1 / rank; a value, so that another one does not compile again. Selected leaves
    of fewer axes (biases, scales) rest, those of `free` groups train as they are. Of Hu et
    al. 2021 (recalled; A is drawn as in its public code, recalled too). In the trainable
    tree the factors stand at `PATH/a` and `PATH/b`. Raises `InputError` for a rank that is
    not a positive whole number and a scale that is not positive.
    """
    require_whole(rank=rank)
    scale = 1 / rank if scale is None else scale
    require_positive(scale=scale)

    def init(params: Params, labels: Labels, key: jax.Array | None = None) -> Parts:
        half, groups = selected(params, labels).trainable, tree.flatten(labels)
        leaves = tree.flatten(half)
        kernels = [p for p, w in leaves.items() if groups[p] not in free and w.ndim > 1]
        key = jax.random.key(0) if key is None else key
        keys = dict(
            zip(kernels, jax.random.split(key, len(kernels) or 1), strict=False)
        )

        def part(path: str, leaf: jax.Array) -> Any:
            if path in keys:
                return _factors(keys[path], leaf, rank)
            return leaf if groups[path] in free else None

        # The scale belongs to no leaf: one number for all of them.
        return Parts(tree.map_with_path(part, half), {"lora": jnp.float32(scale)})

    return Tuning(init, leaf_groups, materialize, no_penalty)


def materialize(
    trainable: Params, fixed: Any, params: Params, key: jax.Array | None = None
) -> Params:
    """Returns the base with the products added to its kernels, and free leaves in place."""
    del key
    values = tree.flatten(trainable)

    def whole(path: str, leaf: jax.Array) -> jax.Array:
        if f"{path}/a" not in values:
            return values.get(path, leaf)
        factors = Factors(values[f"{path}/a"], values[f"{path}/b"], fixed["lora"])
        return low_rank(leaf, factors)

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
    return rank == same and (rows * outputs, outputs) == (
        kernel.size,
        kernel.shape[-1],
    )


def lora_factors(trainable: Params, scale: float | None = None) -> dict[str, Factors]:
    """Returns `{path: Factors}` of a finished run: `lora_factors(result.trainable)`.

    scale: that of `lora`; default, as there, 1 / rank. Raises `InputError` for a run
    without factors.
    """
    leaves = tree.flatten(trainable)
    paths = [path.removesuffix("/a") for path in leaves if path.endswith("/a")]
    if not paths or any(f"{path}/b" not in leaves for path in paths):
        raise InputError("these leaves have no factors: tune with lora(rank)")
    pairs = {path: (leaves[f"{path}/a"], leaves[f"{path}/b"]) for path in paths}
    return {
        path: Factors(a, b, 1 / b.shape[0] if scale is None else scale)
        for path, (a, b) in pairs.items()
    }


def _factors(key: jax.Array, kernel: jax.Array, rank: int) -> dict[str, jax.Array]:
    rows, outputs = kernel.size // kernel.shape[-1], kernel.shape[-1]
    bound = rows**-0.5
    a = jax.random.uniform(key, (rows, rank), kernel.dtype, -bound, bound)
    return {"a": a, "b": jnp.zeros((rank, outputs), kernel.dtype)}

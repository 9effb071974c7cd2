"""Pure functions over parameter trees: paths, halves, counts, fingerprints.

A tree is a nested dict of arrays. A leaf's *path* is its keys joined by `/`. A *half*
of a tree has the same keys with `None` where the other half holds the leaf; JAX and
optax see `None` as an empty subtree, so nothing is computed or stored for it.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Tree = Any


def path(keys: tuple) -> str:
    """Returns the path of a JAX key path, e.g. `block1/conv1/kernel`."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def flatten(tree: Tree) -> dict[str, Any]:
    """Returns `{path: leaf}` in tree order; absent (`None`) leaves are left out."""
    return {path(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree)}


def alike(one: Tree, other: Tree) -> bool:
    """Returns whether two trees have the same structure."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (one, other)]
    return structures[0] == structures[1]


def unflatten(flat: Mapping[str, Any]) -> dict:
    """Returns the nested dict of `{path: leaf}`; the inverse of `flatten`."""
    tree: dict = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def owners(over: Tree, under: Tree) -> dict[str, str]:
    """Returns the path in `under` that each path of `over` is at or below.

    `over` has subtrees where `under` has leaves: `two/kernel/factor` belongs to
    `two/kernel`. What belongs to no leaf is left out.
    """
    names, owned = flatten(under), {}
    for name in flatten(over):
        parts = name.split("/")
        starts = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
        owner = next((start for start in starts if start in names), None)
        if owner is not None:
            owned[name] = owner
    return owned


def map_with_path(f: Callable, tree: Tree, *rest: Tree) -> Tree:
    """Returns the tree of `f(path, leaf, *leaves of rest)`."""
    return jax.tree.map_with_path(
        lambda keys, *leaves: f(path(keys), *leaves), tree, *rest
    )


def partition(tree: Tree, mask: Tree) -> tuple[Tree, Tree]:
    """Splits a tree in two halves: where `mask` is True, and the rest."""
    chosen = jax.tree.map(lambda leaf, m: leaf if m else None, tree, mask)
    rest = jax.tree.map(lambda leaf, m: None if m else leaf, tree, mask)
    return chosen, rest


def combine(over: Tree, under: Tree) -> Tree:
    """Returns `under` with the leaves that `over` has; undoes `partition`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, over, under, is_leaf=lambda x: x is None
    )


def lowest(values: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """Returns the places of the n lowest of all values together, `{path: sorted int[k]}`.

    `values` are flat arrays by path, with n values at least; of equal values the first
    are taken. A path without any of them has an empty array.
    """
    joined = np.concatenate(list(values.values()))
    places = np.sort(np.argsort(joined, kind="stable")[:n])
    ends = np.cumsum([len(v) for v in values.values()])
    parts = np.split(places, np.searchsorted(places, ends)[:-1])
    begins = [0, *ends[:-1]]
    return {
        path: part - begin
        for path, part, begin in zip(values, parts, begins, strict=True)
    }


def count(tree: Tree) -> int:
    """Returns how many numbers a tree holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Returns how many bytes the arrays of a tree take (shapes and dtypes suffice)."""
    return sum(
        int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def wide(tree: Tree) -> Tree:
    """Returns real leaves in float32 or wider: small updates of narrow weights are lost to
    rounding, and bf16(0.999) is 1, so that Adam's moments would never decay."""
    return jax.tree.map(
        lambda x: x.astype(jax.numpy.promote_types(x.dtype, jax.numpy.float32)), tree
    )


def beside(values: Tree, params: Tree) -> Tree:
    """Returns rows of the host on the devices of the parameters.

    Where these lie on a mesh the rows are split over its first axis, or stand on all
    devices if they do not divide, as scalars do, or if the mesh is of several processes,
    which can read only what their devices hold. Arrays of a device stay where they are.
    """
    held = (
        x.sharding
        for x in jax.tree.leaves(params)
        if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    )
    mesh = getattr(next(held, None), "mesh", None)
    if mesh is None:
        return jax.device_put(values)

    def put(rows: Any) -> jax.Array:
        if isinstance(rows, jax.Array):
            return rows
        axis = mesh.axis_names[0]
        divides = np.ndim(rows) and len(rows) % mesh.shape[axis] == 0
        split = divides and jax.process_count() == 1
        spec = PartitionSpec(axis) if split else PartitionSpec()
        return jax.device_put(rows, NamedSharding(mesh, spec))

    return jax.tree.map(put, values)


def on_device(tree: Tree) -> Tree:
    """Returns a tree of arrays on devices: those that are there stay where they are."""
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), tree
    )


def shapes(tree: Tree) -> tuple:
    """Returns the structure of a tree, and its leaves' shapes, types and whether these are
    weak, as a key."""
    leaves, structure = jax.tree.flatten(tree)
    like = [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in leaves]
    return structure, tuple(like)


def copy(tree: Tree) -> Tree:
    """Returns a tree of fresh buffers, so that donating it cannot delete the original."""
    return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), tree)


def is_key(dtype: Any) -> bool:
    """Returns whether this is the type of random keys."""
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def fingerprint(tree: Tree) -> str:
    """Returns a SHA-256 of paths, dtypes, shapes and bytes (of keys, of their data), as 64
    hex digits."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(tree).items()):
        keys = isinstance(leaf, jax.Array) and is_key(leaf.dtype)
        array = np.ascontiguousarray(jax.random.key_data(leaf) if keys else leaf)
        dtype = leaf.dtype if keys else array.dtype
        digest.update(f"{name} {dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

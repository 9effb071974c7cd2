"""How far a network has moved from its base, in weights and in features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.data.batches import Batch
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Network, require_network
from subtune_jax.selection.gradients import batch_gradient, scored_half


def distances(network: Network, base: Network) -> dict[str, float]:
    """Returns ||theta - theta_0||, the L2 norm by stage, of the stages that both have with
    equal shapes (a new head has others)."""
    require_network(network)
    require_network(base)
    moved = {}
    for name, before in base.params.items():
        pair = [tree.flatten(side) for side in (before, network.params.get(name, {}))]
        shapes = [{p: jnp.shape(leaf) for p, leaf in side.items()} for side in pair]
        if before and shapes[0] == shapes[1]:
            squares = [
                np.square(np.asarray(pair[1][p]) - x).sum() for p, x in pair[0].items()
            ]
            moved[name] = float(np.sqrt(np.sum(squares)))
    return moved


def gradient_norms(
    network: Network, batch: Batch, loss: Callable = cross_entropy
) -> dict[str, float]:
    """Returns the L2 norm of the gradient of the mean loss by stage: stored statistics, no
    dropout."""
    require_network(network)
    half = scored_half(network.params)
    squares = batch_gradient(network, loss, _sum_of_squares, half, batch)
    return {
        stage: float(np.sqrt(np.sum(leaves)))
        for stage, part in squares.items()
        if (leaves := jax.tree.leaves(jax.device_get(part)))
    }


def _sum_of_squares(gradient: jax.Array) -> jax.Array:
    return jnp.square(gradient).sum()


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the linear CKA of two feature matrices [examples, any] of the same examples.

    HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)) with K = X X^T and L = Y Y^T, the unbiased
    estimator of Song et al. 2012 (recalled): 1 for features that are equal up to rotation
    and scale, and near 0, on either side, for independent ones, however many. (That of
    Kornblith et al. 2019 is near 1 for more features than examples.) Raises `InputError`
    for other shapes, fewer than four examples, and features that are the same for all.
    """
    if np.ndim(x) != 2 or np.ndim(y) != 2 or len(x) != len(y):
        raise InputError(
            f"features have shapes {list(np.shape(x))} and {list(np.shape(y))}: expected "
            "[examples, any] of the same examples"
        )
    if len(x) < 4:
        raise InputError(f"CKA needs four examples or more, got {len(x)}")
    # Centred first: HSIC_1 does not change, and large means would cost digits.
    x, y = (np.asarray(z, float) - np.mean(z, axis=0, keepdims=True) for z in (x, y))
    if not x.any() or not y.any():
        raise InputError("features that are the same for all examples have no CKA")
    k, l = x @ x.T, y @ y.T  # noqa: E741  # as in the paper
    own = _hsic(k, k), _hsic(l, l)
    if min(own) <= 0:
        raise InputError(
            "these features are no more alike than chance has it, of as many examples: "
            "CKA has no value, give more examples"
        )
    return float(_hsic(k, l) / np.sqrt(own[0] * own[1]))


def _hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Returns HSIC_1 of two kernels: [tr(K L) + sum(K) sum(L) / ((n - 1) (n - 2)) -
    2 / (n - 2) 1^T K L 1] / (n (n - 3)), both without their diagonals."""
    n = len(k)
    k, l = (m - np.diag(np.diag(m)) for m in (k, l))  # noqa: E741
    total = (k * l.T).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (k.sum(axis=0) @ l.sum(axis=1))) / (n * (n - 3))

"""A head refitted to the features as they are: what a body is worth to a task."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import require_positive
from subtune_jax.evaluation.forgetting import body
from subtune_jax.head import replace_head, standardize
from subtune_jax.losses import cross_entropy
from subtune_jax.network import Network, require_network
from subtune_jax.training.predict import predict


def with_head_statistics(network: Network, data: Dataset) -> Network:
    """Returns the network whose head has the features' mean and variance over `data` stored.

    A fresh normalized head stores mean 0 and variance 1, and its statistics follow the
    batches only slowly: until then it is evaluated on features of another scale. A head
    without statistics stays as it is.
    """
    require_network(network)
    name = network.stages[-1].name
    if not network.stats[name]:
        return network
    x = jnp.asarray(predict(body(network), data))
    norm = {"mean": x.mean(axis=0), "var": x.var(axis=0)}
    return network._replace(stats={**network.stats, name: {"norm": norm}})


def refit_head(
    network: Network,
    data: Dataset,
    num_classes: int,
    *,
    l2: float = 1e-2,
    iterations: int = 100,
) -> Network:
    """Returns the network with the head that fits its features best.

    min over W, b of the mean cross-entropy of z W + b plus l2 / 2 ||W||^2, with z the
    features of `data` at mean 0 and variance 1, from zeros by L-BFGS. The body stays; the
    head's stored statistics are those of `data`. Raises `InputError` as `replace_head`
    does.
    """
    require_positive(l2=l2, iterations=iterations)
    fresh = replace_head(network, num_classes, normalize="batch")
    fresh, name = with_head_statistics(fresh, data), fresh.stages[-1].name
    norm = fresh.stats[name]["norm"]
    x = jnp.asarray(predict(body(network), data))
    z = standardize(x, norm["mean"], norm["var"])
    shapes = {n: leaf.shape for n, leaf in fresh.params[name].items()}
    objective = partial(_objective, z, jnp.asarray(data.y), l2)

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, grads = objective(_parts(flat, shapes))
        joined = np.concatenate([np.ravel(grads[n]) for n in shapes])
        return float(value), joined.astype(np.float64)

    size = sum(int(np.prod(shape)) for shape in shapes.values())
    options = {"maxiter": iterations}
    solution = minimize(
        value_and_gradient, np.zeros(size), jac=True, method="L-BFGS-B", options=options
    )
    return fresh._replace(params={**fresh.params, name: _parts(solution.x, shapes)})


def _parts(
    flat: np.ndarray, shapes: dict[str, tuple[int, ...]]
) -> dict[str, jax.Array]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
    pieces = np.split(flat, ends)
    return {
        name: jnp.asarray(piece.reshape(shape), jnp.float32)
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


@jax.jit
def _objective(z: jax.Array, labels: jax.Array, l2: float, head: dict[str, jax.Array]):
    def loss(head):
        logits = z @ head["kernel"] + head["bias"][None]
        decay = l2 / 2 * jnp.square(head["kernel"]).sum()
        return cross_entropy(logits, labels).mean() + decay

    return jax.value_and_grad(loss)(head)

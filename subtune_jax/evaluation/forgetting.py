"""What a network forgets of its source task while it learns another one."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError, require_function
from subtune_jax.losses import cross_entropy
from subtune_jax.metrics import Metric, accuracy
from subtune_jax.network import Network, Params, Stats, require_network
from subtune_jax.programs import traces_of
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.tuning.fast import output_error


def with_head(network: Network, source: Network) -> Network:
    """Returns the network with the last stage of `source`, its head, in place of its own.

    The kept head reads the features as they are now, without the normalization that the
    new head may have. Raises `InputError` where the two have other bodies.
    """
    require_network(network)
    require_network(source)
    names = ([s.name for s in one.stages[:-1]] for one in (network, source))
    own, other = names
    if own != other:
        raise InputError(
            f"a head is kept for the body it was trained on: the network has stages "
            f"{', '.join(own)}, and its source {', '.join(other)}"
        )
    old, head = network.stages[-1].name, source.stages[-1]
    params = {name: p for name, p in network.params.items() if name != old}
    stats = {name: s for name, s in network.stats.items() if name != old}
    return network._replace(
        stages=(*network.stages[:-1], head),
        params={**params, head.name: source.params[head.name]},
        stats={**stats, head.name: source.stats[head.name]},
        source=source.source,
    )


def body(network: Network) -> Network:
    """Returns the network without its last stage: its outputs are the features."""
    require_network(network)
    if len(network.stages) < 2:
        raise InputError(
            "the features are what the stages before a head give: expected 2"
        )
    names = [stage.name for stage in network.stages[:-1]]
    return network._replace(
        stages=network.stages[:-1],
        params={name: network.params[name] for name in names},
        stats={name: network.stats[name] for name in names},
        units={},
    )


def source_score(
    source: Network, data: Dataset, metric: Metric = accuracy
) -> Callable[[Network], float]:
    """Returns the score of a network on its source task, by the head that was kept."""
    return lambda network: evaluate(with_head(network, source), data, metric)


def watch_forgetting(
    start: Network,
    target: Dataset,
    remembered: Callable[[Network], float],
) -> Callable[[Network], dict[str, float]]:
    """Returns what `fit(watch=)` takes to record learning and forgetting.

    start: the network before the run, whose head's kernel is W_0. target: held examples of
    the target task (int labels). remembered(network) -> the score on the source task, see
    `source_score`. A record holds `target` (accuracy in percent), `loss` (mean
    cross-entropy), `entropy` (of the outputs, as a share of log K), `source`, and the
    contamination energies `energy`, `energy_initial` and `energy_learnt`: the mean squared
    norm of what the errors send to the raw features through W_t, W_0 and W_t - W_0, and
    through a normalization of theirs (stored statistics; see `tuning.energy_split`).
    """
    require_function(1, remembered=remembered)
    initial = _kernel(start)

    def watch(network: Network) -> dict[str, float]:
        x, head = predict(body(network), target), network.stages[-1]
        params, stats = network.params[head.name], network.stats[head.name]
        measures = partial(_measures, head.apply)
        given = params, stats, initial, x, jnp.asarray(target.y)
        logits, measured = traces_of(head.apply).run("measures", measures, *given)
        record = {name: float(value) for name, value in measured.items()}
        record["target"] = accuracy(np.asarray(logits), target.y)
        return record | {"source": float(remembered(network))}

    return watch


def _measures(
    apply: Callable,
    params: Params,
    stats: Stats,
    initial: jax.Array,
    x: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the outputs of a head on raw features, and what is recorded of them."""

    def outputs(x: jax.Array, kernel: jax.Array) -> jax.Array:
        head = {**params, "kernel": kernel}
        return apply(head, stats, x, batch_stats=False, key=None)[0]

    def energy(kernel: jax.Array) -> jax.Array:
        """What reaches the raw features: through the normalization too, if there is one."""
        (reached,) = jax.vjp(lambda x: outputs(x, kernel), x)[1](error)
        return jnp.square(reached).sum(axis=-1).mean()

    logits = outputs(x, params["kernel"])
    error = output_error(logits, labels)
    p, log_p = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
    return logits, {
        "loss": cross_entropy(logits, labels).mean(),
        "entropy": -jnp.sum(p * log_p, axis=-1).mean() / jnp.log(logits.shape[-1]),
        "energy": energy(params["kernel"]),
        "energy_initial": energy(initial),
        "energy_learnt": energy(params["kernel"] - initial),
    }


def _kernel(network: Network) -> jax.Array:
    require_network(network)
    head = network.stages[-1].name
    kernel = network.params[head].get("kernel")
    if getattr(kernel, "ndim", 0) != 2:
        raise InputError(
            f"the last stage {head!r} has no kernel [features, classes]: expected a linear "
            "head, as replace_head makes it"
        )
    return jnp.asarray(kernel)

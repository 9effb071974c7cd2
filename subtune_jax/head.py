"""The head: one last stage, linear, with an optional normalization of its features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from subtune_jax.errors import InputError, require_whole, unknown
from subtune_jax.network import (
    Network,
    Params,
    Source,
    Stage,
    Stats,
    require_network,
)

LECUN_NORMAL = jax.nn.initializers.lecun_normal()
INITIALIZERS: dict[str, Callable] = {
    "zero": jax.nn.initializers.zeros,
    "normal": jax.nn.initializers.normal(0.01),
    "torch": jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "glorot": jax.nn.initializers.glorot_normal(),
    "he": jax.nn.initializers.he_normal(),
    "lecun": LECUN_NORMAL,
}  # torch: U(-1/sqrt(d), 1/sqrt(d)), as torch.nn.Linear draws its weights
NORMALIZE_MODES = ("batch", "batch_affine")
EPSILON, MOMENTUM = 1e-5, 0.9
Key = jax.Array | None


def linear(
    params: Params, stats: Stats, x: jax.Array, *, batch_stats: bool, key: Key
) -> tuple[jax.Array, Stats]:
    """The head stage x W + b: `kernel` [features, classes], `bias` [classes]."""
    del batch_stats, key
    return x @ params["kernel"] + params["bias"][None], stats


def standardize(x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    """Returns (x - mean) / sqrt(var + 1e-5) of features float[batch, features]."""
    return (x - mean[None]) * jax.lax.rsqrt(var + EPSILON)[None]


def normalized_linear(
    params: Params, stats: Stats, x: jax.Array, *, batch_stats: bool, key: Key
) -> tuple[jax.Array, Stats]:
    """The head stage z W + b, with z = (x - mean) / sqrt(var + 1e-5) by feature.

    Mean and variance are those of the batch where `batch_stats` is on; the stored ones
    then follow them (momentum 0.9). Where `norm/scale` and `norm/bias` exist, z becomes
    scale * z + bias.
    """
    mean, var = stats["norm"]["mean"], stats["norm"]["var"]
    if batch_stats:
        mean, var = x.mean(axis=0), x.var(axis=0)
        old = stats["norm"]
        kept = {
            "mean": MOMENTUM * old["mean"] + (1 - MOMENTUM) * mean,
            "var": MOMENTUM * old["var"] + (1 - MOMENTUM) * var,
        }
        stats = {**stats, "norm": kept}
    z = standardize(x, mean, var)
    if "norm" in params:
        z = z * params["norm"]["scale"][None] + params["norm"]["bias"][None]
    return linear(params, stats, z, batch_stats=batch_stats, key=key)


def features(
    params: Params, stats: Stats, x: jax.Array, *, batch_stats: bool, key: Key
) -> tuple[jax.Array, Stats]:
    """The last stage of a network without a head: `linear` by the identity."""
    return linear(params, stats, x, batch_stats=batch_stats, key=key)


def without_head(network: Network) -> Network:
    """Returns the network with its pooled features as outputs, float[batch, features].

    Its last stage is the identity, which `replace_head` takes the place of; under
    cross-entropy it is refused. Raises `InputError` as `replace_head` does."""
    require_network(network)
    name, _ = network.stages[-1]
    _require_head(network.stages[-1], network.params[name])
    width = network.params[name]["kernel"].shape[0]
    identity = {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}
    return network._replace(
        source=without_classes(network.source),
        stages=(*network.stages[:-1], Stage(name, features)),
        params={**network.params, name: identity},
        stats={**network.stats, name: {}},
    )


def span(
    params: Params,
    stats: Stats,
    x: dict[str, jax.Array],
    *,
    batch_stats: bool,
    key: Key,
) -> tuple[jax.Array, Stats]:
    """The head stage that gives every token a start and an end logit.

    x: `hidden` float[batch, tokens, features] and `mask` bool[batch, tokens]. Logits are
    float[batch, tokens, 2]; padding has the lowest number of their type.
    """
    del batch_stats, key
    logits = x["hidden"] @ params["kernel"] + params["bias"][None, None]
    return jnp.where(x["mask"][..., None], logits, jnp.finfo(logits.dtype).min), stats


def hidden_linear(
    params: Params, stats: Stats, x: jax.Array, *, batch_stats: bool, key: Key
) -> tuple[jax.Array, Stats]:
    """The head stage relu(x V) W + b, with V at `hidden/kernel` [features, width]."""
    x = jax.nn.relu(x @ params["hidden"]["kernel"])
    return linear(params, stats, x, batch_stats=batch_stats, key=key)


def hidden_head(
    network: Network, num_classes: int, key: jax.Array, *, width: int = 64
) -> Network:
    """Returns the network with its head replaced by one with a hidden layer.

    logits = relu(x V) W + b; V without bias, drawn by LeCun, W and b zeros (SubTuning's
    code: width 64). Raises `InputError` as `replace_head` does.
    """
    require_whole(width=width)
    network = replace_head(network, num_classes)
    name, _ = network.stages[-1]
    features = network.params[name]["kernel"].shape[0]
    zeros = jax.nn.initializers.zeros
    head = linear_params(None, width, num_classes, zeros)
    head |= {"hidden": {"kernel": LECUN_NORMAL(key, (features, width), jnp.float32)}}
    return network._replace(
        stages=(*network.stages[:-1], Stage(name, hidden_linear)),
        params={**network.params, name: head},
    )


def linear_params(
    key: jax.Array | None,
    features: int,
    num_classes: int,
    init: Callable = LECUN_NORMAL,
) -> Params:
    """Returns the float32 parameters of `linear`: W drawn by `init`, b = 0."""
    kernel = init(key, (features, num_classes), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros((num_classes,), jnp.float32)}


def replace_head(
    network: Network,
    num_classes: int,
    key: jax.Array | None = None,
    *,
    init: Callable = jax.nn.initializers.zeros,
    normalize: str | None = None,
) -> Network:
    """Returns the network with its last stage replaced by a fresh linear head.

    logits = x W + b, with W float32[features, num_classes] drawn by `init` from `key`
    (any initializer of `jax.nn.initializers`; zeros, which need no key, give maximal
    output entropy) and b = 0. normalize: `batch` standardizes the features, see
    `normalized_linear`, and `batch_affine` gives them a scale and a bias as well; their
    statistics begin at mean 0 and variance 1, and follow the batch where the stage
    `head` is named in `norm`. The class names of the old head are dropped. Raises
    `InputError` if the old head has other leaves than `kernel` [features, any] and
    `bias` (and `norm`), or if `num_classes` is not a positive number.
    """
    require_network(network)
    require_whole(num_classes=num_classes)
    if normalize is not None and normalize not in NORMALIZE_MODES:
        raise unknown("normalization of a head", normalize, NORMALIZE_MODES)
    old = network.stages[-1]
    _require_head(old, network.params[old.name])
    features = network.params[old.name]["kernel"].shape[0]
    if key is None and init is not jax.nn.initializers.zeros:
        raise InputError("an initializer draws at random: give replace_head a key")
    head, stats = linear_params(key, features, num_classes, init), {}
    apply = span if old.apply is span else linear
    if apply is span and (num_classes != 2 or normalize):
        raise InputError(f"a span head has 2 outputs, got num_classes={num_classes}")
    if normalize is not None:
        apply = normalized_linear
        zeros, ones = jnp.zeros(features), jnp.ones(features)
        stats = {"norm": {"mean": zeros, "var": ones}}
        affine = normalize == "batch_affine"
        head |= {"norm": {"scale": ones, "bias": zeros}} if affine else {}
    return network._replace(
        source=without_classes(network.source),
        stages=(*network.stages[:-1], Stage(old.name, apply)),
        params={**network.params, old.name: head},
        stats={**network.stats, old.name: stats},
    )


def without_classes(source: Source | None) -> Source | None:
    """Returns the source without class names: those of an old head mean nothing."""
    return source and source._replace(classes=())


def _require_head(stage: Stage, params: Params) -> None:
    kernel = params.get("kernel") if isinstance(params, dict) else None
    leaves = set(params) <= {"kernel", "bias", "norm"}
    if not leaves or getattr(kernel, "ndim", 0) != 2:
        raise InputError(
            f"the last stage {stage.name!r} is not a linear head: expected leaves kernel "
            f"[features, classes] and bias, found {', '.join(params) or 'none'}; of your "
            "own model, make the head a stage, from_nnx({'body': ..., 'head': ...})"
        )


HEADS: dict[str, Callable] = {
    "linear": linear,
    "normalized": normalized_linear,
    "span": span,
    "features": features,
}

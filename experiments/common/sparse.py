"""Methods that change a stated number of weights, and the delta that each is stored as."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.common.report.results import Row
from subtune_jax import tree
from subtune_jax.deltas import Delta, apply, extract, from_bytes, to_bytes
from subtune_jax.deltas.codec import encode
from subtune_jax.errors import InputError
from subtune_jax.network import Labels, Network
from subtune_jax.recipes import diff_pruning, masked_elements
from subtune_jax.selection import elements
from subtune_jax.selection.select import count_trainable, select
from subtune_jax.training.optimizers import Rule, adam, normalized_sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.tune import Trial, Tuned, tune
from subtune_jax.tuning import (
    fixed_gates,
    fixed_mask,
    largest_changes,
    lora,
    lora_factors,
    mask_indices,
)

GROUP, HEAD = "body", "head"
OUTPUTS = ["layer_[0-9]+/attention/output/.*", "layer_[0-9]+/output/.*"]
LAYERS = ["layer_[0-9]+/.*"]
DENSE = ("full", "last_layer", "biases")
WEIGHED = ("structured", "plain")  # a strength weighs E[L0]
GATED = (*WEIGHED, "constrained", "outputs", "fixed_gates")
TWO_PHASES = (*GATED, "non_adaptive")  # all weights move, then few
SPARSE = (*TWO_PHASES, "random", "top_magnitude", "lora")


class Budget(NamedTuple):
    """What every method may spend: all steps, those of them with a mask where there are two
    phases, the rules of the body, of the body under a mask that comes second, and of the
    head, and the seed of what is drawn."""

    steps: int
    masked: int
    body: Rule
    mask: Rule
    head: Rule
    seed: int


def labels_of(network: Network, method: str) -> Labels:
    """Returns the labels of what a method may change, and of the head."""
    below = [s.name for s in network.stages[:-1] if network.params.get(s.name)]
    layers = [name for name in below if name.startswith("layer_")] or below
    special = {
        "last_layer": layers[-1:],
        "biases": [".*/bias"],
        "outputs": OUTPUTS,
        "lora": LAYERS,
    }
    return select(network, {HEAD: [HEAD], GROUP: special.get(method, [".*"])})


def count_of(network: Network, share: float) -> int:
    """Returns how many elements outside the head a share of all of them is."""
    return masked_elements(network, labels_of(network, "full"), share)


def phases_of(
    network: Network, method: str, share: float, diff: Any, budget: Budget
) -> list[Phase]:
    """Returns the phases of a method: all have the same number of steps together.

    diff: the study's flags on how differences are made sparse.
    """
    if method in DENSE:
        rules = {GROUP: budget.body, HEAD: budget.head}
        return [Phase(labels_of(network, method), rules, budget.steps)]
    if method in GATED:
        return _gated(network, method, share, diff, budget)
    builder = {"lora": _lora, "non_adaptive": _non_adaptive}.get(method, _given_mask)
    return builder(network, method, count_of(network, share), diff, budget)


def _gated(
    network: Network, method: str, share: float, diff: Any, budget: Budget
) -> list[Phase]:
    held = method not in WEIGHED
    rate = diff.gates_learning_rate
    if method == "outputs":  # as many elements as the others, of those that have gates
        labels = labels_of(network, method)
        share = count_of(network, share) / masked_elements(network, labels, 1.0)
    phases = diff_pruning(
        network,
        share,
        budget.body,
        budget.steps,
        strength=None if held else diff.strength,
        head_rule=budget.head,
        gates_rule=normalized_sgd(rate, schedule="linear")
        if held
        else adam(rate, clip_norm=1.0),
        mask_rule=budget.mask,
        mask_share=budget.masked / budget.steps,
        structure="none" if method == "plain" else "leaf",
        l0=None if held else diff.l0,
        start=diff.start,
        gated=OUTPUTS if method == "outputs" else (".*",),
    )
    if method == "fixed_gates":
        phases[1] = phases[1]._replace(tuning=fixed_gates())
    return phases


def _non_adaptive(
    network: Network, method: str, k: int, diff: Any, budget: Budget
) -> list[Phase]:
    labels, rules = labels_of(network, method), {GROUP: budget.body, HEAD: budget.head}
    start = "change" if diff.start == "ungated" else diff.start
    largest = largest_changes(k, start=start)
    return [
        Phase(labels, rules, budget.steps - budget.masked, keeps=False),
        Phase(labels, rules | {GROUP: budget.mask}, budget.masked, largest),
    ]


def _given_mask(
    network: Network, method: str, k: int, diff: Any, budget: Budget
) -> list[Phase]:
    labels, rules = labels_of(network, method), {GROUP: budget.body, HEAD: budget.head}
    sizes = elements.magnitudes(network.params, labels, GROUP)
    if method == "random":
        chosen = elements.random(sizes, k, budget.seed, "all")
    else:
        chosen = elements.highest(sizes, k, "all")
    nothing = {path: np.zeros(0, int) for path in sizes}
    return [Phase(labels, rules, budget.steps, fixed_mask(nothing | chosen))]


def _lora(
    network: Network, method: str, k: int, diff: Any, budget: Budget
) -> list[Phase]:
    """Returns LoRA on the layers' kernels, of the highest rank with no more than k values."""
    labels, rules = labels_of(network, method), {GROUP: budget.body, HEAD: budget.head}
    rank = k // _values_of_a_rank(network)
    if not rank:
        raise InputError(
            f"lora changes {_values_of_a_rank(network)} values at rank 1, and this sparsity "
            f"allows {k}: raise --sparsity, or leave lora out"
        )
    return [Phase(labels, rules, budget.steps, lora(rank))]


def _values_of_a_rank(network: Network) -> int:
    groups = tree.flatten(labels_of(network, "lora"))
    kernels = [
        leaf
        for path, leaf in tree.flatten(network.params).items()
        if groups[path] == GROUP and leaf.ndim > 1
    ]
    return sum(w.size // w.shape[-1] + w.shape[-1] for w in kernels)


def changeable(network: Network, method: str, share: float) -> int:
    """Returns how many parameters a method may change in the end, without the head's."""
    if method in DENSE:
        return count_trainable(network, labels_of(network, method)) - tree.count(
            network.params[HEAD]
        )
    k = count_of(network, share)
    if method != "lora":
        return k
    unit = _values_of_a_rank(network)
    return k // unit * unit


def tune_stored(values: str, network: Network, *given: Any, **how: Any) -> Tuned:
    """Returns what `tune` does, the best trial as its stored delta gives it back."""
    tuned = tune(network, *given, **how)
    if tuned.best is None or tuned.best.network is None:
        return tuned
    best = tuned.best
    form = form_of(best)
    delta = from_bytes(to_bytes(extract(network, best.network, values=values, **form)))
    again, _ = apply(network, delta)
    if "factors" not in form:
        return tuned._replace(best=best._replace(network=again))
    # What is stored are rounded factors: from here on they are the trial's.
    pairs = {p.removeprefix("params/"): f for p, f in delta.factors.items()}
    flat = {f"{p}/{n}": getattr(f, n) for p, f in pairs.items() for n in ("a", "b")}
    flat = {path: jnp.asarray(value, jnp.float32) for path, value in flat.items()}
    trainable = tree.unflatten(tree.flatten(best.trainable) | flat)
    return tuned._replace(best=best._replace(network=again, trainable=trainable))


def form_of(trial: Trial) -> dict[str, Any]:
    """Returns what `extract` needs to store a trial as it was tuned: factors or a mask."""
    fixed = tree.flatten(trial.fixed)
    if "lora" in fixed:
        return {"factors": lora_factors(trial.trainable, float(fixed["lora"]))}
    try:
        return {"indices": mask_indices(trial.trainable, trial.fixed)}
    except InputError:
        return {}


def stored_rows(base: Network, values: str, trial: Trial) -> Iterator[Row]:
    """Yields the bytes of a trial's delta, how many values outside the head it holds, how
    many elements differ, in which share of each stage, and how many tensors it leaves alone.

    bytes_a_value: of the places and values of elements, without header and head.
    before_mask: how many elements had changed when the mask was made of the largest, and
    expected: E[L0] of the gates then, of elements that had moved.
    """
    assert trial.network is not None
    delta = extract(base, trial.network, values=values, **form_of(trial))
    elements, sizes = delta.elements.values(), _stored(delta)
    counts = _changed(base, trial.network)
    streams = sum(
        coded.unary.nbytes + coded.low.nbytes + some.values.nbytes
        for some in elements
        for coded in [encode(some.places)]
    )
    gates = (trial.fixed or {}).get("realisation", {})
    yield {
        "split": "stored",
        "metric": "bytes",
        "value": len(to_bytes(delta)),
        "stored": sum(sizes.values()),
        "bytes_a_value": streams / sizes["elements"] if sizes["elements"] else None,
        "differ": sum(counts.values()),
        "before_mask": int(gates["changed"]) if gates else None,
        "expected": float(gates["expected"]) if "expected" in gates else None,
        "untouched": sum(n == 0 for n in counts.values()),
        "tensors": len(counts),
        "shares": _shares(base, counts),
    }


def _stored(delta: Delta) -> dict[str, int]:
    """Returns how many parameters outside the head a delta holds, by how it holds them."""
    whole = [
        array.size
        for path, array in delta.whole.items()
        if path.startswith("params/") and not path.startswith(f"params/{HEAD}/")
    ]
    return {
        "whole": sum(whole),
        "elements": sum(len(some.places) for some in delta.elements.values()),
        "factors": sum(f.a.size + f.b.size for f in delta.factors.values()),
    }


def _changed(base: Network, tuned: Network) -> dict[str, int]:
    """Returns how many elements differ in every tensor outside the head."""
    pairs = zip(
        tree.flatten(base.params).items(),
        tree.flatten(tuned.params).values(),
        strict=True,
    )
    return {
        path: int((np.asarray(new) != np.asarray(old)).sum())
        for (path, old), new in pairs
        if not path.startswith(f"{HEAD}/")
    }


def _shares(base: Network, counts: dict[str, int]) -> dict[str, float]:
    """Returns the share of each stage's weights that differ."""
    sizes = {s.name: tree.count(base.params.get(s.name, {})) for s in base.stages}
    return {
        stage: sum(n for path, n in counts.items() if path.startswith(f"{stage}/"))
        / size
        for stage, size in sizes.items()
        if size and stage != HEAD
    }

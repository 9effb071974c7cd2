"""What a batch costs whose rows belong to different tasks, by kind of delta."""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import subtune_jax as st
from experiments.common.speed import (
    MINILM,
    SMALL,
    changed_elements,
    random_texts,
    torch_shape,
)
from experiments.common.trunk_cost import timed

__all__ = ["KINDS", "installed", "mixed_batch"]

PEFT = ("torch", "transformers", "peft")
RANK = 8


class Kind(NamedTuple):
    """Tasks of a batch: their name in tables, what a task changes (`None`: PEFT tunes it),
    and whether large leaves are gathered by row."""

    label: str
    change: Callable[[st.Network, int], st.Delta] | None = None
    by_row: bool = False


class Batch(NamedTuple):
    """A batch of texts, the task of each, and the rows of each task."""

    config: st.models.BertConfig
    network: st.Network
    x: Mapping[str, np.ndarray]
    names: list[str]
    rows: Mapping[str, np.ndarray]


def mixed_batch(settings: Any, job: Any) -> dict[str, Any]:
    """Returns what a batch costs whose rows belong to `job.tasks` tasks in turn."""
    small = settings.common.smoke
    config = st.models.BertConfig(**(SMALL if small else MINILM), pooling="mean")
    network, data = random_texts(settings.texts, settings.tokens, config)
    names = [f"task{i % job.tasks}" for i in range(settings.texts)]
    rows = {name: np.flatnonzero(np.array(names) == name) for name in sorted({*names})}
    batch = Batch(config, network, data.x, names, rows)
    kind = KINDS[job.changed]
    measured = (
        by_ours(batch, kind, job.tasks) if kind.change else by_peft(batch, job.tasks)
    )
    calls = {name: measured.pop(name) for name in ("value", "one", "separate")}
    return timed(settings.repeats, calls) | {
        name: value() if callable(value) else value for name, value in measured.items()
    }


def by_ours(batch: Batch, kind: Kind, tasks: int) -> dict[str, Any]:
    """Returns the calls of this library, and what they cost."""
    network, names = batch.network, batch.names
    x = jax.device_put(dict(batch.x))
    served = st.serving.Mixed(network, all_by_row=kind.by_row)
    deltas = {f"task{i}": kind.change(network, i) for i in range(tasks)}
    for name, delta in deltas.items():
        served.put(name, delta)
    source, first = st.serving.Mixed(network), ["source"] * len(names)
    source.put("source", st.extract(network, network))
    own = {
        name: jax.tree.map(lambda leaf, i=i: leaf[i], x)
        for name, i in batch.rows.items()
    }
    alone = {n: st.serving.plan(network, {n: deltas[n]}) for n in own}
    return {
        "value": lambda: served(x, names),
        "one": lambda: source(x, first),
        "separate": lambda: [alone[n](own[n]) for n in own],
        "flops": lambda: served.flops(x, names),
        "one_flops": lambda: source.flops(x, first),
        "bytes": sum(len(st.deltas.to_bytes(delta)) for delta in deltas.values()),
        "total_params": st.tree.count(network.params),
    }


def installed(kind: str) -> bool:
    """Returns whether what a kind needs is installed: PEFT is an extra."""
    return kind != "peft" or all(map(importlib.util.find_spec, PEFT))


def by_peft(batch: Batch, tasks: int) -> dict[str, Any]:
    """Returns the calls of PEFT's LoRA on PyTorch's encoder of the same shape, without
    heads: its batches of several adapters have none of their own."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    plain, adapted = peft_encoder(batch.config), peft_encoder(batch.config, tasks)
    tensors = {n: torch.tensor(leaf.astype(np.int64)) for n, leaf in batch.x.items()}
    own = {
        name: {n: leaf[i] for n, leaf in tensors.items()}
        for name, i in batch.rows.items()
    }

    def alone(name: str) -> Any:
        adapted.set_adapter(name)
        return run(adapted, own[name])

    def run(model: Any, x: Mapping[str, Any], **more: Any) -> Any:
        with torch.no_grad():
            return model(**x, **more).last_hidden_state.numpy()

    def flops(call: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    value = partial(run, adapted, tensors, adapter_names=batch.names)
    one = partial(run, plain, tensors)
    factors = [p for n, p in adapted.named_parameters() if "lora_" in n]
    return {
        "value": value,
        "one": one,
        "separate": lambda: [alone(name) for name in own],
        "flops": lambda: flops(value),
        "one_flops": lambda: flops(one),
        "bytes": sum(leaf.nbytes for leaf in factors),
        "total_params": st.tree.count(batch.network.params),
    }


def peft_encoder(config: st.models.BertConfig, adapters: int = 0) -> Any:
    """Returns PyTorch's encoder of a shape, with adapters of all kernels of its layers."""
    import peft
    import transformers

    shape = transformers.BertConfig(**torch_shape(config))
    model = transformers.BertModel(shape, add_pooling_layer=False)
    kernels = r"encoder\.layer\.\d+\..*(query|key|value|dense)"
    lora = peft.LoraConfig(r=RANK, target_modules=kernels, init_lora_weights=False)
    for i in range(adapters):
        if i == 0:
            model = peft.get_peft_model(model, lora, adapter_name="task0")
        else:
            model.add_adapter(f"task{i}", lora)
    return model.eval()


def small_leaves(network: st.Network, seed: int) -> st.Delta:
    """Returns a task that changed all LayerNorms and biases, and its head."""
    head = network.stages[-1].name

    def part(path: str, leaf: jax.Array) -> jax.Array:
        small = leaf.ndim == 1 or path.startswith(head)
        return leaf + 0.01 * (seed + 1) if small else leaf

    tuned = network._replace(params=st.tree.map_with_path(part, network.params))
    return st.extract(network, tuned)


def low_rank(network: st.Network, seed: int) -> st.Delta:
    """Returns a task with factors of every kernel of the layers."""
    labels = st.select(network, {"tuned": [r"layer_\d+/.*kernel"], "head": ["head"]})
    tuning, key = st.tuning.lora(RANK), jax.random.key(seed)
    parts = tuning.init(network.params, labels, key)

    def drawn(path: str, leaf: jax.Array) -> jax.Array:
        return leaf + 0.01 * (seed + 1) if path.endswith("/b") else leaf

    trainable = st.tree.map_with_path(drawn, parts.trainable)
    tuned = tuning.materialize(trainable, parts.fixed, network.params)
    factors = st.tuning.lora_factors(trainable)
    return st.extract(network, network._replace(params=tuned), factors=factors)


def some_elements(network: st.Network, seed: int) -> st.Delta:
    """Returns a task that changed 0.5 % of the elements of every leaf, and its head."""
    return st.extract(network, changed_elements(network, 0.005, seed))


KINDS = {
    "norms": Kind("LayerNorms, biases", small_leaves),
    "lora": Kind("LoRA, rank 8", low_rank),
    "peft": Kind("LoRA, rank 8, by PEFT"),
    "elements": Kind("0.5 % of elements", some_elements),
    "elements_by_row": Kind("0.5 % of elements, by row", some_elements, by_row=True),
}

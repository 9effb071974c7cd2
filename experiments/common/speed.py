"""What the studies of speed time: networks of random weights on random data."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.cost import stage_flops
from subtune_jax.data.batches import Dataset, padded
from subtune_jax.errors import InputError
from subtune_jax.losses import cross_entropy
from subtune_jax.memory import keep_freed_memory
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.network import Network
from subtune_jax.programs import Traces
from subtune_jax.selection.select import select
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase, check
from subtune_jax.training.phases import Settings as RunSettings
from subtune_jax.training.prefix_cache import cached_stages, features
from subtune_jax.training.state import start
from subtune_jax.training.step import compiled_step

__all__ = [
    "MINILM",
    "SMALL",
    "Step",
    "changed_elements",
    "keep_freed_memory",
    "last_two",
    "our_step",
    "random_images",
    "random_texts",
    "require_no_data",
    "seconds",
    "step_flops",
    "torch_shape",
]
Step = Callable[[], None]

MINILM = {"num_layers": 6, "hidden_size": 384, "intermediate_size": 1536}
SMALL = {"num_layers": 3, "hidden_size": 24, "intermediate_size": 96}


def random_images(examples: int, *, small: bool) -> tuple[Network, Dataset]:
    """Returns ResNet-26 and images of CIFAR's size; `small` has three blocks."""
    blocks = (1,) * 3 if small else (4,) * 3
    network = resnet(ResNetConfig(blocks=blocks), jax.random.key(0))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (examples, 32, 32, 3), dtype=np.uint8)
    return network, Dataset(pixels, np.arange(examples, dtype=np.int32) % 10)


def random_texts(
    examples: int, tokens: int, config: BertConfig
) -> tuple[Network, Dataset]:
    """Returns an encoder and token ids without padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, config.vocab_size, (examples, tokens), dtype=np.int32)
    x = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    x["token_type_ids"] = np.zeros_like(ids)
    data = Dataset(x, np.arange(examples, dtype=np.int32) % 2)
    return bert(config, jax.random.key(0)), data


def torch_shape(config: BertConfig) -> dict[str, int]:
    """Returns the arguments of transformers' `BertConfig` for an encoder of this shape."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
    }


def last_two(network: Network) -> list[str]:
    """Returns the last two blocks or layers of a network, and all stages behind them."""
    names = [stage.name for stage in network.stages if network.params[stage.name]]
    blocks = [name for name in names if name.startswith(("block", "layer"))]
    return names[names.index(blocks[-2]) :]


def require_no_data(settings) -> None:
    """Raises `InputError` where weights or data are named."""
    if settings.common.weights or settings.common.data_dir:
        raise InputError(
            "data and weights are random here: --weights and --data-dir have no use"
        )


def our_step(
    network: Network, data: Dataset, entries: list[str], *, placed: bool
) -> Step:
    """Returns one step of ours, the state kept from call to call."""
    phase = Phase(select(network, {"tuned": entries}), adam(1e-3), steps=10_000)
    settings = RunSettings(cross_entropy, dropout="tuned" if placed else "all")
    running, state = start(network, phase, settings, jax.random.key(0))
    program, base = running.program, jax.device_put(network.params)
    if placed:
        cut = cached_stages(network, program, data, 2**30)
        data = features(network, cut, data) if cut else data
        program = program._replace(start=cut)
    else:
        base = jax.device_get(base)
    step, batch = compiled_step(Traces(), program), padded(data, len(data.y))

    def once() -> None:
        nonlocal state
        state, logs = step(state, base, jax.device_put(batch))
        jax.block_until_ready(logs)

    return once


def step_flops(
    network: Network, phase: Phase, data: Dataset, size: int, budget: int
) -> int:
    """Returns the FLOPs of a step, past the stages whose activations are kept."""
    flops = stage_flops(network, data.take(np.arange(size)).x, phase.labels)
    (program,) = check(network, [phase], RunSettings(cross_entropy))
    cut = cached_stages(network, program, data, budget)
    skipped = [stage.name for stage in network.stages[:cut]]
    return sum(f for name, f in flops.items() if name not in skipped)


def changed_elements(base: Network, share: float, seed: int) -> Network:
    """Returns the network with a share of the elements of every leaf changed, and all of
    the head."""
    rng = np.random.default_rng(seed)

    def part(path: str, leaf: jax.Array) -> jax.Array:
        own = 1.0 if path.startswith("head") else share
        places = rng.choice(leaf.size, round(own * leaf.size), replace=False)
        values = np.array(leaf, order="C").reshape(-1)
        values[places] += 0.1 + np.abs(values[places])
        return jnp.asarray(values.reshape(leaf.shape))

    return base._replace(params=tree.map_with_path(part, base.params))


def seconds(run: Callable[[], Any]) -> float:
    """Returns how long a call takes, its arrays computed."""
    begin = time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(run()))
    return time.perf_counter() - begin

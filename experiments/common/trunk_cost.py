"""What a trunk costs: the source task and others on the same images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import subtune_jax as st
from experiments.common.speed import seconds

__all__ = ["accuracy", "blocks", "floor", "images", "timed", "trunk", "with_units"]

RESNET50 = st.models.ImageNetResNetConfig((3, 4, 6, 3), bottleneck=True)


def trunk(settings: Any, job: Any) -> dict[str, Any]:
    """Returns what a trunk of the source task and `job.tasks` others costs."""
    network, x = images(settings)
    base = st.deltas.base_fingerprint(network)
    deltas = {"source": st.extract(network, network, fingerprint=base)}
    for seed in range(job.tasks):
        tuned = with_units(network, job.changed.split(), seed)
        deltas[f"task{seed}"] = st.extract(network, tuned, fingerprint=base)
    served = st.serving.plan(network, deltas, stacked=settings.stacked)
    one = st.serving.plan(network, {"source": deltas["source"]})
    alone = [st.serving.plan(network, {n: d}) for n, d in deltas.items()]
    pixels = jax.device_put(x)
    return timed(
        settings.repeats,
        {
            "value": lambda: served(pixels),
            "one": lambda: one(pixels),
            "separate": lambda: [each(pixels) for each in alone],
        },
    ) | {
        "flops": st.serving.trunk_flops(served, pixels),
        "one_flops": st.serving.trunk_flops(one, pixels),
        "floor": floor(served, pixels),
        "bytes": sum(len(st.deltas.to_bytes(delta)) for delta in deltas.values()),
        "total_params": st.tree.count(network.params),
    }


def floor(served: st.serving.Trunk, x: Any) -> int:
    """Returns the FLOPs of every stage times the distinct streams there, and of the heads."""
    flops = st.cost.stage_flops(served.network, x)
    *body, head = flops.values()
    streams = [sum(map(len, groups)) for groups in served.layout.groups]
    shared = sum(f * n for f, n in zip(body, streams, strict=True))
    return shared + head * len(served.members)


def images(settings: Any) -> tuple[st.Network, np.ndarray]:
    """Returns the network of a trunk with random weights, and random images."""
    size, key = (224, 32)[settings.network == "resnet26"], jax.random.key(0)
    if settings.network == "resnet50" and not settings.common.smoke:
        network = st.models.imagenet_resnet(RESNET50, key)
    else:
        counts = (1,) * 3 if settings.common.smoke else (4,) * 3
        network = st.models.resnet(st.models.ResNetConfig(blocks=counts), key)
    shape = (settings.examples, size, size, 3)
    return network, np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def blocks(network: st.Network) -> list[str]:
    """Returns the names of the residual blocks."""
    return [stage.name for stage in network.stages if stage.name.startswith("block")]


def with_units(network: st.Network, units: Sequence[str], seed: int) -> st.Network:
    """Returns the network with all leaves of units a little larger, and another head."""
    factor, head = 1 + (seed + 1) / 1000, network.stages[-1].name

    def part(path: str, leaf: jax.Array) -> jax.Array:
        return leaf * factor if path.split("/")[0] in (*units, head) else leaf

    return network._replace(params=st.tree.map_with_path(part, network.params))


def accuracy(settings: Any, job: Any) -> dict[str, Any]:
    """Returns the accuracy of tuning one unit and the head on digits of low contrast, and
    what a trunk of the source and this task costs."""
    task = st.demo.digits_task("contrast", seed=job.seed)
    network = task.network
    units = [".*"] if job.changed == "all" else [job.changed, network.stages[-1].name]
    steps = 2 if settings.common.smoke else 75

    def phases(rate: float) -> list[st.Phase]:
        labels = st.select(network, {"tuned": units})
        return [st.Phase(labels, st.adam(rate), steps=steps)]

    chosen = st.tune(
        network,
        phases,
        [1e-2, 1e-3],
        task,
        key=jax.random.key(job.seed),
        settings=st.Settings(batch_size=20),
    )
    score = st.test_once(chosen, task)
    delta = st.extract(network, chosen.network)
    source = st.extract(network, network)
    served = st.serving.plan(network, {"source": source, "task": delta})
    one = st.serving.plan(network, {"source": source})
    x = jax.device_put(np.zeros((64, 8, 8, 1), np.uint8))
    return timed(
        20 * settings.repeats, {"value": lambda: served(x), "one": lambda: one(x)}
    ) | {
        "score": score[task.metric],
        "flops": st.serving.trunk_flops(served, x),
        "one_flops": st.serving.trunk_flops(one, x),
        "total_params": st.tree.count(network.params),
    }


def timed(repeats: int, calls: Mapping[str, Callable]) -> dict[str, float]:
    """Returns the median seconds of each call, taken in turn: noise meets all of them."""
    for call in calls.values():
        seconds(call)  # compiles
    rounds = [
        {name: seconds(call) for name, call in calls.items()} for _ in range(repeats)
    ]
    return {name: float(np.median([one[name] for one in rounds])) for name in calls}

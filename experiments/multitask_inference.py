"""What many tasks on one base cost beside one model, and beside a model for each.

Claim (SubTuning, Kaplun et al. 2023): tasks that tune a few layers share all others at
inference, so that a task more costs what lies above its first tuned layer, or less.

    python -m experiments.multitask_inference      # two minutes on two cores
    python -m experiments.multitask_inference --parts unit pair tasks mixed accuracy
    python -m experiments.multitask_inference --network resnet50 --examples 4 --parts tasks

Random weights and inputs, which do not change the time; accuracies are of the embedded
digits. A trunk answers for all tasks on the same images; a mixed batch has a task for
each text, on an encoder of MiniLM's shape. Ours is in the documentation, made from
results/.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive, one_of
from experiments.common.report import results
from experiments.common.report.plots import scattered
from experiments.common.report.results import Row
from experiments.common.speed import (
    MINILM,
    SMALL,
    changed_elements,
    random_texts,
    require_no_data,
    seconds,
)
from experiments.common.study import Config, Context, Study, main

RESNET50 = st.models.ImageNetResNetConfig((3, 4, 6, 3), bottleneck=True)
PARTS = ("unit", "pair", "tasks", "mixed", "accuracy")
KINDS = ("LayerNorms, biases", "LoRA, rank 8", "0.5 % of elements")
Change = Callable[[st.Network, int], tuple[st.Network, Mapping[str, Any]]]


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    parts: Annotated[tuple[str, ...], *one_of(*PARTS)] = ("accuracy", "unit", "tasks")
    """What is measured: a task that tuned one unit, or two neighbours; 1 to 32 tasks on the
    last; mixed batches; accuracy against time."""
    network: Annotated[str, *one_of("resnet26", "resnet50")] = "resnet26"
    """Of a trunk: a residual network of CIFAR's size, or of ImageNet's (SubTuning)."""
    examples: Positive[int] = 16
    """Images of a batch (SubTuning: 1)."""
    texts: Positive[int] = 64
    """Texts of a mixed batch."""
    tokens: Positive[int] = 128
    """Tokens of a text."""
    tasks: tuple[int, ...] = (1, 4, 16)
    """How many tasks a mixed batch has."""
    repeats: Positive[int] = 5
    """How often each call is timed; the median is shown."""
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {
        "examples": 2,
        "texts": 4,
        "tokens": 8,
        "tasks": (2,),
        "repeats": 1,
    }

    def check(self, settings: Any) -> None:
        """Raises `InputError` for flags without a use."""
        require_no_data(self)
        for count in self.tasks:
            if count < 1:
                raise st.InputError(
                    f"--tasks must be positive whole numbers, got {count}"
                )


class Job(NamedTuple):
    """What is measured: of a part, what tasks changed, and how many there are."""

    part: str
    changed: str
    tasks: int
    seed: int


def jobs(settings: Settings, task: None) -> list[Job]:
    """Returns the measurements of all parts."""
    blocks, counts = _blocks(_images(settings)[0]), (1, 2, 4, 8, 16, 32)
    mixed = [(kind, count) for kind in KINDS for count in settings.tasks]
    neighbours = [" ".join(pair) for pair in zip(blocks, blocks[1:], strict=False)]
    digits = [*_blocks(st.demo.digits_task("contrast").network), "all"]
    every = {
        "unit": [(block, 1) for block in blocks],
        "pair": [(pair, 1) for pair in neighbours],
        "tasks": [(blocks[-1], count) for count in counts],
        "mixed": mixed,
        "accuracy": [(block, 1) for block in digits],
    }
    short = 1 if settings.common.smoke else None
    return [
        Job(part, changed, count, 0)
        for part in settings.parts
        for changed, count in every[part][:short]
    ]


def _blocks(network: st.Network) -> list[str]:
    return [stage.name for stage in network.stages if stage.name.startswith("block")]


def _images(settings: Settings) -> tuple[st.Network, np.ndarray]:
    size, key = (224, 32)[settings.network == "resnet26"], jax.random.key(0)
    if settings.network == "resnet50" and not settings.common.smoke:
        network = st.models.imagenet_resnet(RESNET50, key)
    else:
        blocks = (1,) * 3 if settings.common.smoke else (4,) * 3
        network = st.models.resnet(st.models.ResNetConfig(blocks=blocks), key)
    shape = (settings.examples, size, size, 3)
    return network, np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def rows(settings: Settings, task: None, job: Job, context: Context) -> Iterator[Row]:
    """Yields a row: seconds of a call, of one model, and of a model for each task."""
    measure = {"mixed": mixed_batch, "accuracy": accuracy}.get(job.part, trunk)
    measured = measure(settings, job)
    yield {
        "dataset": "digits" if job.part == "accuracy" else "random",
        "method": f"{job.part}: {job.changed}",
        "metric": "seconds",
        "split": "test",
        "trainable_params": 0,
        "steps": settings.repeats,
        "seconds": measured["value"] * settings.repeats,
        "commit": results.commit(),
        **measured,
    }


def trunk(settings: Settings, job: Job) -> dict[str, Any]:
    """Returns what a trunk of the source task and `job.tasks` others costs."""
    network, x = _images(settings)
    base = st.deltas.base_fingerprint(network)
    deltas = {"source": st.extract(network, network, fingerprint=base)}
    for seed in range(job.tasks):
        tuned = with_units(network, job.changed.split(), seed)
        deltas[f"task{seed}"] = st.extract(network, tuned, fingerprint=base)
    served = st.serving.plan(network, deltas)
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


def with_units(network: st.Network, units: Sequence[str], seed: int) -> st.Network:
    """Returns the network with all leaves of units a little larger, and another head."""
    factor, head = 1 + (seed + 1) / 1000, network.stages[-1].name

    def part(path: str, leaf: jax.Array) -> jax.Array:
        return leaf * factor if path.split("/")[0] in (*units, head) else leaf

    return network._replace(params=st.tree.map_with_path(part, network.params))


def mixed_batch(settings: Settings, job: Job) -> dict[str, Any]:
    """Returns what a batch costs whose rows belong to `job.tasks` tasks in turn."""
    small = settings.common.smoke
    config = st.models.BertConfig(**(SMALL if small else MINILM), pooling="mean")
    network, data = random_texts(settings.texts, settings.tokens, config)
    x = jax.device_put({n: np.asarray(leaf) for n, leaf in data.x.items()})
    served = st.serving.Mixed(network)
    deltas = {}
    for seed in range(job.tasks):
        deltas[f"task{seed}"] = CHANGES[job.changed](network, seed)
        served.put(f"task{seed}", deltas[f"task{seed}"])
    names = [f"task{i % job.tasks}" for i in range(settings.texts)]
    source = st.serving.Mixed(network)
    source.put("task0", st.extract(network, network))
    parts = {
        name: np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names)
    }
    own = {
        name: jax.tree.map(lambda leaf, i=i: leaf[i], x) for name, i in parts.items()
    }
    alone = {n: st.serving.plan(network, {n: delta}) for n, delta in deltas.items()}
    first = ["task0"] * settings.texts
    return timed(
        settings.repeats,
        {
            "value": lambda: served(x, names),
            "one": lambda: source(x, first),
            "separate": lambda: [alone[n](own[n]) for n in own],
        },
    ) | {
        "flops": served.flops(x, names),
        "one_flops": source.flops(x, first),
        "bytes": sum(len(st.deltas.to_bytes(delta)) for delta in deltas.values()),
        "total_params": st.tree.count(network.params),
    }


def small_leaves(network: st.Network, seed: int) -> st.Delta:
    """Returns a task that changed all LayerNorms and biases, and its head."""
    head = network.stages[-1].name

    def part(path: str, leaf: jax.Array) -> jax.Array:
        small = leaf.ndim == 1 or path.startswith(head)
        return leaf + 0.01 * (seed + 1) if small else leaf

    tuned = network._replace(params=st.tree.map_with_path(part, network.params))
    return st.extract(network, tuned)


def low_rank(network: st.Network, seed: int) -> st.Delta:
    """Returns a task with factors of rank 8 of every kernel of the layers."""
    labels = st.select(network, {"tuned": [r"layer_\d+/.*kernel"], "head": ["head"]})
    tuning, key = st.tuning.lora(8), jax.random.key(seed)
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


CHANGES = dict(zip(KINDS, (small_leaves, low_rank, some_elements), strict=True))


def accuracy(settings: Settings, job: Job) -> dict[str, Any]:
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


def of_part(part: str, rows: Sequence[Row], config: Config) -> str:
    """Returns a part's rows as markdown, relative to one model."""
    head = "| changed | tasks | ms | one model ms | ratio | separate | GFLOP ratio | bytes |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if row["part"] == part:
            times = (row["value"] / row["one"], row["separate"] / row["one"])
            lines.append(
                f"| {row['changed']} | {row['tasks']} | {1000 * row['value']:.1f} | "
                f"{1000 * row['one']:.1f} | {times[0]:.2f} | {times[1]:.2f} | "
                f"{row['flops'] / row['one_flops']:.3f} | {row['bytes']:,} |"
            )
    return "\n".join(lines)


def accuracies(rows: Sequence[Row], config: Config) -> str:
    """Returns the accuracy of each unit beside what serving it costs."""
    lines = ["| tuned | accuracy | time, one model is 1 | FLOPs |", "|---|---|---|---|"]
    lines += [
        f"| {row['changed']} | {row['score']:.1f} | {row['value'] / row['one']:.2f} | "
        f"{row['flops'] / row['one_flops']:.2f} |"
        for row in rows
        if row["part"] == "accuracy"
    ]
    return "\n".join(lines)


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns the tables of all parts that were measured."""
    tables = []
    for part in dict.fromkeys(row["part"] for row in rows):
        whole = accuracies if part == "accuracy" else partial(of_part, part)
        tables.append(f"{part}\n\n{whole(rows, config)}")
    return "\n\n".join(tables)


def draw(out: Path, rows: Sequence[Row], settings: Any, task: Any) -> None:
    """Writes the picture of accuracy against time."""
    points = {
        row["changed"]: (row["value"] / row["one"], row["score"])
        for row in rows
        if row["part"] == "accuracy"
    }
    if points:
        label = "time for the source and this task (one model is 1)"
        scattered(points, out / "accuracy.png", label, "accuracy (%)")


STUDY = Study(
    settings=Settings,
    job=Job,
    name="multitask_inference",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary}
    | {part: partial(of_part, part) for part in PARTS[:-1]}
    | {"accuracy": accuracies},
    draw=draw,
    free=("parts", "tasks"),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

"""What it takes to keep many tasks of one network: a delta for each, or a copy.

Claim (diff pruning, Guo et al. 2021; SubTuning, Kaplun et al. 2023): where a task changes
few of a network's weights, a thousand tasks on one base take little more than the base.

    python -m experiments.storage      # embedded encoder
    python -m experiments.storage --weights minilm --out runs/storage_minilm

Two CPU cores: half a minute, and two minutes. Bytes are those of real files. What a task
changes is drawn at random, not trained: sizes do not depend on the values. The bound is
that of an ideal code: log2 C(n, k) bits for k places among n, and the values as they are.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import lgamma, log
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, one_of
from experiments.common.report import results
from experiments.common.report.plots import curves
from experiments.common.report.results import Row
from experiments.common.study import Config, Context, Study, main

METHODS = ("head", "layer_norms", "elements_0.5", "lora_8", "elements_5", "full")
TASKS = (1, 3, 10, 30, 100, 300, 1000)
KERNELS = ["attention", "feed_forward"]  # what LoRA adapts, and elements are drawn from


@dataclass(frozen=True)
class Settings:
    """Flags; every default is our choice."""

    methods: tuple[str, ...] = METHODS
    """What a task changes beside the head: head (nothing), full, a unit (layer_norms) or a
    pattern, elements_P (P percent of the kernels' elements, at random), or lora_R (rank
    R, on the kernels)."""
    values: Annotated[tuple[str, ...], *one_of("exact", "bfloat16")] = (
        "exact",
        "bfloat16",
    )
    """How changed values are stored."""
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"methods": ("head", "elements_5", "lora_8")}


class Job(NamedTuple):
    """What a task changes, and how its values are stored."""

    method: str
    values: str
    seed: int


def jobs(settings: Settings, task: None) -> list[Job]:
    """Returns every way to tune with every way to store it."""
    base = network(settings)
    for method in settings.methods:
        labels_of(base, method)
    return [Job(*pair, 0) for pair in product(settings.methods, settings.values)]


def network(settings: Settings) -> st.Network:
    """Returns the base: that of the weights, or the embedded encoder."""
    weights = settings.common.weights
    if weights is None:
        return st.demo.docstrings_network()
    pooling = {"pooling": "mean"} if weights == "minilm" else {}
    return st.load_pretrained(weights, 2, **pooling)


def labels_of(base: st.Network, method: str) -> Any:
    """Returns the labels of a method's weights and the head; raises `InputError` for an
    unknown one."""
    special = {"head": [], "full": [".*"]}
    kernels = re.fullmatch(r"elements_(\d+(?:\.\d+)?)|lora_[1-9]\d*", method)
    if kernels and kernels[1] and not 0 < float(kernels[1]) <= 100:
        raise st.InputError(f"{method} is no percentage above 0 and up to 100")
    chosen = KERNELS if kernels else special.get(method, [method])
    groups = {"head": ["head"]} | ({"tuned": chosen} if chosen else {})
    return st.select(base, groups)


def rows(settings: Settings, task: None, job: Job, context: Context) -> Iterator[Row]:
    """Yields the row of a task: the bytes of its file, and those of an ideal code."""
    begin, base = time.perf_counter(), network(settings)
    tuned, factors = changed(base, job.method)
    delta = st.extract(base, tuned, factors=factors, values=job.values)
    data = st.deltas.to_bytes(delta)
    header = 8 + int.from_bytes(data[:8], "little")
    labels = labels_of(base, job.method)
    total = st.tree.count(base.params)
    yield {
        "dataset": settings.common.weights or "docstrings",
        "metric": "bytes a task",
        "split": "train",
        "value": len(data),
        "header": header,
        "bound": bound(delta),
        "base_bytes": sum(x.nbytes for x in jax.tree.leaves(base.params)),
        "trainable_params": stored(delta),
        "selected_params": st.count_trainable(base, labels),
        "total_params": total,
        "steps": 0,
        "seconds": time.perf_counter() - begin,
        "commit": results.commit(),
    }


def changed(base: st.Network, method: str) -> tuple[st.Network, dict | None]:
    """Returns the base with the values of a method moved, and the factors of LoRA."""
    labels, key = labels_of(base, method), jax.random.key(0)
    rng = np.random.default_rng(0)
    way, _, number = method.partition("_")
    if way == "lora":
        tuning = st.tuning.lora(int(number))
        trainable, fixed = tuning.init(base.params, labels, key)
        trainable = jax.tree.map(lambda x: moved(x, 1.0, rng), trainable)
        params = tuning.materialize(trainable, fixed, base.params, None)
        return base._replace(params=params), st.tuning.lora_factors(trainable)
    share = float(number) / 100 if way == "elements" else 1.0
    groups = st.tree.flatten(labels)

    def part(path: str, leaf: Any) -> Any:
        rests = groups[path] == "frozen" or (way == "elements" and leaf.ndim < 2)
        if rests and groups[path] != "head":
            return leaf
        return moved(leaf, 1.0 if groups[path] == "head" else share, rng)

    return base._replace(params=st.tree.map_with_path(part, base.params)), None


def moved(leaf: Any, share: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a leaf with this share of its elements changed, each by a tenth or more."""
    values = np.array(leaf, order="C")  # a loaded kernel may lie transposed
    places = rng.choice(values.size, round(share * values.size), replace=False)
    flat = values.reshape(-1)
    flat[places] += (0.1 + np.abs(flat[places])).astype(values.dtype)
    return values


def stored(delta: st.Delta) -> int:
    """Returns how many values a delta stores."""
    whole = sum(array.size for array in delta.whole.values())
    factors = sum(a.size + b.size for a, b, _ in delta.factors.values())
    return whole + factors + sum(len(e.values) for e in delta.elements.values())


def bound(delta: st.Delta) -> int:
    """Returns the bytes of an ideal code of a delta: places by their entropy, no header."""
    whole = sum(array.nbytes for array in delta.whole.values())
    factors = sum(a.nbytes + b.nbytes for a, b, _ in delta.factors.values())
    values = sum(e.values.nbytes for e in delta.elements.values())
    n = sum(int(np.prod(e.shape)) for e in delta.elements.values())
    k = sum(len(e.values) for e in delta.elements.values())
    nats = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    return int(whole + factors + values + nats / log(2) / 8)


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns bytes by what a task changes, and those of a thousand tasks with the base."""
    base = rows[0]["base_bytes"]
    head = (
        "| a task changes | values | stored numbers | kB a task | bound | MB for 1,000 "
        "tasks | of 1,000 copies |"
    )
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in rows:
        thousand = base + 1000 * row["value"]
        lines.append(
            f"| {row['method']} | {row['values']} | {row['trainable_params']:,} | "
            f"{row['value'] / 1e3:,.1f} | {row['bound'] / 1e3:,.1f} | "
            f"{thousand / 1e6:,.0f} | {thousand / base / 10:.1f} % |"
        )
    note = (
        f"{rows[0]['dataset']}: {rows[0]['total_params']:,} parameters, {base:,} bytes."
    )
    return f"{note}\n\n" + "\n".join(lines)


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: None) -> None:
    """Draws storage.png: megabytes with the base by the number of tasks."""
    base, count = rows[0]["base_bytes"] / 1e6, np.array(TASKS)
    panels: dict[str, dict[str, tuple]] = {}
    for row in rows:
        lines = panels.setdefault(f"values {row['values']}", {})
        lines[row["method"]] = (count, base + count * row["value"] / 1e6)
    for lines in panels.values():
        lines["full copies"] = (count, base * count)
    curves(
        panels,
        out / "storage.png",
        xlabel="tasks",
        ylabel="MB, the base with it",
        log="both",
    )


STUDY = Study(
    settings=Settings,
    job=Job,
    name="storage",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary},
    draw=draw,
    free=("methods", "values"),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

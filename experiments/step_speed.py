"""What a step of an encoder costs in seconds, by what is tuned, and beside PyTorch.

Claim: the less is tuned, the faster a step is, and below the lowest tuned layer nothing
costs anything; where the backward pass goes through all layers, a step on a CPU takes
what it takes in PyTorch, within a tenth.

    python -m experiments.step_speed
    pip install torch transformers      # optional: then PyTorch's times stand beside it

Two minutes on two cores. An encoder of MiniLM's shape (6 layers of width 384) with dropout
0.1, random weights and tokens, batches of 16 x 128. `plain` sends a base in NumPy to the
device at every step and lets frozen layers drop out, as this project once did; `placed`
has the base on its device, and computes once what lies below the lowest tuned layer (the
one pass that fills the cache is not timed). All ways take turns in one process, so that a
noisy machine is as noisy for each, and the process keeps the memory that it frees
(`subtune_jax.memory`). On a GPU set JAX_DEFAULT_MATMUL_PRECISION=highest: PyTorch multiplies
in float32 there, and JAX by default does not. Ours is in the documentation, made from
results/.
"""

import importlib.util
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive
from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.common.speed import (
    MINILM,
    SMALL,
    Step,
    keep_freed_memory,
    last_two,
    our_step,
    random_texts,
    require_no_data,
    torch_shape,
)
from experiments.common.study import Config, Context, Study, main


@dataclass(frozen=True)
class Settings:
    """Flags; every default is our choice."""

    tokens: Positive[int] = 128
    """Tokens of a text."""
    batch_size: Positive[int] = 16
    """Texts of a step."""
    steps: Positive[int] = 10
    """Steps that are timed of each way, after two that are not."""
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"tokens": 8, "batch_size": 4, "steps": 2}

    def check(self, settings: Any) -> None:
        """Raises `InputError` for flags without a use."""
        require_no_data(self)


class Job(NamedTuple):
    """What is tuned."""

    method: str
    seed: int


def jobs(settings: Settings, task: None) -> list[Job]:
    """Returns what is tuned, once each."""
    if settings.common.smoke:  # a test's process has more to do than this
        return [Job("full", 0), Job("head", 0)]
    keep_freed_memory()
    _, network, _ = encoder(settings)
    return [Job(method, 0) for method in selections(network)]


def encoder(settings: Settings) -> tuple[st.models.BertConfig, st.Network, st.Dataset]:
    """Returns an encoder of MiniLM's shape and a batch of texts; the smoke's is small."""
    small = settings.common.smoke
    words = 50 if small else 30_522
    config = st.models.BertConfig(
        words, **(SMALL if small else MINILM), pooling="dense"
    )
    return config, *random_texts(settings.batch_size, settings.tokens, config)


def selections(network: st.Network) -> dict[str, list[str]]:
    """Returns what is tuned, by name."""
    return {
        "full": [".*"],
        "last two layers": last_two(network),
        "LayerNorms and head": ["layer_norms", "head"],
        "head": ["head"],
    }


def rows(settings: Settings, task: None, job: Job, context: Context) -> Iterator[Row]:
    """Yields a row for each way of taking a step, all timed in turn."""
    config, network, data = encoder(settings)
    entries = selections(network)[job.method]
    steps = {
        "plain": our_step(network, data, entries, placed=False),
        "placed": our_step(network, data, entries, placed=True),
    }
    if all(map(importlib.util.find_spec, ("torch", "transformers"))):
        steps["PyTorch"] = torch_step(config, data, entries)
    labels = st.select(network, {"tuned": entries})
    for way, value in in_turn(steps, settings.steps).items():
        yield {
            "way": way,
            "dataset": "random",
            "metric": "seconds per step",
            "split": "train",
            "value": value,
            "trainable_params": st.count_trainable(network, labels),
            "total_params": st.tree.count(network.params),
            "steps": settings.steps,
            "seconds": value * settings.steps,
            "commit": results.commit(),
        }


def torch_step(
    config: st.models.BertConfig, data: st.Dataset, entries: list[str]
) -> Step:
    """Returns one step of PyTorch's encoder of the same shape with the same selection, on a
    GPU if JAX runs on one."""
    import torch
    import transformers

    on_gpu = jax.default_backend() == "gpu"
    device = "cuda" if on_gpu else "cpu"
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            **torch_shape(config),
            attention_probs_dropout_prob=0.0,  # as ours
        )
    ).train()
    model.to(device)
    names = torch_names(entries)
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(any(re.search(part, name) for part in names))
    tuned = [tensor for tensor in model.parameters() if tensor.requires_grad]
    moves = torch.optim.Adam(tuned, 1e-3)
    x = {k: torch.tensor(v.astype(np.int64), device=device) for k, v in data.x.items()}
    y = torch.tensor(data.y.astype(np.int64), device=device)

    def once() -> None:
        moves.zero_grad()
        model(**x, labels=y).loss.backward()
        moves.step()
        if on_gpu:  # calls return before the GPU is done
            torch.cuda.synchronize()

    return once


def torch_names(entries: list[str]) -> list[str]:
    """Returns the parts of PyTorch's names that a selection stands for."""
    theirs = {".*": "", "layer_norms": "encoder.*LayerNorm", "head": "classifier"}
    return [
        theirs.get(entry, entry.replace("layer_", "encoder.layer."))
        for entry in entries
    ]


def in_turn(steps: dict[str, Step], times: int) -> dict[str, float]:
    """Returns the median seconds of each step, each called once in every round; who
    begins moves on by one, as no way should always come after the same other."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(times + 2):  # the first two compile and warm up
        names = list(steps)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            steps[name]()
            spent[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values[2:])) for name, values in spent.items()}


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns seconds a step by what is tuned and way, and ours as a share of PyTorch's."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    seconds = {(row["method"], row["way"]): row["value"] for row in rows}
    beside = ["placed / PyTorch"] if "PyTorch" in ways else []
    lines = [f"| tuned | {' | '.join([*ways, *beside])} |"]
    lines.append(f"|---|{'---|' * (len(ways) + len(beside))}")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [f"{seconds[method, way]:.3f}" for way in ways]
        if beside:
            share = seconds[method, "placed"] / seconds[method, "PyTorch"]
            cells.append(f"{share:.2f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="step_speed",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary},
)

if __name__ == "__main__":
    main(STUDY, __doc__)

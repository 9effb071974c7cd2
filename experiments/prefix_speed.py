"""How much faster tuning the last two blocks is when the frozen prefix is cached.

Claim: the lowest tuned stage says where the backward pass ends and which activations
need computing only once.

    python -m experiments.prefix_speed      # 2 minutes on two cores
    python -m experiments.prefix_speed --network minilm --out runs/prefix_speed_texts

ResNet-26 on random images of CIFAR's size, or an encoder of MiniLM's shape, without
dropout, on random tokens, with random weights: neither changes the time. Ours is in the
documentation, made from results/.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive, default, one_of
from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.common.speed import (
    MINILM,
    SMALL,
    last_two,
    random_images,
    random_texts,
    require_no_data,
    step_flops,
)
from experiments.common.study import Config, Context, Study, main

# What is tuned, and how many bytes of activations may be kept.
METHODS = {
    "all": ([".*"], 0),
    "last two blocks": ([], 0),
    "last two, cached": ([], 2**30),
}


@dataclass(frozen=True)
class Settings:
    """Flags; every default is our choice."""

    network: Annotated[str, *one_of("resnet26", "minilm")] = "resnet26"
    """What is tuned: a residual network, or a BERT-style encoder."""
    units: Annotated[
        tuple[str, ...],
        default("the last two blocks or layers, and what follows", "UNIT..."),
    ] = ()
    """Which units."""
    examples: Positive[int] = 1000
    """Examples (1,000: the target size of surgical fine-tuning)."""
    tokens: Annotated[Positive[int] | None, default("128", "INT")] = None
    """Tokens of a text."""
    batch_size: Positive[int] = 64
    """Examples per step."""
    epochs: Positive[int] = 3
    """Passes over the examples; the first, which compiles and caches, is timed apart."""
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"examples": 8}

    def check(self, settings: Any) -> None:
        """Raises `InputError` for flags without a use."""
        require_no_data(self)
        if self.tokens is not None and self.network != "minilm":
            raise st.InputError(f"{self.network} reads no texts: --tokens has no use")


class Job(NamedTuple):
    """What is tuned, and whether its prefix is cached."""

    method: str
    seed: int


def jobs(settings: Settings, task: None) -> list[Job]:
    """Returns the three ways, once."""
    network, _ = network_and_data(settings)
    st.select(network, {"tuned": list(settings.units) or last_two(network)})
    return [Job(method, 0) for method in METHODS]


def network_and_data(settings: Settings) -> tuple[st.Network, st.Dataset]:
    """Returns what is timed; the smoke setting's network is small."""
    small = settings.common.smoke
    if settings.network == "resnet26":
        return random_images(settings.examples, small=small)
    tokens = settings.tokens or 128
    config = st.models.BertConfig(
        **(SMALL if small else MINILM),
        max_positions=max(512, tokens),
        dropout=0.0,
        pooling="mean",
    )
    return random_texts(settings.examples, tokens, config)


def rows(settings: Settings, task: None, job: Job, context: Context) -> Iterator[Row]:
    """Yields a row: seconds of the first epoch and of one after it, FLOPs of a step."""
    entries, budget = METHODS[job.method]
    network, data = network_and_data(settings)
    entries = entries or list(settings.units) or last_two(network)
    labels = st.select(network, {"tuned": entries})
    size = min(settings.batch_size, len(data.y))
    per_epoch = -(-len(data.y) // size)
    phase = st.Phase(labels, st.adam(1e-3), per_epoch * (1 + settings.epochs))
    ends: list[float] = []  # the first before any step: `fit` tries `validate` then

    def clock(network: st.Network) -> float:
        ends.append(time.perf_counter())
        return 0.0

    st.fit(
        network,
        phase,
        data,
        key=jax.random.key(0),
        settings=st.Settings(batch_size=size, cache_bytes=budget),
        validate=clock,
    )
    spent = np.diff(ends)
    yield {
        "dataset": f"random, {settings.network}",
        "metric": "seconds per epoch",
        "split": "train",
        "value": float(np.median(spent[1:])),
        "first_epoch": float(spent[0]),
        "step_flops": step_flops(network, phase, data, size, budget),
        "trainable_params": st.count_trainable(network, labels),
        "total_params": st.tree.count(network.params),
        "steps": phase.steps,
        "seconds": float(spent.sum()),
        "commit": results.commit(),
    }


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns the rows as markdown, speeds relative to the first."""
    head = "| tuned | GFLOP a step | s an epoch | first epoch | speed-up |"
    lines = [head, "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['method']} | {row['step_flops'] / 1e9:.2f} | {row['value']:.2f} | "
            f"{row['first_epoch']:.2f} | {rows[0]['value'] / row['value']:.1f} |"
        )
    return "\n".join(lines)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="prefix_speed",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary},
)

if __name__ == "__main__":
    main(STUDY, __doc__)

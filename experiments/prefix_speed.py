"""How much faster tuning the last two blocks is when the frozen prefix is cached.

    python -m experiments.prefix_speed      # 2 minutes on two cores
    python -m experiments.prefix_speed --network minilm --out runs/prefix_speed_texts

Claim: the lowest tuned stage says where the backward pass ends and which activations
need computing only once. ResNet-26 on random images of CIFAR's size, or an encoder of
MiniLM's shape, without dropout (with it nothing can be cached), on random tokens, with
random weights: neither changes the time. Measured
here: the README's section "What it costs".
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from experiments.cli import Common, Flags, as_config, main
from experiments.common.report import results
from subtune_jax.cost import stage_flops
from subtune_jax.data.batches import Dataset
from subtune_jax.errors import InputError, require_positive
from subtune_jax.losses import cross_entropy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.network import Network
from subtune_jax.selection.select import count_trainable, select
from subtune_jax.training import phases
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase, check
from subtune_jax.training.prefix_cache import cached_stages
from subtune_jax.tree import count

NAME = "prefix_speed"
WAYS = {"all": ([".*"], 0), "last two blocks": ([], 0), "last two, cached": ([], 2**30)}


@dataclass(frozen=True)
class Settings:
    """Flags; every default is our choice."""

    network: Literal["resnet26", "minilm"] = "resnet26"
    """What is tuned: a residual network, or a BERT-style encoder."""
    units: tuple[str, ...] = ()
    """Which units; default: the last two blocks or layers, with what follows them."""
    examples: int = 1000
    """Examples (1,000: the target size of surgical fine-tuning)."""
    tokens: int | None = None
    """Tokens of a text; default 128."""
    batch_size: int = 64
    """Examples per step."""
    epochs: int = 3
    """Passes over the images; the first, which compiles and caches, is timed apart."""
    common: Flags = field(default_factory=Common)


def run(settings: Settings) -> None:
    """Times the three ways and prints a table of FLOPs and seconds."""
    settings.common.check()
    require_positive(
        examples=settings.examples,
        batch=settings.batch_size,
        epochs=settings.epochs,
    )
    if settings.tokens is not None and settings.network != "minilm":
        raise InputError(f"{settings.network} reads no texts: --tokens has no use")
    if settings.common.weights or settings.common.data_dir:
        raise InputError("data and weights are random here: --weights has no use")
    network, data = (images if settings.network == "resnet26" else texts)(settings)
    units = settings.units or default_units(network)
    out = settings.common.out or Path("runs") / NAME
    results.open_folder(out, as_config(settings))
    rows = [
        timed(network, selection or list(units), budget, data, settings)
        | {
            "method": name,
            "dataset": f"random, {settings.network}",
            "experiment": NAME,
            "commit": results.commit(),
        }
        for name, (selection, budget) in WAYS.items()
    ]
    results.keep(out, rows)
    table = speed_table(rows)
    results.write(out / "summary.md", f"{table}\n")
    print(table)


def images(settings: Settings) -> tuple[Network, Dataset]:
    """Returns ResNet-26 and images of CIFAR's size; the smoke setting's are few."""
    small = settings.common.smoke
    network = resnet(
        ResNetConfig(blocks=(1,) * 3 if small else (4,) * 3), jax.random.key(0)
    )
    rng, n = np.random.default_rng(0), 8 if small else settings.examples
    pixels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return network, Dataset(pixels, np.arange(n, dtype=np.int32) % 10)


def texts(settings: Settings) -> tuple[Network, Dataset]:
    """Returns an encoder of MiniLM's shape (6 layers of width 384) and token ids."""
    small, tokens = settings.common.smoke, settings.tokens or 128
    require_positive(tokens=tokens)
    shape = {"num_layers": 3, "hidden_size": 24}
    shape = shape if small else {"num_layers": 6, "hidden_size": 384}
    config = BertConfig(
        **shape,
        intermediate_size=4 * shape["hidden_size"],
        max_positions=max(512, tokens),
        dropout=0.0,
        pooling="mean",
    )
    rng, n = np.random.default_rng(0), 8 if small else settings.examples
    ids = rng.integers(1, config.vocab_size, (n, tokens), dtype=np.int32)
    x = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    x["token_type_ids"] = np.zeros_like(ids)
    return bert(config, jax.random.key(0)), Dataset(x, np.arange(n, dtype=np.int32) % 2)


def default_units(network: Network) -> list[str]:
    """Returns the last two blocks or layers of a network, and all stages behind them."""
    names = [stage.name for stage in network.stages if network.params[stage.name]]
    blocks = [n for n in names if n.startswith(("block", "layer"))]
    return names[names.index(blocks[-2]) :]


def timed(
    network: Network,
    selection: list[str],
    budget: int,
    data: Dataset,
    settings: Settings,
) -> dict:
    """Returns a row: seconds of the first epoch and of one after it, FLOPs of a step."""
    labels = select(network, {"tuned": selection})
    size = min(settings.batch_size, len(data.y))
    per_epoch = -(-len(data.y) // size)
    ends: list[float] = []  # the first before any step: `fit` tries `validate` then
    phase = Phase(labels, adam(1e-3), per_epoch * (1 + settings.epochs))
    fit(
        network,
        phase,
        data,
        key=jax.random.key(0),
        batch_size=size,
        cache_bytes=budget,
        validate=lambda _: float(ends.append(time.perf_counter()) or 0),
    )
    spent = np.diff(ends)
    flops = stage_flops(network, data.take(np.arange(size)).x, labels)
    (program,) = check(network, [phase], phases.Settings(cross_entropy))
    cut = cached_stages(network, program, data, budget)
    skipped = [stage.name for stage in network.stages[:cut]]
    return {
        "seed": 0,
        "metric": "seconds per epoch",
        "split": "train",
        "value": float(np.median(spent[1:])),
        "first_epoch": float(spent[0]),
        "step_flops": sum(f for name, f in flops.items() if name not in skipped),
        "trainable_params": count_trainable(network, labels),
        "total_params": count(network.params),
        "steps": per_epoch * (1 + settings.epochs),
        "seconds": float(spent.sum()),
    }


def speed_table(rows: list[dict]) -> str:
    """Returns the rows as markdown, speeds relative to the first."""
    head = "| tuned | GFLOP a step | s an epoch | first epoch | speed-up |"
    lines = [head, "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['method']} | {row['step_flops'] / 1e9:.2f} | {row['value']:.2f} | "
            f"{row['first_epoch']:.2f} | {rows[0]['value'] / row['value']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(run, Settings, __doc__)

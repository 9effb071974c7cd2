"""What a step of an encoder costs in seconds, by what is tuned, and beside PyTorch.

    python -m experiments.step_speed
    pip install torch transformers      # optional: then PyTorch's times stand beside it

Claim: the less is tuned, the faster a step is, and below the lowest tuned layer nothing
costs anything; where the backward pass goes through all layers, a step on a CPU takes
what it takes in PyTorch, within a tenth. An encoder of MiniLM's shape (6 layers of
width 384) with dropout 0.1, random weights and tokens, batches of 16 x 128. `plain`
sends a base in NumPy to the device at every step and lets frozen layers drop out, as
this project once did; `placed` has the base on its device, and computes once what lies
below the lowest tuned layer (the one pass that fills the cache is not timed). All ways
take turns in one process, so that a noisy machine is as noisy for each, and the process
keeps the memory that it frees (`subtune_jax.memory`). Measured here: the README's
section "What it costs".
"""

import importlib.util
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from experiments.cli import Common, Flags, as_config, main
from experiments.common.report import results
from experiments.prefix_speed import default_units
from subtune_jax.data.batches import Dataset, padded
from subtune_jax.errors import InputError, require_positive
from subtune_jax.losses import cross_entropy
from subtune_jax.memory import keep_freed_memory
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.network import Network
from subtune_jax.selection.select import count_trainable, select
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.phases import Settings as Run
from subtune_jax.training.prefix_cache import cached_stages, features
from subtune_jax.training.state import start
from subtune_jax.training.step import compiled_step
from subtune_jax.tree import count

NAME = "step_speed"
Step = Callable[[], None]


@dataclass(frozen=True)
class Settings:
    """Flags; every default is our choice."""

    tokens: int = 128
    """Tokens of a text."""
    batch_size: int = 16
    """Texts of a step."""
    steps: int = 10
    """Steps that are timed of each way, after two that are not."""
    common: Flags = field(default_factory=Common)


def run(settings: Settings) -> None:
    """Times all ways in turn, and prints a table of seconds a step."""
    settings.common.check()
    require_positive(
        tokens=settings.tokens, batch=settings.batch_size, steps=settings.steps
    )
    if settings.common.weights or settings.common.data_dir:
        raise InputError("data and weights are random here: --weights has no use")
    out = settings.common.out or Path("runs") / NAME
    if not settings.common.smoke:  # a test's process has more to do than this
        keep_freed_memory()
    results.open_folder(out, as_config(settings))
    config, network, data = encoder(settings)
    rows = []
    chosen = selections(network)
    if settings.common.smoke:
        chosen = {name: chosen[name] for name in ("full", "head")}
    for name, entries in chosen.items():
        steps = {
            "plain": ours(network, data, entries, placed=False),
            "placed": ours(network, data, entries, placed=True),
        }
        if importlib.util.find_spec("torch") and importlib.util.find_spec(
            "transformers"
        ):
            steps["PyTorch"] = torch_step(config, network, data, entries)
        times = 2 if settings.common.smoke else settings.steps
        seconds = in_turn(steps, times)
        labels = select(network, {"tuned": entries})
        rows += [
            {
                "experiment": NAME,
                "method": name,
                "way": way,
                "dataset": "random",
                "seed": 0,
                "metric": "seconds per step",
                "split": "train",
                "value": value,
                "trainable_params": count_trainable(network, labels),
                "total_params": count(network.params),
                "steps": times,
                "seconds": value * times,
                "commit": results.commit(),
            }
            for way, value in seconds.items()
        ]
    results.keep(out, rows)
    table = step_table(rows)
    results.write(out / "summary.md", f"{table}\n")
    print(table)


def encoder(settings: Settings) -> tuple[BertConfig, Network, Dataset]:
    """Returns an encoder of MiniLM's shape and a batch of texts; the smoke's are small."""
    small = settings.common.smoke
    shape = {"num_layers": 2, "hidden_size": 24}
    shape = shape if small else {"num_layers": 6, "hidden_size": 384}
    tokens, texts = (8, 4) if small else (settings.tokens, settings.batch_size)
    words = 50 if small else 30_522
    config = BertConfig(
        words, **shape, intermediate_size=4 * shape["hidden_size"], pooling="dense"
    )
    ids = np.random.default_rng(0).integers(1, config.vocab_size, (texts, tokens))
    ids = ids.astype(np.int32)
    x = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    x["token_type_ids"] = np.zeros_like(ids)
    network = bert(config, jax.random.key(0))
    return config, network, Dataset(x, np.arange(texts, dtype=np.int32) % 2)


def selections(network: Network) -> dict[str, list[str]]:
    """Returns what is tuned, by name."""
    return {
        "full": [".*"],
        "last two layers": default_units(network),
        "LayerNorms and head": ["layer_norms", "head"],
        "head": ["head"],
    }


def ours(network: Network, data: Dataset, entries: list[str], *, placed: bool) -> Step:
    """Returns one step of ours, the state kept from call to call."""
    phase = Phase(select(network, {"tuned": entries}), adam(1e-3), steps=10_000)
    run = Run(cross_entropy, dropout="tuned" if placed else "all")
    running, state = start(network, phase, run, jax.random.key(0))
    program, base = running.program, jax.device_put(network.params)
    if placed:
        cut = cached_stages(network, program, data, 2**30)
        data = features(network, cut, data) if cut else data
        program = program._replace(start=cut)
    else:
        base = jax.device_get(base)
    step, batch = compiled_step(program), padded(data, len(data.y))

    def once() -> None:
        nonlocal state
        state, logs = step(state, base, jax.device_put(batch))
        jax.block_until_ready(logs)

    return once


def torch_step(
    config: BertConfig, network: Network, data: Dataset, entries: list[str]
) -> Step:
    """Returns one step of PyTorch's encoder of the same shape with the same selection."""
    import torch
    import transformers

    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            attention_probs_dropout_prob=0.0,  # as ours
        )
    ).train()
    names = torch_names(entries)
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(any(re.search(part, name) for part in names))
    tuned = [tensor for tensor in model.parameters() if tensor.requires_grad]
    moves = torch.optim.Adam(tuned, 1e-3)
    x = {k: torch.tensor(v.astype(np.int64)) for k, v in data.x.items()}
    y = torch.tensor(data.y.astype(np.int64))

    def once() -> None:
        moves.zero_grad()
        model(**x, labels=y).loss.backward()
        moves.step()

    return once


def torch_names(entries: list[str]) -> list[str]:
    """Returns the parts of PyTorch's names that a selection stands for."""
    known = {".*": "", "layer_norms": "encoder.*LayerNorm", "head": "classifier"}
    return [
        known.get(entry, entry.replace("layer_", "encoder.layer.")) for entry in entries
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


def step_table(rows: list[dict]) -> str:
    """Returns seconds a step by what is tuned and way, and ours as a share of PyTorch's."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    found = {(row["method"], row["way"]): row["value"] for row in rows}
    beside = ["placed / PyTorch"] if "PyTorch" in ways else []
    lines = [f"| tuned | {' | '.join([*ways, *beside])} |"]
    lines.append(f"|---|{'---|' * (len(ways) + len(beside))}")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [f"{found[method, way]:.3f}" for way in ways]
        if beside:
            share = found[method, "placed"] / found[method, "PyTorch"]
            cells.append(f"{share:.2f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run, Settings, __doc__)

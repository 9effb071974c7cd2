"""Which module of a transformer carries a task? Each kind tuned alone, the rest frozen.

Claim (papers/transformer_modules.md 3.1): every module tuned alone comes close to full
fine-tuning, and LayerNorms do best for their size. The protocol is reconstructed there
(3.3): the paper's full text was not read, and no figure of its modules is a target.

    python -m experiments.transformer_modules      # embedded sentences
    python -m experiments.transformer_modules --dataset glue/cola --data-dir DATA \\
        --weights minilm

A module is tuned together with the classifier. Rate and epoch are chosen on a part of the
training split; what GLUE calls validation is the test here and is read once. The relative
score is 100 (module - frozen) / (full - frozen), frozen being the classifier alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.cli import Common, Flags, main
from experiments.jobs import run_jobs
from experiments.texts import (
    EMBEDDED,
    TextTarget,
    TextTargetFlags,
    base_of,
    make_text_task,
)
from experiments.trials import Fitting, Task, choose
from subtune_jax.errors import InputError, require_positive
from subtune_jax.evaluation.metrics import cross_entropy, squared_error
from subtune_jax.network import Labels, Network
from subtune_jax.reporting import results, tables
from subtune_jax.reporting.results import Row
from subtune_jax.selection import elements
from subtune_jax.selection.labels import select, trainable_count
from subtune_jax.training import mesh
from subtune_jax.training.optimizers import adamw
from subtune_jax.training.phases import Phase
from subtune_jax.tree import count
from subtune_jax.tuning.fixed_mask import fixed_mask
from subtune_jax.tuning.method import Tuning
from subtune_jax.tuning.subset import subset

NAME = "transformer_modules"
MODULES = (
    *("frozen", "full", "query", "key", "value", "attention_output", "attention_norm"),
    *("intermediate", "output", "output_norm", "layer_norms", "attention"),
    *("feed_forward", "biases", "random"),
)


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is proposed in papers/transformer_modules.md 3.3
    or our choice."""

    target: TextTargetFlags = field(default_factory=TextTarget)
    modules: tuple[str, ...] = MODULES
    """What is tuned beside the classifier: frozen (nothing), full, a unit (layer_norms;
    layer_3:query for one layer), a path pattern, or random (as many elements of dense
    layers, drawn at random, as all LayerNorms have)."""
    layers: bool = False
    """Also tune both LayerNorms of each layer alone."""
    full_rates: tuple[float, ...] = (5e-5, 2e-4)
    """Rates tried for full."""
    rates: tuple[float, ...] = (1e-3, 3e-3)
    """Rates tried for all others."""
    head_rate: float = 1e-3
    """Rate of the classifier beside a module."""
    epochs: int = 5
    """Passes over the training sentences."""
    batch_size: int = 16
    """Sentences per step."""
    warmup: float = 0.1
    """Share of the steps over which rates rise; then they fall linearly to 0."""
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        self.target.check(self.common)
        require_positive(epochs=self.epochs, batch_size=self.batch_size)
        for rate in (*self.full_rates, *self.rates, self.head_rate):
            require_positive(rate=rate)
        for flag in ("modules", "full_rates", "rates"):
            if not getattr(self, flag):
                raise InputError(f"--{flag.replace('_', '-')} needs at least one value")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be from 0 up to 1, got {self.warmup!r}")

    def resolved(self) -> "Settings":
        """Returns the settings with `--smoke`."""
        if not self.common.smoke:
            return self
        common = replace(self.common, seeds=1)
        few = {"rates": self.rates[:1], "full_rates": self.full_rates[:1]}
        few["modules"] = ("frozen", "full", "layer_norms", "random")
        return replace(self, common=common, epochs=1, **few)


class Variant(NamedTuple):
    """What is tried: a rate."""

    rate: float


class Job(NamedTuple):
    """A module under a seed."""

    module: str
    seed: int


def job_of(row: Row) -> Job:
    """Returns the job that wrote a row."""
    return Job(row["module"], row["seed"])


def run(settings: Settings) -> None:
    """Runs what the folder does not have yet, then writes the table."""
    settings.check()
    settings = settings.resolved()
    target, common = settings.target, settings.common
    task_of = lru_cache(1)(lambda seed: make_text_task(target, common, seed))
    network = task_of(0).network
    modules = list(settings.modules)
    if settings.layers:
        layers = [s.name for s in network.stages if s.name.startswith("layer_")]
        modules += [f"{name}:layer_norms" for name in layers]
    mesh.placement(common.mesh)(np.zeros(settings.batch_size))
    for module in modules:
        labels_of(network, module)

    def rows_of(job: Job, rows: list[Row], folder: Path) -> Iterator[Row]:
        return module_rows(task_of(job.seed), settings, job, folder)

    jobs = [Job(*j) for j in product(modules, range(common.seeds))]
    jobs = sorted(dict.fromkeys(jobs), key=lambda job: job.seed)
    base, free = base_of(target, common), {"modules", "layers"}
    out, made = run_jobs(
        jobs, job_of, rows_of, name=NAME, settings=settings, base=base, free=free
    )
    report(out, made)


def labels_of(network: Network, module: str) -> Labels:
    """Returns the labels of a module and the head; raises `InputError` for an unknown one."""
    entries = {"full": [".*"], "random": ["attention", "feed_forward"]}.get(
        module, [module]
    )
    head = {"head": ["head"]}
    return select(network, head if module == "frozen" else head | {"module": entries})


def tuning_of(network: Network, module: str, seed: int) -> Tuning:
    """Returns subset tuning; for `random` the mask of as many elements of dense kernels as
    all LayerNorms have."""
    if module != "random":
        return subset
    labels = labels_of(network, module)
    norms = trainable_count(network.params, select(network, {"g": ["layer_norms"]}))
    values = elements.of_group(network.params, labels, "module")
    kernels = {p: v for p, v in values.items() if p.endswith("kernel")}
    drawn = elements.random(kernels, norms, seed, "all")
    nothing = {path: np.zeros(0, int) for path in values}
    return fixed_mask(nothing | drawn)


def module_rows(
    task: Task, settings: Settings, job: Job, folder: Path
) -> Iterator[Row]:
    """Yields the rows of a module's trials and of the chosen one."""
    network, target = task.network, settings.target
    labels, tuning = (
        labels_of(network, job.module),
        tuning_of(network, job.module, job.seed),
    )
    steps = settings.epochs * -(-len(task.train.y) // settings.batch_size)
    shape = {"schedule": "linear", "warmup": int(settings.warmup * steps), "clip": 1.0}

    def make(variant: Variant) -> list[Phase]:
        rate = variant.rate if job.module in ("full", "frozen") else settings.head_rate
        rules = {"module": adamw(variant.rate, **shape), "head": adamw(rate, **shape)}
        rules = rules if job.module != "frozen" else {"head": rules["head"]}
        return [Phase(labels, rules, steps, tuning)]

    rates = settings.full_rates if job.module == "full" else settings.rates
    loss = squared_error if task.train.y.ndim == 2 else cross_entropy
    tuned = trainable_count(network.params, labels)
    if job.module == "random":
        tuned = masked_count(network, make(Variant(1.0))[0])
    head = count(network.params["head"])
    fixed = {
        "experiment": NAME,
        "dataset": target.dataset,
        "task": target.dataset.split("/")[-1],
        "method": job.module,
        "module": job.module,
        "seed": job.seed,
        "metric": task.metric,
        "trainable_params": tuned - head,  # without the classifier
        "total_params": count(network.params) - head,
        "commit": results.commit(),
    }
    fitting = Fitting(settings.batch_size, loss=loss)
    variants = [Variant(rate) for rate in rates]
    where = {"devices": settings.common.mesh}
    if target.dataset != EMBEDDED:  # whose runs take seconds
        where["folder"] = folder
    made = choose(task, fitting, variants, make, job.seed, **where)
    return (fixed | row for row in made)


def masked_count(network: Network, phase: Phase) -> int:
    """Returns how many numbers train under a phase's tuning."""
    return count(phase.tuning.init(network.params, phase.labels, None))


def report(out: Path, rows: list[Row]) -> None:
    """Writes summary.md from the rows, and prints the table."""
    table = module_table([row for row in rows if row["split"] == "test"])
    results.write(out / "summary.md", f"{table}\n")
    print(f"{table}\n\n{out}/summary.md  {out}/results.jsonl")


def module_table(tests: list[Row]) -> str:
    """Returns score, relative score and trained share by module and task."""
    tests = [row for row in tests if row["value"] is not None]
    cells = tables.cells([*tests, *relative_rows(tests)], "module", "task")
    shares = {
        row["module"]: 100 * row["trainable_params"] / row["total_params"]
        for row in tests
    }
    shown = {
        (f"{module} ({shares[module]:.3g} %)", task): cell
        for (module, task), cell in cells.items()
    }
    return tables.markdown(shown, "tuned (share)", bold=False)


def relative_rows(tests: list[Row]) -> list[Row]:
    """Returns rows of the relative score in percent per task and seed, where both ends
    are known."""
    known = {(r["task"], r["seed"], r["module"]): r["value"] for r in tests}
    made = []
    for row in tests:
        ends = [known.get((row["task"], row["seed"], m)) for m in ("frozen", "full")]
        if None in ends or ends[0] == ends[1]:
            continue
        score = 100 * (row["value"] - ends[0]) / (ends[1] - ends[0])
        made.append(row | {"task": f"{row['task']}, relative", "value": score})
    return made


if __name__ == "__main__":
    main(run, Settings, __doc__)

"""Which block to tune depends on the kind of shift (surgical fine-tuning, Lee et al. 2023).

Claim (their figure 2): under input-level shift it is best to tune the first block,
under feature-level shift a middle one, under output-level shift the last layer.

    python -m experiments.surgical_shifts      # embedded digits, 2 minutes on two cores

For each method, rate and epoch are chosen by accuracy on target validation data, then
the test part is read once. Results: the README's table.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments import digits
from experiments.cli import Common, Flags, as_config, main, progress
from subtune_jax.cost import cost, cost_table
from subtune_jax.data.batches import Batch, Data
from subtune_jax.data.sampling import balanced_parts
from subtune_jax.data.shifts import SHIFTS, shift
from subtune_jax.errors import require_positive, unknown
from subtune_jax.evaluation.metrics import cross_entropy
from subtune_jax.network import FROZEN, NORM_MODES, Labels, Network
from subtune_jax.reporting import results, tables
from subtune_jax.reporting.plots import grouped_bars
from subtune_jax.reporting.results import Row
from subtune_jax.selection.labels import select, trainable_count, unit_patterns
from subtune_jax.training import mesh
from subtune_jax.training.loop import Diverged, evaluate, fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.tree import count

NAME = "surgical_shifts"
DATASETS = ("digits",)
ENTRIES = {"all": ".*", "last": "head"}  # methods that are no unit's name


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    dataset: str = "digits"
    """Data set."""
    shift: tuple[str, ...] = (
        "contrast",
        "gaussian_noise",
        "subpopulation",
        "label_flip",
    )
    """Shifts to run, one after the other."""
    methods: tuple[str, ...] = ("none", "block1", "block2", "block3", "last", "all")
    """What is tuned: none, all, last (the head), or units of the network."""
    train_examples: int = 100
    """Target images for training, balanced over classes."""
    validation_examples: int = 100
    """Target images for choosing rate and epoch (100: official code)."""
    rates: tuple[float, ...] = (1e-2, 1e-3)
    """Learning rates tried."""
    last_rates: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    """Rates tried for `last` (papers/surgical.md 2.3)."""
    epochs: int = 15
    """Passes over the target images (15: paper, CIFAR-C)."""
    batch_size: int = 20
    """Images per step."""
    l2: float = 1e-4
    """L2 inside Adam, not decoupled (official code)."""
    norm: str = "stored"
    """Statistics of batch norms: stored (paper), tuned or batch."""
    network_norm: str = "group"
    """Norm layers of the embedded network: group or batch."""
    cost: bool = False
    """Print what a step of each method costs, and stop."""
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        require_positive(
            train_examples=self.train_examples,
            validation_examples=self.validation_examples,
            epochs=self.epochs,
            batch_size=self.batch_size,
        )
        for rate in (*self.rates, *self.last_rates):
            require_positive(rate=rate)
        for name in self.shift:
            shift(name)
        if self.dataset not in DATASETS:
            raise unknown("data set", self.dataset, DATASETS)
        if self.norm not in NORM_MODES:
            raise unknown("norm mode", self.norm, NORM_MODES)


class Task(NamedTuple):
    """A network pretrained on the source, and the target's disjoint parts."""

    network: Network
    train: Data
    validation: Data
    test: Data


def make_task(settings: Settings, name: str, seed: int) -> Task:
    """Returns the target task of a shift; the seed draws its images, noise and parts."""
    rng = np.random.default_rng(seed)
    network = digits.pretrained(shift(name), settings.network_norm)
    target = digits.normalized(shift(name).target(digits.pools()["target"], rng))
    sizes = {
        "train": settings.train_examples,
        "validation": settings.validation_examples,
    }
    return Task(network, **balanced_parts(target, {**sizes, "test": None}, rng))


def method_labels(network: Network, method: str) -> Labels:
    """Returns what a method trains; raises `InputError` for an unknown one."""
    if method == "none":
        return jax.tree.map(lambda _: FROZEN, network.params)
    if method not in ENTRIES and not unit_patterns(network, method):
        units = [unit for table in network.units.values() for unit in table]
        raise unknown("method", method, dict.fromkeys(("none", *ENTRIES, *units)))
    return select(network, {"tuned": [ENTRIES.get(method, method)]})


def tune(task: Task, settings: Settings, method: str, seed: int) -> Iterator[Row]:
    """Yields a validation row per rate, then the test row of the best rate and epoch."""
    labels = method_labels(task.network, method)
    steps = settings.epochs * -(-len(task.train.y) // settings.batch_size)
    if settings.norm != "stored":
        steps = settings.epochs * (len(task.train.y) // settings.batch_size)
    best, best_score, chosen = task.network, -1.0, {}
    begin = time.perf_counter()
    for rate in _rates(settings, method):
        phase = Phase(labels, adam(rate, l2=settings.l2), steps)
        started, row = time.perf_counter(), {"split": "validation", "rate": rate}
        try:
            fitted = fit(
                task.network,
                phase,
                task.train,
                key=jax.random.key(seed),
                norm=settings.norm,
                batch_size=settings.batch_size,
                validate=lambda network: evaluate(network, task.validation),
                place=mesh.placement(settings.common.mesh),
            )
        except Diverged as error:
            yield row | {"value": None, "status": "diverged", "steps": error.step}
            continue
        score = max(fitted.scores)
        row |= {"value": score, "epoch": fitted.epoch, "steps": steps}
        yield row | {"status": "ok", "seconds": time.perf_counter() - started}
        if score > best_score:
            best, best_score, chosen = fitted.network, score, row
    if method != "none" and not chosen:
        yield {"split": "test", "value": None, "status": "diverged", "steps": 0}
        return
    value = read_test_once(best, task)
    chosen = {"rate": None, "epoch": 0, "steps": 0} | chosen
    seconds = time.perf_counter() - begin
    yield chosen | {"split": "test", "value": value, "status": "ok", "seconds": seconds}


def _rates(settings: Settings, method: str) -> tuple[float, ...]:
    if method == "none":
        return ()
    return (
        settings.last_rates if ENTRIES.get(method, method) == "head" else settings.rates
    )


def read_test_once(network: Network, task: Task) -> float:
    """Returns the test accuracy in percent, of the one network that was chosen."""
    return evaluate(network, task.test)


def jobs(settings: Settings) -> list[tuple[str, int, str]]:
    """Returns (shift, seed, method) of every job, in order."""
    return [
        (name, seed, method)
        for name in settings.shift
        for seed in range(settings.common.seeds)
        for method in settings.methods
    ]


def run(settings: Settings) -> None:
    """Runs what the folder does not have yet, then writes the table and the picture."""
    settings.check()
    mesh.placement(settings.common.mesh)
    if settings.common.smoke:
        small = replace(settings.common, seeds=1)
        settings = replace(settings, epochs=1, rates=settings.rates[:1], common=small)
    tasks = {(n, 0): make_task(settings, n, 0) for n in settings.shift}
    for method in settings.methods:
        method_labels(tasks[settings.shift[0], 0].network, method)
    if settings.cost:
        print(cost_report(settings, tasks[settings.shift[0], 0]))
        return
    out = settings.common.out or Path("runs") / NAME
    free = {"out", "seeds", "methods", "shift", "data_dir", "cost"}
    rows = results.open_folder(out, as_config(settings), free)
    done = {(r["shift"], r["seed"], r["method"]) for r in rows if r["split"] == "test"}
    todo = [job for job in jobs(settings) if job not in done]
    with progress() as bar:
        for name, seed, method in bar.track(todo, description=NAME):
            if (name, seed) not in tasks:
                tasks = {(name, seed): make_task(settings, name, seed)}
            task = tasks[name, seed]
            fixed = {
                "experiment": NAME,
                "dataset": settings.dataset,
                "shift": name,
                "method": method,
                "seed": seed,
                "metric": "accuracy",
                "trainable_params": trainable_count(
                    task.network.params, method_labels(task.network, method)
                ),
                "total_params": count(task.network.params),
                "commit": results.commit(),
            }
            results.append(
                out, [fixed | row for row in tune(task, settings, method, seed)]
            )
    report(out)


def cost_report(settings: Settings, task: Task) -> str:
    """Returns the table of what one step of each method costs."""
    images = task.train.take(np.arange(settings.batch_size) % len(task.train.y))
    batch = Batch(images.x, images.y, np.ones(settings.batch_size, np.float32))
    costs = {}
    for method in dict.fromkeys((*settings.methods, "all")):
        if method != "none":
            phase = Phase(method_labels(task.network, method), adam(1e-3, l2=1e-4), 1)
            costs[method] = cost(
                task.network, phase, batch, loss=cross_entropy, norm=settings.norm
            )
    return cost_table(costs)


def report(out: Path) -> None:
    """Writes summary.md and accuracy.png from the rows, and prints the table."""
    tests = [r for r in results.read(out) if r["split"] == "test"]
    table = tables.pivot(tests, "shift", "method")
    results.write(
        out / "summary.md",
        f"Test accuracy in percent, mean (standard error).\n\n{table}\n",
    )
    bars: dict = {}
    for (name, method), values in tables.grouped(tests, "shift", "method").items():
        bars.setdefault(name, {})[method] = tables.mean_and_error(values)
    if not bars:
        print("no run has a test accuracy: see the status in results.jsonl")
        return
    titles = {n: f"{n}\n({SHIFTS[n].level}-level shift)" for n in bars if n in SHIFTS}
    colors = {"none": "#bab0ab", "all": "#bab0ab"}
    grouped_bars(bars, out / "accuracy.png", titles=titles, colors=colors)
    print(f"{table}\n\n{out}/summary.md  {out}/accuracy.png  {out}/results.jsonl")


if __name__ == "__main__":
    main(run, Settings, __doc__)

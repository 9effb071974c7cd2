"""Surgical fine-tuning: what a method trains, and how its rate and epoch are chosen."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.common.report.results import Row
from experiments.methods import Budget, Grid, Variant, labels, phases, variants
from experiments.targets import Task
from experiments.trials import CHOICES, Fitting, choose
from subtune_jax.data.batches import steps_per_epoch
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.labels import NORM_MODES, stages_with_batch_stats
from subtune_jax.network import Labels
from subtune_jax.training import mesh
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase


@dataclass(frozen=True)
class Recipe:
    """Flags that say how a method is trained; a default without a source is our choice."""

    rates: tuple[float, ...] | None = None
    """Learning rates tried; digits 1e-2 1e-3, else 1e-3 1e-4 (papers/surgical.md 2.3)."""
    last_rates: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    """Rates tried for last and head (papers/surgical.md 2.3)."""
    auto_rates: tuple[float, ...] | None = None
    """Rates tried for auto_rgn and auto_rgn_blocks, before multipliers of at most 1;
    default: ten times the first of rates, and that one."""
    tries: int | None = None
    """The most pairs of a rate and a setting tried for a method, so that all have one
    budget; default: all."""
    choose: str = "each"
    """Which seeds choose a rate and setting on their validation data: each, or the first
    alone, whose choice the others take."""
    epochs: int = 15
    """Passes over the target images (15: paper, CIFAR-C)."""
    batch_size: int | None = None
    """Images per step; digits 20, else 64 (official code)."""
    l2: float = 1e-4
    """L2 inside Adam, not decoupled (official code)."""
    strengths: tuple[float, ...] = (1e-4, 1e-3)
    """Penalty strengths tried for l1_sp and l2_sp (the paper's are unknown)."""
    thresholds: tuple[float, ...] = (0.1, 0.3)
    """Thresholds of normalized SNR tried for auto_snr (the paper's are unknown)."""
    augment: bool = False
    """Random crops and flips of training images (official code: none)."""
    norm: str = "stored"
    """Statistics of batch norms: stored (paper), tuned or batch."""

    def check(self) -> None:
        """Raises `InputError` for the first flag that cannot be."""
        require_positive(epochs=self.epochs)
        if self.batch_size is not None:
            require_positive(batch_size=self.batch_size)
        if self.tries is not None:
            require_positive(tries=self.tries)
        if self.choose not in CHOICES:
            raise unknown("choice of --choose", self.choose, CHOICES)
        for flag in ("rates", "last_rates", "auto_rates", "strengths", "thresholds"):
            if getattr(self, flag) == ():
                raise InputError(f"--{flag.replace('_', '-')} needs at least one value")
        for rate in (*(self.rates or ()), *self.last_rates, *(self.auto_rates or ())):
            adam(rate, l2=self.l2)
        for value in (*self.strengths, *self.thresholds):
            require_positive(strengths_and_thresholds=value)
        if self.norm not in NORM_MODES:
            raise unknown("norm mode", self.norm, NORM_MODES)

    @property
    def grid(self) -> Grid:
        """The values tried; of resolved flags."""
        return Grid(
            self.rates,
            self.last_rates,
            self.auto_rates,
            self.strengths,
            self.thresholds,
            self.tries,
        )

    def resolved(self, small: bool, smoke: bool) -> "Recipe":
        """Returns the recipe with flags that were left out filled in, and `--smoke`."""
        rates = self.rates or ((1e-2, 1e-3) if small else (1e-3, 1e-4))
        made = replace(
            self,
            rates=rates,
            auto_rates=self.auto_rates or (10 * rates[0], rates[0]),
            batch_size=self.batch_size or (20 if small else 64),
        )
        return replace(made, epochs=1, rates=made.rates[:1]) if smoke else made


RecipeFlags = Annotated[Recipe, tyro.conf.OmitArgPrefixes]


def run_steps(task: Task, recipe: Recipe, chosen: Labels) -> int:
    """Returns the steps of a run: full passes over the training images."""
    drop = bool(stages_with_batch_stats(task.network.stats, chosen, recipe.norm))
    size = recipe.batch_size
    return recipe.epochs * steps_per_epoch(len(task.train.y), size, drop=drop)


def require_runnable(
    task: Task, recipe: Recipe, methods: Iterable[str], devices: int
) -> None:
    """Raises `InputError` if a method, the batch size or the devices cannot be, so that
    nothing has been written by then."""
    mesh.placement(devices)(np.zeros(recipe.batch_size))
    for method in methods:
        chosen = labels(task.network, method)
        if method != "none":
            run_steps(task, recipe, chosen)


def tune(
    task: Task,
    recipe: Recipe,
    method: str,
    seed: int,
    *,
    devices: int = 1,
    folder: Path | None = None,
    chosen: Variant | None = None,
) -> Iterator[Row]:
    """Yields the rows of a method's trials and of the chosen one, see `trials.choose`.

    With a `chosen` variant only that one is tried.
    """
    budget = Budget(run_steps(task, recipe, labels(task.network, method)), recipe.l2)

    def make(variant: Variant) -> list[Phase]:
        return phases(task.network, method, variant, budget)

    tried = [chosen] if chosen else variants(method, recipe.grid)
    fitting = Fitting(recipe.batch_size, recipe.norm, recipe.augment)
    return choose(task, fitting, tried, make, seed, devices=devices, folder=folder)


def derived(rows: Sequence[Row]) -> list[Row]:
    """Returns test rows of choices among methods, made by validation accuracy per seed.

    `cross_val` is the best block (papers/surgical.md 2.1), `automatic` the better of the
    automatic rules; of equals, the first. No test accuracy is read anew.
    """
    choices = {
        "cross_val": lambda method: method.startswith("block") or method == "last",
        "automatic": lambda method: method.startswith("auto_"),
    }
    validation: dict[tuple, float] = {}
    for row in rows:
        if row["split"] == "validation" and row["value"] is not None:
            key = row["task"], row["seed"], row["method"]
            validation[key] = max(validation.get(key, -1.0), row["value"])
    made = []
    for name, among in choices.items():
        best: dict[tuple, Row] = {}
        for row in rows:
            task, seed, method = row["task"], row["seed"], row["method"]
            if row["split"] != "test" or not among(method):
                continue
            score = validation.get((task, seed, method), -1.0)
            if score > best.get((task, seed), {"score": -1.0})["score"]:
                best[task, seed] = row | {
                    "method": name,
                    "chosen": method,
                    "score": score,
                }
        made += best.values()
    return made

"""The methods of surgical fine-tuning: what is tried, raced and tested."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np
import tyro

from experiments.common.flags import (
    NonNegative,
    Positive,
    by_data,
    default,
    first,
    one_of,
)
from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.common.schemes import Budget, Variant, is_block, labels, phases
from experiments.common.study import Context, choice_of_first_seed
from experiments.common.trials import on_mesh, trial_rows
from subtune_jax.data.batches import steps_per_epoch
from subtune_jax.data.crops import crop_and_flip
from subtune_jax.data.task import Task
from subtune_jax.labels import NORM_MODES, stages_with_batch_stats
from subtune_jax.network import Labels
from subtune_jax.selection.select import count_trainable
from subtune_jax.stage_flops import stage_flops
from subtune_jax.training.mesh import placement
from subtune_jax.training.phases import Phase
from subtune_jax.training.race import race
from subtune_jax.training.settings import Settings
from subtune_jax.training.tune import tune
from subtune_jax.tree import count


@dataclass(frozen=True)
class Recipe:
    """How a method is trained; a default without a source is our choice."""

    learning_rates: Annotated[
        tuple[Positive[float], ...] | None, *by_data((1e-2, 1e-3), (1e-3, 1e-4))
    ] = None
    """Learning rates tried (real: two of a public replication's three)."""
    head_learning_rates: tuple[Positive[float], ...] = (1e-1, 1e-2, 1e-3)
    """Learning rates tried for last and head (a public replication)."""
    auto_learning_rates: Annotated[
        tuple[Positive[float], ...] | None,
        default("ten times the first of --learning-rates, and that one", "FLOAT..."),
    ] = None
    """Learning rates tried for auto_rgn and auto_rgn_blocks, before multipliers of at
    most 1."""
    tries: Annotated[Positive[int] | None, default("all", "INT")] = None
    """The most pairs of a learning rate and a setting tried for a method, so that all have
    one budget."""
    choose: Annotated[str, *one_of("each", "first")] = "each"
    """Which seeds choose a learning rate and setting on their validation data: each, or
    the first alone, whose choice the others take."""
    epochs: Positive[int] = 15
    """Passes over the target images (15: the paper, CIFAR-C)."""
    batch_size: Annotated[Positive[int] | None, *by_data(20, 64)] = None
    """Images per step (real: official code)."""
    l2: NonNegative[float] = 1e-4
    """Coupled L2 inside Adam (official code)."""
    anchor_strengths: tuple[Positive[float], ...] = (1e-4, 1e-3)
    """Penalty strengths tried for l1_sp and l2_sp (the paper's are unknown)."""
    snr_thresholds: tuple[Positive[float], ...] = (0.1, 0.3)
    """Thresholds of normalized SNR tried for auto_snr (the paper's are unknown)."""
    augment: bool = False
    """Random crops and flips of training images (official code: none)."""
    norm: Annotated[str, *one_of(*NORM_MODES)] = "stored"
    """Statistics of batch norms (the paper: stored)."""

    SMOKE: ClassVar = {"epochs": 1, "learning_rates": first}

    def completed(self) -> "Recipe":
        """Returns the recipe with `auto_learning_rates`, which follow the others."""
        rate = self.learning_rates[0]
        return replace(
            self, auto_learning_rates=self.auto_learning_rates or (10 * rate, rate)
        )


RecipeFlags = Annotated[Recipe, tyro.conf.OmitArgPrefixes]


class Entrant(NamedTuple):
    """What races: a variant of one of the methods in `RACE`."""

    learning_rate: float
    setting: float
    tuned: str


# The race of blocks: two variants of each, of which one in four goes on after half an epoch
# and after two. Of 15 epochs that is at most (12 / 2 + 3 * 1.5 + 13) / 15 = 1.57 full runs,
# and less as far as steps below some blocks cost less than those of all.
RACE = ("block1", "block2", "block3", "last", "all", "l1_sp")
RACE_EPOCHS, RACE_HALVING, RACE_TRIES = (0.5, 2), 4, 2


def variants(method: str, recipe: Recipe) -> list[Any]:
    """Returns what is tried for a method: the first `recipe.tries` pairs of a learning
    rate and a setting, or all of them. `none` has nothing to try."""
    if method == "none":
        return []
    if method == "race":
        return [
            Entrant(*one, tuned)
            for tuned in RACE
            for one in variants(tuned, recipe)[:RACE_TRIES]
        ]
    rates = {
        "last": recipe.head_learning_rates,
        "head": recipe.head_learning_rates,
        "auto_rgn": recipe.auto_learning_rates,
        "auto_rgn_blocks": recipe.auto_learning_rates,
    }.get(method, recipe.learning_rates)
    settings = {
        "l1_sp": recipe.anchor_strengths,
        "l2_sp": recipe.anchor_strengths,
        "auto_snr": recipe.snr_thresholds,
    }.get(method, (0.0,))
    return [Variant(*pair) for pair in product(rates, settings)][: recipe.tries]


def run_steps(task: Task, recipe: Recipe, chosen: Labels) -> int:
    """Returns the steps of a run: full passes over the training images."""
    drop = bool(stages_with_batch_stats(task.network.stats, chosen, recipe.norm))
    size = recipe.batch_size
    return recipe.epochs * steps_per_epoch(len(task.train.y), size, drop=drop)


def require_runnable(
    task: Task, recipe: Recipe, methods: Iterable[str], mesh: int
) -> None:
    """Raises `InputError` if a method, the batch size or the devices cannot be, so that
    nothing has been written by then."""
    placement(mesh)(np.zeros(recipe.batch_size))
    for method in methods:
        chosen = labels(task.network, method)
        if method != "none":
            run_steps(task, recipe, chosen)


def tuned_rows(settings: Any, task: Task, job: Any, context: Context) -> Iterator[Row]:
    """Yields the rows of the method `job.method` on a task: a validation row per variant,
    then the test row of the best one.

    settings: with `target`, `recipe` and `common`. Runs of seconds (digits) are not
    checkpointed.
    """
    recipe, target, network = settings.recipe, settings.target, task.network
    trained = labels(network, job.method)
    budget = Budget(run_steps(task, recipe, trained), recipe.l2)
    tried = variants(job.method, recipe)
    if row := choice_of_first_seed(job, context, recipe.choose):
        tried = [Variant(row["learning_rate"], row["setting"])]
        if job.method == "race":
            tried = [Entrant(*tried[0], row["tuned"])]
    about = {
        "dataset": target.dataset,
        "task": target.name_of(job.shift),
        "metric": task.metric,
        "trainable_params": count_trainable(network, trained),
        "total_params": count(network.params),
        "commit": results.commit(),
    }
    per_epoch = budget.steps // recipe.epochs

    def phases_of(variant: Any, steps: int = budget.steps) -> list[Phase]:
        method = getattr(variant, "tuned", job.method)
        part = Variant(variant.learning_rate, variant.setting)
        return phases(network, method, part, Budget(steps, recipe.l2))

    early = [max(1, round(n * per_epoch)) for n in RACE_EPOCHS if n < recipe.epochs]
    rungs = [*dict.fromkeys([*early, budget.steps])]
    racing = partial(race, rungs=rungs, halving=RACE_HALVING)
    rows = trial_rows(
        task,
        phases_of,
        tried,
        tuner=racing if job.method == "race" else tune,
        key=jax.random.key(job.seed),
        progress=context.progress,
        keep=lambda trial, row: context.keep(network, trial.network, row),
        settings=Settings(
            norm=recipe.norm,
            batch_size=recipe.batch_size,
            augment=crop_and_flip() if recipe.augment else None,
            place=on_mesh(settings.common.mesh),
        ),
        checkpoint=None if target.embedded else context.folder,
    )
    if job.method != "race":
        return (about | row for row in rows)
    return (about | row for row in _with_flops(task, recipe, list(rows), phases_of))


def _with_flops(
    task: Task, recipe: Recipe, rows: list[Row], phases_of: Callable
) -> Iterator[Row]:
    """Yields the rows of a race; the test row has what won as the count of its parameters,
    the FLOPs of all runs, and how many full runs these are."""
    size = recipe.batch_size
    images = task.train.take(np.arange(size) % len(task.train.y)).x

    def step(entrant: Entrant) -> int:
        (phase,) = phases_of(entrant, 1)
        return sum(stage_flops(task.network, images, phase.labels).values())

    ran = [row for row in rows if row["split"] == "validation"]
    total = sum(
        row["steps"] * step(Entrant(row["learning_rate"], row["setting"], row["tuned"]))
        for row in ran
    )
    full = max(row["steps"] for row in ran) * step(Entrant(1.0, 0.0, "all"))
    for row in rows:
        if row["split"] == "test" and "tuned" in row:
            chosen = labels(task.network, row["tuned"])
            row |= {"trainable_params": count_trainable(task.network, chosen)}
            row |= {"flops": total, "full_runs": total / full}
        yield row


def derived(rows: Sequence[Row]) -> list[Row]:
    """Returns test rows of choices among methods, made by validation accuracy per seed.

    `cross_val` is the best block (surgical fine-tuning), `automatic` the better
    of the automatic rules; of equals, the first. No test accuracy is read anew.
    """
    choices = {
        "cross_val": is_block,
        "automatic": lambda method: method.startswith("auto_"),
    }
    validation: dict[tuple, float] = {}
    for row in rows:
        if row["split"] == "validation" and row["value"] is not None:
            key = row["task"], row["seed"], row["method"]
            validation[key] = max(validation.get(key, -1.0), row["value"])
    chosen = []
    for name, among in choices.items():
        best: dict[tuple, Row] = {}
        for row in rows:
            task, seed, method = row["task"], row["seed"], row["method"]
            if row["split"] != "test" or not among(method):
                continue
            score = validation.get((task, seed, method), -1.0)
            if score > best.get((task, seed), {"score": -1.0})["score"]:
                of = {"method": name, "chosen": method, "score": score}
                best[task, seed] = row | of
        chosen += best.values()
    return chosen

"""The methods of surgical fine-tuning: from a name to phases, tried and tested."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from experiments.common.study import Context, choice_of_first_seed
from experiments.common.trials import on_mesh, trial_rows
from subtune_jax import recipes
from subtune_jax.data.batches import steps_per_epoch
from subtune_jax.data.crops import crop_and_flip
from subtune_jax.data.task import Task
from subtune_jax.errors import unknown
from subtune_jax.labels import FROZEN, NORM_MODES, stages_with_batch_stats
from subtune_jax.network import Labels, Network
from subtune_jax.selection.select import count_trainable, select, unit_patterns
from subtune_jax.stage_flops import stage_flops
from subtune_jax.training.mesh import placement
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.race import race
from subtune_jax.training.settings import Settings
from subtune_jax.training.tune import tune
from subtune_jax.tree import count
from subtune_jax.tuning.anchor import l1_sp, l2_sp

ENTRIES = {"all": ".*", "last": "head"}  # methods that are no unit's name


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


class Variant(NamedTuple):
    """What is tried: a learning rate, and the method's own setting (else 0)."""

    learning_rate: float
    setting: float = 0.0


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


class Budget(NamedTuple):
    """What a method may spend: optimizer steps, and the L2 inside Adam."""

    steps: int
    l2: float


Scheme = Callable[[Network, Variant, Budget], list[Phase]]


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


def phases(
    network: Network, method: str, variant: Variant, budget: Budget
) -> list[Phase]:
    """Returns the phases of a method; raises `InputError` for an unknown one.

    `all`, `last`, a unit (the table `surgical` first, the paper's blocks), a path
    pattern, or one of `SCHEMES`.
    """
    if method in SCHEMES:
        return SCHEMES[method](network, variant, budget)
    return [Phase(labels(network, method), _rule(variant, budget), budget.steps)]


def labels(network: Network, method: str) -> Labels:
    """Returns everything that a method trains at some time."""
    if method == "none":
        return jax.tree.map(lambda _: FROZEN, network.params)
    if method == "race":  # any of them may win
        return labels(network, "all")
    if method in SCHEMES:
        last = SCHEMES[method](network, Variant(1.0, 1.0), Budget(_MANY, 0.0))[-1]
        return last.labels
    entry = ENTRIES.get(method, method)
    if unit_patterns(network, f"surgical:{entry}"):
        entry = f"surgical:{entry}"
    named = method in ENTRIES or unit_patterns(network, entry)
    if not named and re.fullmatch(r"\w+", method):
        units = [unit for table in network.units.values() for unit in table]
        raise unknown(
            "method",
            method,
            dict.fromkeys(("none", *ENTRIES, *units, *SCHEMES, "race")),
        )
    return select(network, {recipes.GROUP: [entry]})


def blocks(network: Network) -> list[str]:
    """Returns the paper's blocks from input to output, the head last."""
    return [f"surgical:{unit}" for unit in network.units["surgical"]]


def _rule(variant: Variant, budget: Budget):
    return adam(variant.learning_rate, l2=budget.l2)


def _by_rule(recipe: Callable, **options: Any) -> Scheme:
    """Returns the scheme of a recipe that takes (network, rule, steps)."""

    def scheme(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
        return recipe(network, _rule(variant, budget), budget.steps, **options)

    return scheme


def _auto_snr(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
    scheme = _by_rule(recipes.auto_snr, threshold=variant.setting)
    return scheme(network, variant, budget)


def _unfreezing(step: int, network: Network, variant: Variant, budget: Budget):
    order = blocks(network)[::step]
    return recipes.gradual_unfreezing(
        network, order, _rule(variant, budget), budget.steps
    )


def _anchored(
    penalty: Callable, network: Network, variant: Variant, budget: Budget
) -> list[Phase]:
    """Everything is tuned and pulled to its start; the head too, which is pretrained."""
    every = select(network, {recipes.GROUP: [".*"]})
    tuning = penalty(variant.setting, free=())
    return [Phase(every, _rule(variant, budget), budget.steps, tuning)]


def _probe_then_tune(network: Network, variant: Variant, budget: Budget) -> list[Phase]:
    """Half of the steps for the head at ten times the rate, then half for everything."""
    fast = adam(10 * variant.learning_rate, l2=budget.l2)
    return recipes.linear_probe_then_finetune(
        network, fast, _rule(variant, budget), budget.steps
    )


_MANY = 1000  # steps enough for every scheme to have all of its phases

SCHEMES: Mapping[str, Scheme] = {
    "auto_rgn": _by_rule(recipes.auto_rgn),
    "auto_rgn_blocks": _by_rule(recipes.auto_rgn, table="surgical"),
    "auto_snr": _auto_snr,
    "auto_snr_official": _by_rule(recipes.auto_snr_official),
    "unfreeze_first": partial(_unfreezing, 1),
    "unfreeze_last": partial(_unfreezing, -1),
    "l1_sp": partial(_anchored, l1_sp),
    "l2_sp": partial(_anchored, l2_sp),
    "lp_ft": _probe_then_tune,
}


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


def is_block(method: str) -> bool:
    """Returns whether a method tunes one block, or the last layer."""
    return method.startswith("block") or method == "last"


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

"""How the transformer studies tune a module: its labels, its tuning, its recipe."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import jax
import numpy as np
import tyro

from experiments.common.flags import (
    Common,
    NonNegative,
    Positive,
    Share,
    by_data,
    first,
    one_of,
)
from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.common.texts import TextTarget
from experiments.common.trials import on_mesh, trial_rows
from subtune_jax.data import batches
from subtune_jax.data.task import Task
from subtune_jax.head import LECUN_NORMAL, replace_head
from subtune_jax.losses import cross_entropy, span_cross_entropy, squared_error
from subtune_jax.network import Labels, Network
from subtune_jax.selection import elements
from subtune_jax.selection.scores import fisher_elements
from subtune_jax.selection.select import count_trainable, select
from subtune_jax.training.mesh import placement
from subtune_jax.training.optimizers import Rule, adamw
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings
from subtune_jax.training.tune import Trial
from subtune_jax.tree import count
from subtune_jax.tuning import subset
from subtune_jax.tuning.fixed_mask import fixed_mask
from subtune_jax.tuning.method import Tuning
from subtune_jax.tuning.rescaled import rescaled

ELEMENTS = re.compile(r"(highest|lowest|random|fisher)_(\d+)|beyond_(\d+(?:\.\d+)?)")
HEAD = {"head": ["head"]}


@dataclass(frozen=True)
class ModuleRecipe:
    """How a module is tuned; a default without a source is our choice."""

    full_learning_rates: Annotated[
        tuple[Positive[float], ...] | None, *by_data((1e-3, 3e-3), (5e-5, 2e-4))
    ] = None
    """Learning rates tried for full."""
    learning_rates: Annotated[
        tuple[Positive[float], ...] | None, *by_data((1e-2, 3e-2), (1e-3, 3e-3))
    ] = None
    """Learning rates tried for all others."""
    head_learning_rate: Annotated[Positive[float] | None, *by_data(1e-2, 1e-3)] = None
    """That of the classifier beside a module, or beside everything: a fresh one of zeros
    lets no gradient through until it has grown."""
    epochs: Annotated[Positive[int] | None, *by_data(20, 5)] = None
    """Passes over the training examples."""
    batch_size: Positive[int] = 16
    """Examples per step."""
    warmup_ratio: Share = 0.1
    """Share of the steps over which learning rates rise; then they fall linearly to 0."""
    weight_decay: NonNegative[float] = 0.0
    """Decoupled weight decay. It moves weights that no example touches, such as embeddings
    of absent tokens; of a sparse difference it decays the difference."""
    choose: Annotated[str, *one_of("each", "first")] = "each"
    """Which seeds choose a learning rate on their validation data: each, or the first
    alone. A classifier on a carried task always chooses its own."""

    SMOKE: ClassVar = {
        "epochs": 1,
        "learning_rates": first,
        "full_learning_rates": first,
    }
    OLDER: ClassVar = {"weight_decay": 0.01}


ModuleRecipeFlags = Annotated[ModuleRecipe, tyro.conf.OmitArgPrefixes]


class Variant(NamedTuple):
    """What is tried: a learning rate."""

    learning_rate: float


class Job(NamedTuple):
    """A module under a seed."""

    module: str
    seed: int


class Setting(NamedTuple):
    """What the rows of a module need beside its task: flags, and a folder for runs."""

    target: TextTarget
    recipe: ModuleRecipe
    common: Common
    folder: Path
    progress: Callable[[str], None]
    keep: Callable[..., None]


def labels_of(network: Network, module: str) -> Labels:
    """Returns the labels of a module and the head; raises `InputError` for an unknown one.

    frozen: the head alone. full: everything. random: elements of dense layers, as many
    as all LayerNorms have. rescaled, and highest_N, lowest_N, random_N, fisher_N,
    beyond_K (elements of each vector): of the LayerNorms. Else a selector.
    """
    special = {
        "full": [".*"],
        "random": ["attention", "feed_forward"],
        "rescaled": ["layer_norms"],
    }
    norms = {"module": ["layer_norms"]} if ELEMENTS.fullmatch(module) else {}
    chosen = norms or {"module": special.get(module, [module])}
    return select(network, HEAD if module == "frozen" else HEAD | chosen)


def tuning_of(task: Task, module: str, seed: int, batch_size: int = 16) -> Tuning:
    """Returns how a module's labels are tuned; raises `InputError` where fewer elements
    are there than asked for."""
    if module == "rescaled":
        return rescaled()
    if module == "random":
        return _random_dense(task.network, seed)
    if match := ELEMENTS.fullmatch(module):
        return _norm_elements(task, module, match, seed, batch_size)
    return subset()


def _random_dense(network: Network, seed: int) -> Tuning:
    """Returns the tuning of as many elements of dense kernels as the LayerNorms have."""
    labels = labels_of(network, "random")
    values = elements.of_group(network.params, labels, "module")
    kernels = {p: v for p, v in values.items() if p.endswith("kernel")}
    n = count_trainable(network, select(network, {"g": ["layer_norms"]}))
    nothing = {path: np.zeros(0, int) for path in values}
    return fixed_mask(nothing | elements.random(kernels, n, seed, "all"))


def _norm_elements(
    task: Task, module: str, match: re.Match, seed: int, batch_size: int
) -> Tuning:
    rule, n, sigmas = match.groups()
    labels = labels_of(task.network, module)
    values = elements.magnitudes(task.network.params, labels, "module")
    if sigmas:
        nothing = {path: np.zeros(0, int) for path in values}
        return fixed_mask(nothing | elements.beyond(values, float(sigmas)))
    if rule == "random":
        return fixed_mask(elements.random(values, int(n), seed))
    if rule == "fisher":
        values = _fisher_values(task, labels, seed, batch_size)
    pick = elements.lowest if rule == "lowest" else elements.highest
    return fixed_mask(pick(values, int(n)))


def _fisher_values(task: Task, labels: Labels, seed: int, batch_size: int):
    """Fisher information is taken under a head that is drawn at random: under the fresh
    one, of zeros, no gradient reaches the body."""
    outputs = task.network.params["head"]["bias"].size
    key = jax.random.key(seed)
    network = replace_head(task.network, outputs, key, init=LECUN_NORMAL)
    stream = batches.in_order(task.train, batch_size)
    squares = fisher_elements(network, stream, loss_of(task), labels)
    return elements.of_group(squares, labels, "module")


def require_runnable(
    task: Task, recipe: ModuleRecipe, modules: Iterable[str], mesh: int
) -> None:
    """Raises `InputError` where a batch does not divide over the devices, or a module is
    unknown or has too few elements. Fisher information is not measured for that."""
    placement(mesh)(np.zeros(recipe.batch_size))
    for module in modules:
        labels_of(task.network, module)
        tuning_of(task, re.sub("^fisher_", "lowest_", module), 0)


def loss_of(task: Task) -> Callable:
    """Returns the loss of a task: of classes, of the ends of a span, or of a regression."""
    if task.train.y.ndim == 1:
        return cross_entropy
    return span_cross_entropy if task.train.y.dtype.kind == "i" else squared_error


def rules_of(
    recipe: ModuleRecipe, module: str, learning_rate: float, steps: int
) -> dict[str, Rule]:
    """Returns the rules of a module and its head, clipped at a norm of 1 in each group; a
    `frozen` module has a head alone, with the learning rate that is tried."""
    warmup = int(recipe.warmup_ratio * steps)
    rule = partial(
        adamw,
        weight_decay=recipe.weight_decay,
        schedule="linear",
        warmup=warmup,
        clip_norm=1.0,
    )
    if module == "frozen":
        return {"head": rule(learning_rate)}
    return {"module": rule(learning_rate), "head": rule(recipe.head_learning_rate)}


def module_rows(
    task: Task,
    job: Job,
    setting: Setting,
    *,
    choice: Row | None = None,
    after: Callable[[Trial], Iterable[Row]] = lambda trial: (),
) -> Iterator[Row]:
    """Yields the rows of a module's trials and of the best one, or of one trial at the
    learning rate of the row `choice`; then the scores of what else the task is tested on,
    and the rows of `after` as they are."""
    target, recipe = setting.target, setting.recipe
    labels = labels_of(task.network, job.module)
    tuning = tuning_of(task, job.module, job.seed, recipe.batch_size)
    steps = recipe.epochs * -(-len(task.train.y) // recipe.batch_size)

    def phases_of(variant: Variant) -> list[Phase]:
        rules = rules_of(recipe, job.module, variant.learning_rate, steps)
        return [Phase(labels, rules, steps, tuning)]

    full = job.module == "full"
    rates = recipe.full_learning_rates if full else recipe.learning_rates
    rates = rates if choice is None else (choice["learning_rate"],)
    about = _about(task, job, target, tuning, labels)
    rows = trial_rows(
        task,
        phases_of,
        [Variant(rate) for rate in rates],
        key=jax.random.key(job.seed),
        progress=setting.progress,
        keep=lambda trial, row: setting.keep(task.network, trial.network, row),
        after=after,
        settings=Settings(
            loss=loss_of(task),
            batch_size=recipe.batch_size,
            place=on_mesh(setting.common.mesh),
        ),
        checkpoint=None if target.embedded else setting.folder,
    )
    for row in rows:
        other = row.pop("also", None)
        if other is not None:
            row |= {"metric": other, "task": f"{about['task']}, {other}"}
        yield about | row


def _about(
    task: Task, job: Job, target: TextTarget, tuning: Tuning, labels: Labels
) -> Row:
    """Returns what all rows of a module say; parameters are counted without the head's."""
    params, head = task.network.params, count(task.network.params["head"])
    trainable = tuning.init(params, labels, None).trainable
    return job._asdict() | {
        "dataset": target.dataset,
        "task": target.dataset.split("/")[-1],
        "method": job.module,
        "metric": task.metric,
        "trainable_params": count(trainable) - head,
        "total_params": count(params) - head,
        "commit": results.commit(),
    }

"""How the transformer studies tune a module: its labels, its tuning, its recipe."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro

from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.texts import EMBEDDED
from experiments.trials import CHOICES, Fitting, Task, choose
from subtune_jax.data import batches
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.head import LECUN_NORMAL, replace_head
from subtune_jax.losses import cross_entropy, squared_error
from subtune_jax.network import Labels, Network
from subtune_jax.selection import elements
from subtune_jax.selection.scores import fisher_elements
from subtune_jax.selection.select import count_trainable, select
from subtune_jax.training import mesh
from subtune_jax.training.optimizers import Rule, adamw
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate
from subtune_jax.tree import count
from subtune_jax.tuning.fixed_mask import fixed_mask
from subtune_jax.tuning.method import Tuning
from subtune_jax.tuning.rescaled import rescaled
from subtune_jax.tuning.subset import subset

ELEMENTS = re.compile(r"(highest|lowest|random|fisher)_(\d+)|beyond_(\d+(?:\.\d+)?)")
HEAD = {"head": ["head"]}
REAL = {"full_rates": (5e-5, 2e-4), "rates": (1e-3, 3e-3), "head_rate": 1e-3}
REAL |= {"epochs": 5}
SMALL = {"full_rates": (1e-3, 3e-3), "rates": (1e-2, 3e-2), "head_rate": 1e-2}
SMALL |= {"epochs": 20}  # the embedded encoder: larger steps, more of them


@dataclass(frozen=True)
class ModuleRecipe:
    """Flags that say how a module is tuned; defaults are proposed in
    papers/transformer_modules.md 3.3 or our choice."""

    full_rates: tuple[float, ...] | None = None
    """Rates tried for full; default 5e-5 2e-4, embedded 1e-3 3e-3."""
    rates: tuple[float, ...] | None = None
    """Rates tried for all others; default 1e-3 3e-3, embedded 1e-2 3e-2."""
    head_rate: float | None = None
    """Rate of the classifier beside a module, or beside everything: a fresh one of zeros
    lets no gradient through until it has grown; default 1e-3, embedded 1e-2."""
    epochs: int | None = None
    """Passes over the training sentences; default 5, embedded 20."""
    batch_size: int = 16
    """Sentences per step."""
    warmup: float = 0.1
    """Share of the steps over which rates rise; then they fall linearly to 0."""
    choose: str = "each"
    """Which seeds choose a rate on their validation data: each, or the first alone. A
    classifier on a carried task always chooses its own."""

    def resolved(self, dataset: str, smoke: bool) -> "ModuleRecipe":
        """Returns the recipe with its defaults, and with `--smoke`."""
        defaults = SMALL if dataset in EMBEDDED else REAL
        missing = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        made = replace(self, **missing)
        few = {"rates": made.rates[:1], "full_rates": made.full_rates[:1]}
        return replace(made, epochs=1, **few) if smoke else made

    def check(self) -> None:
        """Raises `InputError` for the first flag that cannot be."""
        sizes = {"epochs": self.epochs, "batch_size": self.batch_size}
        require_positive(**{k: v for k, v in sizes.items() if v is not None})
        heads = () if self.head_rate is None else (self.head_rate,)
        for rate in (*(self.full_rates or ()), *(self.rates or ()), *heads):
            require_positive(learning_rate=rate)
        for flag in ("full_rates", "rates"):
            if getattr(self, flag) == ():
                raise InputError(f"--{flag.replace('_', '-')} needs at least one value")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be from 0 up to 1, got {self.warmup!r}")
        if self.choose not in CHOICES:
            raise unknown("choice of --choose", self.choose, CHOICES)


ModuleRecipeFlags = Annotated[ModuleRecipe, tyro.conf.OmitArgPrefixes]


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


def labels_of(network: Network, module: str) -> Labels:
    """Returns the labels of a module and the head; raises `InputError` for an unknown one.

    frozen: the head alone. full: everything. random: elements of dense layers, as many
    as all LayerNorms have. rescaled, and highest_N, lowest_N, random_N, fisher_N,
    beyond_K (elements of each vector): of the LayerNorms. Else a selector.
    """
    special = {"full": [".*"], "random": ["attention", "feed_forward"]}
    special["rescaled"] = ["layer_norms"]
    norms = {"module": ["layer_norms"]} if ELEMENTS.fullmatch(module) else {}
    chosen = norms or {"module": special.get(module, [module])}
    return select(network, HEAD if module == "frozen" else HEAD | chosen)


def tuning_of(task: Task, module: str, seed: int, batch_size: int = 16) -> Tuning:
    """Returns how a module's labels are tuned; raises `InputError` where fewer elements
    are there than asked for.

    Fisher information is taken under a head that is drawn at random: under the fresh one,
    of zeros, no gradient reaches the body.
    """
    network, wanted = task.network, ELEMENTS.fullmatch(module)
    if module == "rescaled":
        return rescaled()
    labels = labels_of(network, module)
    if module == "random":
        norms = select(network, {"g": ["layer_norms"]})
        values = elements.of_group(network.params, labels, "module")
        kernels = {p: v for p, v in values.items() if p.endswith("kernel")}
        n = count_trainable(network, norms)
        nothing = {path: np.zeros(0, int) for path in values}
        return fixed_mask(nothing | elements.random(kernels, n, seed, "all"))
    if wanted is None:
        return subset
    rule, n, sigmas = wanted.groups()
    values = elements.magnitudes(network.params, labels, "module")
    nothing = {path: np.zeros(0, int) for path in values}
    if sigmas:
        return fixed_mask(nothing | elements.beyond(values, float(sigmas)))
    if rule == "random":
        return fixed_mask(elements.random(values, int(n), seed))
    if rule == "fisher":
        outputs, key = network.params["head"]["bias"].size, jax.random.key(seed)
        headed = replace_head(network, outputs, key, init=LECUN_NORMAL)
        stream = batches.in_order(task.train, batch_size)
        squares = fisher_elements(headed, stream, loss_of(task), labels)
        values = elements.of_group(squares, labels, "module")
    pick = elements.lowest if rule == "lowest" else elements.highest
    return fixed_mask(pick(values, int(n)))


def require_runnable(
    task: Task, recipe: ModuleRecipe, modules: Iterable[str], devices: int
) -> None:
    """Raises `InputError` where a batch does not divide over the devices, or a module is
    unknown or has too few elements. Fisher information is not measured for that."""
    mesh.placement(devices)(np.zeros(recipe.batch_size))
    for module in modules:
        tuning_of(task, re.sub("^fisher_", "lowest_", module), 0)


def loss_of(task: Task):
    """Returns the loss of a task: squared error of a regression, else cross-entropy."""
    return squared_error if task.train.y.ndim == 2 else cross_entropy


def rules_of(
    recipe: ModuleRecipe, module: str, rate: float, steps: int
) -> dict[str, Rule]:
    """Returns the rules of a module and its head, clipped at a norm of 1 in each group; a
    `frozen` module has a head alone, with the rate that is tried."""
    shape = {
        "schedule": "linear",
        "warmup": int(recipe.warmup * steps),
        "clip_norm": 1.0,
    }
    if module == "frozen":
        return {"head": adamw(rate, **shape)}
    return {"module": adamw(rate, **shape), "head": adamw(recipe.head_rate, **shape)}


def module_rows(
    task: Task,
    recipe: ModuleRecipe,
    job: Job,
    *,
    name: str,
    dataset: str,
    folder: Path,
    devices: int,
    chosen: Row | None = None,
    after: Callable[[Network], Iterable[Row]] = lambda network: (),
) -> Iterator[Row]:
    """Yields the rows of a module's trials and of the best one, or of one trial at the rate
    of the row `chosen`; then what else the task is tested on, and the rows of `after` as
    they are."""
    network, labels = task.network, labels_of(task.network, job.module)
    tuning = tuning_of(task, job.module, job.seed, recipe.batch_size)
    steps = recipe.epochs * -(-len(task.train.y) // recipe.batch_size)

    def make(variant: Variant) -> list[Phase]:
        rules = rules_of(recipe, job.module, variant.rate, steps)
        return [Phase(labels, rules, steps, tuning)]

    rates = recipe.full_rates if job.module == "full" else recipe.rates
    head = count(network.params["head"])
    fixed = {
        "experiment": name,
        "dataset": dataset,
        "task": dataset.split("/")[-1],
        "method": job.module,
        "module": job.module,
        "seed": job.seed,
        "metric": task.metric,
        # without the classifier
        "trainable_params": count(tuning.init(network.params, labels, None).trainable)
        - head,
        "total_params": count(network.params) - head,
        "commit": results.commit(),
    }
    fitting = Fitting(recipe.batch_size, loss=loss_of(task))
    rates = rates if chosen is None else (chosen["rate"],)
    variants = [Variant(rate) for rate in rates]

    def further(network: Network) -> Iterator[Row]:
        for other, (data, metric) in task.also.items():
            found = {"metric": other, "task": f"{fixed['task']}, {other}"}
            yield found | {"split": "test", "value": evaluate(network, data, metric)}
        yield from after(network)

    where = {"devices": devices, "after": further}
    if dataset not in EMBEDDED:  # whose runs take seconds
        where["folder"] = folder
    made = choose(task, fitting, variants, make, job.seed, **where)
    return ({**fixed, **row} for row in made)

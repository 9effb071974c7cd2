"""What the studies of sparse differences share: flags, phases, rates, and rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro

import subtune_jax as st
from experiments.common import sparse
from experiments.common.flags import Positive, Share, one_of
from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.common.sparse import DENSE, TWO_PHASES, WEIGHED
from experiments.common.study import Context, choice_of_first_seed
from experiments.common.trials import on_mesh, trial_rows


@dataclass(frozen=True)
class Diff:
    """How differences are made sparse; a default without a source is our choice."""

    strength: Positive[float] = 1.25e-7
    """Factor of the expected number of changes, for structured and plain (paper: 1.25e-7
    for BERT-large; it goes with the number of weights, and with that of steps)."""
    gates_learning_rate: Positive[float] = 0.1
    """Learning rate of the gates, by Adam (official code), or of constrained by normalized
    SGD."""
    l0: Annotated[str, *one_of("product", "additive")] = "product"
    """How gates of elements and groups count together where a strength weighs them: in
    structured and plain (paper: product; official code: additive)."""
    start: Annotated[str, *one_of("change", "ungated", "base")] = "change"
    """From where the chosen weights train on (official code: ungated); non_adaptive has no
    gates, and ungated is change there."""
    mask_share: Share = 0.5
    """Share of the steps with a fixed mask (paper: as many as before it)."""
    values: Annotated[str, *one_of("exact", "bfloat16")] = "bfloat16"
    """How changed weights are stored; what is stored is tested."""


DiffFlags = Annotated[Diff, tyro.conf.OmitArgPrefixes]


class Variant(NamedTuple):
    """What is tried: learning rates, that of the mask where it comes second (else 0)."""

    learning_rate: float
    mask_learning_rate: float = 0.0


def kinds_of(methods: Sequence[str], sparsity: Sequence[float]) -> list[tuple]:
    """Returns every method with every sparsity; 1 for one that changes what it likes."""
    return [
        (method, share)
        for method in methods
        for share in ((1.0,) if method in DENSE else sparsity)
    ]


def require_runnable(settings: Any, task: st.Task) -> None:
    """Raises `InputError` for what cannot be: a mesh, rates that are no pairs, or phases
    (the numbers of a rule do not matter)."""
    size = settings.recipe.batch_size
    st.training.placement(settings.common.mesh)(np.zeros(size))
    dense, few = rates_of(settings.recipe)
    if {*settings.methods} & {*TWO_PHASES} and len(dense) != len(few):
        raise st.InputError(
            f"--learning-rates has {len(few)} values and --full-learning-rates "
            f"{len(dense)}: methods of two phases take one of each, so give as many"
        )
    if settings.diff.l0 != "product" and not {*settings.methods} & {*WEIGHED}:
        raise st.InputError(
            f"--l0 {settings.diff.l0} is read by {' and '.join(WEIGHED)} alone, and neither "
            "is among --methods"
        )
    for method, share in kinds_of(settings.methods, settings.sparsity):
        phases_of(settings, task, method, share, 0, Variant(1.0, 1.0))


def phases_of(
    settings: Any,
    task: st.Task,
    method: str,
    share: float,
    seed: int,
    variant: Variant,
) -> list[st.Phase]:
    """Returns the phases of a method: all have the same number of steps together."""
    recipe, diff = settings.recipe, settings.diff
    steps = recipe.epochs * -(-len(task.train.y) // recipe.batch_size)
    masked = int(steps * diff.mask_share)
    two = method in TWO_PHASES
    if two and not 0 < masked < steps:
        raise st.InputError(
            f"--mask-share {diff.mask_share} leaves {steps - masked} steps before the mask "
            f"and {masked} with it, of {steps}: both need one"
        )

    def rule(rate: float) -> st.Rule:
        shortest = min(masked, steps - masked) if two else steps
        warmup = int(recipe.warmup_ratio * shortest)
        return st.adamw(
            rate,
            weight_decay=recipe.weight_decay,
            schedule="linear",
            warmup=warmup,
            clip_norm=1.0,
        )

    body, head = rule(variant.learning_rate), rule(recipe.head_learning_rate)
    mask = rule(variant.mask_learning_rate) if two else body
    budget = sparse.Budget(steps, masked, body, mask, head, seed)
    return sparse.phases_of(task.network, method, share, diff, budget)


def rates_of(recipe: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Returns the learning rates at which all weights move, and those of a few."""
    return recipe.full_learning_rates or (), recipe.learning_rates or ()


def variants_of(method: str, recipe: Any) -> list[Variant]:
    """Returns what is tried. All weights move at the rates of full, also where a mask of
    few comes after them at the rates of few (paper: 1e-5, then 5e-5)."""
    dense, few = rates_of(recipe)
    if method in TWO_PHASES:
        return list(map(Variant, dense, few))
    return list(map(Variant, dense if method in ("full", "last_layer") else few))


def sparse_rows(
    settings: Any,
    task: st.Task,
    job: Any,
    context: Context,
    *,
    about: Mapping[str, Any],
    loss: Callable,
) -> Iterator[Row]:
    """Yields the rows of the learning rates that are tried, of the test of the stored
    delta of the best, and of what that delta holds."""
    recipe = settings.recipe
    choice = choice_of_first_seed(job, context, recipe.choose)
    variants = variants_of(job.method, recipe)
    if choice is not None:
        variants = [Variant(*(choice[name] for name in Variant._fields))]
    about = {
        **about,
        "of": about["task"],
        "metric": task.metric,
        "trainable_params": sparse.changeable(task.network, job.method, job.sparsity),
        "total_params": sparse.count_of(task.network, 1.0),
        "commit": results.commit(),
    }
    base, values = task.network, settings.diff.values

    def keep(trial: st.Trial, row: Row) -> None:
        form = sparse.form_of(trial)
        context.keep(base, trial.network, row, values=values, **form)

    for row in trial_rows(
        task,
        partial(phases_of, settings, task, job.method, job.sparsity, job.seed),
        variants,
        key=jax.random.key(job.seed),
        progress=context.progress,
        keep=keep,
        after=partial(sparse.stored_rows, base, values),
        outputs=task.train.y.ndim == 1 or task.train.y.dtype.kind == "f",  # no spans
        tuner=partial(sparse.tune_stored, values),
        settings=st.Settings(
            loss=loss,
            batch_size=recipe.batch_size,
            place=on_mesh(settings.common.mesh),
        ),
        checkpoint=None if settings.target.embedded else context.folder,
    ):
        if other := row.pop("also", None):
            row |= {"metric": other, "task": f"{about['task']}, {other}"}
        yield about | row

"""What the studies of SubTuning share: units, training, scores of subsets, final runs."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np
import tyro

import subtune_jax as st
from experiments.common.flags import NonNegative, Positive, by_data, default
from experiments.common.images import Target
from experiments.common.report import results
from experiments.common.report.results import Row
from experiments.common.study import Context

Subset = tuple[str, ...]
FoldSeed = tuple[int, int]  # (fold, seed)
NAMES = {"linear probing": (), "full": ("blocks",), "full with stem": ("all",)}
HEAD = "head"
RANKINGS = {
    "rgn": st.scores.relative_gradient_norm,
    "snr": partial(st.scores.signal_to_noise, mode="microbatch"),
    "snr_official": partial(st.scores.signal_to_noise, mode="official"),
}


def new_task() -> Target:
    """Returns the flags of a new task: its own test split, and a head that begins at zeros
    and trains with the rest."""
    return Target(split="train", test_split="test", head_start="zeros")


class Job(NamedTuple):
    """A search, a variant, or a method tuned on all training images under a seed."""

    shift: str
    method: str
    seed: int


@dataclass(frozen=True)
class Recipe:
    """How a subset is trained; a default without a source is our choice."""

    units: Annotated[
        tuple[str, ...] | None, default("every block of the network", "UNIT...")
    ] = None
    """Candidates, from input to output: units of the network or patterns of paths."""
    folds: Positive[int] = 5
    """Folds of the training images that score a subset (official code)."""
    learning_rate: Positive[float] = 3e-3
    """Learning rate of the units (official code: 1e-3)."""
    head_learning_rate: Positive[float] = 3e-2
    """Learning rate of the head (official code: that of the units, and 1e-2 where it
    trains alone)."""
    weight_decay: NonNegative[float] = 1e-2
    """Decoupled weight decay (official code)."""
    epochs: Annotated[Positive[int] | None, *by_data(20, 10)] = None
    """Passes over the training images; the last one counts (official code: 20 for 1,000
    images)."""
    batch_size: Annotated[Positive[int] | None, *by_data(20, 64)] = None
    """Images per step (official code: 256)."""
    lanes: bool | None = None
    """Train the folds of a candidate as one program; None: on an accelerator."""

    SMOKE: ClassVar = {"epochs": 1, "folds": 2}
    OLDER: ClassVar = {"lanes": None}


RecipeFlags = Annotated[Recipe, tyro.conf.OmitArgPrefixes]


def units_of(network: st.Network, recipe: Recipe) -> Subset:
    """Returns the candidates: `--units`, or the stages that are blocks or layers.

    The stem, the pooling's norm and the head are none (SubTuning): the first is never
    tuned, and the head always.
    """
    if recipe.units is not None:
        for unit in recipe.units:
            st.selection.match(network, unit)
        return recipe.units
    names = [stage.name for stage in network.stages]
    blocks = tuple(n for n in names if n.startswith(("block", "layer_")))
    if not blocks:
        raise st.InputError(
            f"no stage of the network is a block or a layer ({', '.join(names)}): name "
            "the candidates with --units"
        )
    return blocks


def require_searchable(task: st.Task, settings: Any) -> None:
    """Raises `InputError` where there is no candidate or folds cannot be, so that nothing
    has been written by then."""
    units_of(task.network, settings.recipe)
    if settings.target.groups:
        raise st.InputError("folds are balanced over classes alone: leave --groups out")
    if is_balanced(settings):
        st.data.balanced_folds(task.train.y, settings.recipe.folds, 0)
    else:
        st.data.shuffled_folds(len(task.train.y), settings.recipe.folds, 0)


def is_balanced(settings: Any) -> bool:
    """Returns whether folds are drawn by class: not those of VTAB-1k, some of whose classes
    have fewer images than there are folds (official code: shuffled)."""
    return settings.target.parts == "drawn"


def named(network: st.Network, recipe: Recipe, units: Subset) -> Subset:
    """Returns the selectors of a subset; `blocks` are all candidates, `all` everything."""
    if units == ("blocks",):
        return units_of(network, recipe)
    return (r"(?!head(/|$)).*",) if units == ("all",) else units


def phase(
    network: st.Network, units: Subset, recipe: Recipe, steps: int, **how: Any
) -> st.Phase:
    """Returns the phase of a subset: its units at one rate, the head at its own, both by
    AdamW with a cosine to 0."""
    rule = partial(st.adamw, weight_decay=recipe.weight_decay, schedule="cosine")
    selection = {HEAD: [HEAD]}
    rules = {HEAD: rule(recipe.head_learning_rate)}
    if units:
        selection["units"] = list(named(network, recipe, units))
        rules["units"] = rule(recipe.learning_rate)
    return st.Phase(st.select(network, selection), rules, steps, **how)


def steps_of(network: st.Network, recipe: Recipe, examples: int, normed: bool) -> int:
    """Returns the steps of a run: full passes, without a ragged batch where norms use the
    statistics of the batch.

    normed: whether the run tunes norms; a network has such only if it has statistics.
    """
    drop = normed and bool(jax.tree.leaves(network.stats))
    size = min(recipe.batch_size, examples)
    return recipe.epochs * st.data.steps_per_epoch(examples, size, drop=drop)


def settings_of(recipe: Recipe, examples: int | None = None) -> st.Settings:
    """Returns what all runs share, of a search and of its subset afterwards: norms that
    train use the statistics of the batch, all others stored ones."""
    size = min(recipe.batch_size, examples or recipe.batch_size)
    return st.Settings(norm="tuned", batch_size=size)


def scorer(
    task: st.Task,
    recipe: Recipe,
    say: Callable[[str], None],
    *,
    share: bool = True,
    warm: float | None = None,
    balanced: bool = True,
    most: int | None = None,
    seed: int | None = None,
    **how: Any,
) -> st.selection.Scorer:
    """Returns the score of a subset by cross-validation; `say` is told of each.

    warm: from the trained set before, with this share of the epochs. most: how many
    evaluations there are at most, which gives the time left. seed: that of every run, in
    place of the one that the search asks for. how: the rest of the `Phase`, as its tuning.
    """
    begin, done, so_far = time.perf_counter(), count(1), dict[Subset, list[float]]()
    fewer = replace(recipe, epochs=max(1, round((warm or 1) * recipe.epochs)))

    def phases(network: st.Network, units: Subset, examples: int) -> list[st.Phase]:
        short = fewer if units else recipe
        normed = bool(units) and "tuning" not in how  # the norms of LoRA rest
        steps = steps_of(network, short, examples, normed)
        return [phase(network, units, short, steps, **how)]

    # A journal knows the flags by this name; what they are used for is its search's.
    name = f"subset of blocks: {replace(recipe, lanes=None)}, warm {warm}, {[*how]}"
    score = st.training.subset_score(
        task,
        st.named(name, phases),
        key=jax.random.key(0),
        folds=recipe.folds,
        balanced=balanced,
        share=share,
        warm=warm is not None,
        settings=settings_of(recipe),
        lanes=recipe.lanes,
    )

    def say_so_far(units: Subset, fold: int, value: float) -> None:
        number = next(done)
        left = (time.perf_counter() - begin) / number * ((most or number) - number)
        until = f", at most {left / 60:.0f} min left" if most else ""
        names, values = " + ".join(units) or "head alone", so_far.setdefault(units, [])
        values.append(value)
        say(f"{names}, fold {fold}: {np.mean(values):.1f} so far{until}")

    def told(units: Subset, places: Sequence[FoldSeed]) -> Iterator[st.selection.Score]:
        if seed is not None:
            places = [(fold, seed) for fold, _ in places]
        for (fold, _), one in zip(places, score.many(units, places), strict=True):
            say_so_far(units, fold, one.value)
            yield one

    return score._replace(many=told)


def gradient_ranking(
    task: st.Task, recipe: Recipe, units: Subset, name: str
) -> tuple[dict[str, float], float]:
    """Returns a score of each unit from gradients, and the FLOPs that it took.

    With a head of zeros the body has no gradient: the head is trained first, on features
    made once. Then one pass over the training images.
    """
    whole, images = task.network, task.train
    suffix, (features,) = st.training.cut(whole, len(whole.stages) - 1, images)
    steps = steps_of(suffix, recipe, len(images.y), normed=False)
    probe = phase(suffix, (), recipe, steps)
    size = min(recipe.batch_size, len(images.y))
    key = jax.random.key(0)
    try:
        result = st.fit(
            suffix,
            probe,
            features,
            key=key,
            settings=st.Settings(batch_size=size),
            progress=False,
        )
    except ArithmeticError as error:
        raise st.InputError(
            f"no ranking: the head alone diverged ({error}); try a lower "
            "--head-learning-rate"
        ) from None
    network = st.training.rejoin(whole, result.network)
    groups = {unit: st.selection.match(network, unit) for unit in units}
    batches = st.data.in_order(images, size)
    ranking = RANKINGS[name](network, batches, groups=groups)
    every = st.select(network, {"units": list(units)})
    one = images.take(np.arange(1)).x
    making = sum(st.cost.stage_flops(network, one).values())  # of the features
    gradients = sum(st.cost.stage_flops(network, one, every).values())
    flops = st.training.run_flops(suffix, [probe], features, size)
    return ranking, flops + len(images.y) * (making + gradients)


def tuned(
    task: st.Task, recipe: Recipe, units: Subset, seed: int, **how: Any
) -> st.FitResult:
    """Returns the run of a subset on all training images."""
    normed = bool(units) and "tuning" not in how
    steps = steps_of(task.network, recipe, len(task.train.y), normed)
    return st.fit(
        task.network,
        phase(task.network, units, recipe, steps, **how),
        task.train,
        key=jax.random.fold_in(jax.random.key(1), seed),
        settings=settings_of(recipe, len(task.train.y)),
        progress=False,
    )


def final_row(
    settings: Any, task: st.Task, job: Any, context: Context, units: Subset, **how: Any
) -> Row:
    """Returns the test row of a subset, tuned on all training images: accuracy of the last
    step, and the statistics of the paper's theory (`theory_of`)."""
    begin, recipe = time.perf_counter(), settings.recipe
    about = about_row(settings, task, job) | {"units": list(units), "split": "test"}
    try:
        result = tuned(task, recipe, units, job.seed, **how)
    except ArithmeticError:
        seconds = time.perf_counter() - begin
        return about | {"value": None, "status": "diverged", "seconds": seconds}
    network = result.network
    scores = st.test_once(lambda data: st.predict(network, data), task)
    row = about | {"value": scores[task.metric], "status": "ok"}
    row |= {"steps": result.epochs[-1].step}
    row |= theory_of(task, result, scores[task.metric])
    rate = recipe.learning_rate if units else recipe.head_learning_rate
    row |= {"learning_rate": rate}
    context.keep(task.network, network, row)
    return row | {"seconds": time.perf_counter() - begin}


def theory_of(task: st.Task, result: st.FitResult, test: float) -> Row:
    """Returns r' (how many parameters were tuned), the distance ||theta - theta_0|| that
    the body moved, and the gap of training and test accuracy in points.

    Theorem 1 of SubTuning bounds the gap by O(sqrt(r') * distance * log(k L) / sqrt(m)).
    """
    train = st.evaluate(result.network, task.train)
    before, after = task.network.params, result.network.params
    body = [name for name in before if name != HEAD]
    moved = [
        np.sum(np.square(np.float64(new) - np.float64(old)))
        for name in body
        for old, new in zip(
            *map(jax.tree.leaves, (before[name], after[name])), strict=True
        )
    ]
    return {
        "trainable_params": st.tree.count(result.trainable),
        "distance": float(np.sqrt(sum(moved))),
        "train_accuracy": train,
        "gap": train - test,
    }


def about_row(settings: Any, task: st.Task, job: Any) -> Row:
    """Returns what stands in every row of a study of SubTuning."""
    return {
        "dataset": settings.target.dataset,
        "task": settings.target.name_of(job.shift),
        "metric": task.metric,
        "trainable_params": 0,
        "total_params": st.tree.count(task.network.params),
        "steps": 0,  # of a search; a run says its own
        "commit": results.commit(),
    }

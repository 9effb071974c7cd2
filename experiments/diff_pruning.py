"""A task as a sparse change of all weights (diff pruning, Guo, Rush and Kim 2021).

Claim (their table 1): half a percent of the weights, chosen by gates that learn which to
keep, do as well as all of them (80.6 and 80.6 on GLUE with BERT-large); the largest changes
of full fine-tuning do not (75.5).

    python -m experiments.diff_pruning      # embedded sentences
    python -m experiments.diff_pruning --dataset glue/stsb --weights minilm \\
        --data-dir DATA --sparsity 0.005

Two CPU cores: ten minutes; the second was not run. On the embedded
sentences, with 70 steps for the gates, constrained does no better than a random mask, and
worse than the largest changes of full fine-tuning: the claim does not show there.

Every method has the same number of steps in all, and the same number of learning rates.
What is tested is the network that the stored delta gives. The paper's way (structured,
plain) has a fixed strength of the penalty; constrained is ours, and needs none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np
import tyro

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive, Share, one_of
from experiments.common.modules import ModuleRecipe, ModuleRecipeFlags, loss_of
from experiments.common.report import results, tables
from experiments.common.report.plots import curves, heat_maps
from experiments.common.report.results import Row
from experiments.common.study import Config, Context, Study, choice_of_first_seed, main
from experiments.common.texts import TextTarget, TextTargetFlags
from experiments.common.trials import on_mesh, trial_rows

DENSE = ("full", "last_layer", "biases")
SPARSE = (
    "structured",
    "plain",
    "constrained",
    "non_adaptive",
    "random",
    "top_magnitude",
)
METHODS = ("full", "constrained", "non_adaptive", "random", "top_magnitude")
GROUP, HEAD = "body", "head"


@dataclass(frozen=True)
class Diff:
    """How differences are made sparse; a default without a source is our choice."""

    strength: Positive[float] = 1.25e-7
    """Factor of the expected number of changes, for structured and plain (paper: 1.25e-7
    for BERT-large; it goes with the number of weights, and with that of steps)."""
    gates_learning_rate: Positive[float] = 0.1
    """Learning rate of the gates (official code)."""
    multiplier_learning_rate: Positive[float] = 0.4
    """Learning rate of the multiplier of constrained."""
    l0: Annotated[str, *one_of("product", "additive")] = "product"
    """How gates of elements and groups count together (paper: product; official code:
    additive)."""
    start: Annotated[str, *one_of("change", "ungated", "base")] = "change"
    """From where the chosen weights train on (official code: ungated); non_adaptive has no
    gates, and ungated is change there."""
    mask_share: Share = 0.5
    """Share of the steps with a fixed mask (paper: as many as before it)."""
    values: Annotated[str, *one_of("exact", "bfloat16")] = "bfloat16"
    """How changed weights are stored; what is stored is tested."""


DiffFlags = Annotated[Diff, tyro.conf.OmitArgPrefixes]


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TextTargetFlags = field(default_factory=TextTarget)
    methods: Annotated[tuple[str, ...], *one_of(*DENSE, *SPARSE)] = METHODS
    """full; last_layer, biases (BitFit); structured and plain (gates with and without
    one for each tensor), constrained (gates held to the target); non_adaptive (the largest
    changes of full), random and top_magnitude (masks known before)."""
    sparsity: tuple[Share, ...] = (0.005,)
    """Share of the weights that change, outside the head (paper: 0.001 to 0.01)."""
    diff: DiffFlags = field(default_factory=Diff)
    recipe: ModuleRecipeFlags = field(default_factory=ModuleRecipe)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"methods": ("plain",)}


class Job(NamedTuple):
    """A method at a sparsity (1: dense) under a seed."""

    method: str
    sparsity: float
    seed: int


class Variant(NamedTuple):
    """What is tried: a learning rate."""

    learning_rate: float


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every method at every sparsity, the first seed first."""
    size = settings.recipe.batch_size
    st.training.placement(settings.common.mesh)(np.zeros(size))
    every = [
        Job(method, share, seed)
        for seed, method in product(range(settings.common.seeds), settings.methods)
        for share in ((1.0,) if method in DENSE else settings.sparsity)
    ]
    for job in every:
        if job.seed == 0:  # refuses what cannot be; the numbers of a rule do not matter
            phases_of(settings, task, job, Variant(1.0))
    return iter(every)


def labels_of(network: st.Network, method: str) -> Any:
    """Returns the labels of what a method may change, and of the head."""
    layers = [s.name for s in network.stages if s.name.startswith("layer_")]
    special = {
        "last_layer": layers[-1:],
        "biases": [".*/bias"],
    }
    return st.select(network, {HEAD: [HEAD], GROUP: special.get(method, [".*"])})


def phases_of(
    settings: Settings, task: st.Task, job: Job, variant: Variant
) -> list[st.Phase]:
    """Returns the phases of a method: all have the same number of steps together."""
    recipe, diff, network = settings.recipe, settings.diff, task.network
    steps = recipe.epochs * -(-len(task.train.y) // recipe.batch_size)
    labels = labels_of(network, job.method)
    masked = int(steps * diff.mask_share)
    two = job.method in ("structured", "plain", "constrained", "non_adaptive")
    if two and not 0 < masked < steps:
        raise st.InputError(
            f"--mask-share {diff.mask_share} leaves {steps - masked} steps before the mask "
            f"and {masked} with it, of {steps}: both need one"
        )

    def rule(rate: float) -> st.Rule:
        shortest = min(masked, steps - masked) if two else steps
        warmup = int(recipe.warmup_ratio * shortest)
        return st.adamw(rate, schedule="linear", warmup=warmup, clip_norm=1.0)

    body, head = rule(variant.learning_rate), rule(recipe.head_learning_rate)
    rules = {GROUP: body, HEAD: head}
    if job.method in ("structured", "plain", "constrained"):
        constrained = job.method == "constrained"
        gates = st.adam(
            diff.gates_learning_rate,
            clip_norm=1.0,
            schedule="linear" if constrained else "constant",
        )
        return st.recipes.diff_pruning(
            network,
            job.sparsity,
            body,
            steps,
            strength=None if constrained else diff.strength,
            head_rule=head,
            gates_rule=gates,
            multiplier_rule=st.training.ascent(diff.multiplier_learning_rate),
            mask_share=diff.mask_share,
            structure="none" if job.method == "plain" else "leaf",
            l0=diff.l0,
            start=diff.start,
        )
    if job.method in DENSE:
        return [st.Phase(labels, rules, steps)]
    k = st.recipes.masked_elements(network, labels, job.sparsity)
    if job.method == "non_adaptive":
        start = "change" if diff.start == "ungated" else diff.start
        largest = st.tuning.largest_changes(k, start=start)
        first = st.Phase(labels, rules, steps - masked, keeps=False)
        return [first, st.Phase(labels, rules, masked, largest)]
    sizes = st.elements.magnitudes(network.params, labels, GROUP)
    if job.method == "random":
        chosen = st.elements.random(sizes, k, job.seed, "all")
    else:
        chosen = st.elements.highest(sizes, k, "all")
    nothing = {path: np.zeros(0, int) for path in sizes}
    return [st.Phase(labels, rules, steps, st.tuning.fixed_mask(nothing | chosen))]


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Yields the rows of the learning rates that are tried, of the test of the stored
    delta of the best, and of what that delta holds."""
    recipe, target = settings.recipe, settings.target
    full = job.method in ("full", "non_adaptive", "last_layer")
    rates = recipe.full_learning_rates if full else recipe.learning_rates
    choice = choice_of_first_seed(job, context, recipe.choose)
    rates = rates if choice is None else (choice["learning_rate"],)
    about = job._asdict() | {
        "dataset": target.dataset,
        "task": target.dataset.split("/")[-1],
        "metric": task.metric,
        "trainable_params": changeable(task.network, job),
        "total_params": changeable(task.network, Job("full", 1.0, 0)),
        "commit": results.commit(),
    }
    values = settings.diff.values
    for row in trial_rows(
        task,
        partial(phases_of, settings, task, job),
        [Variant(rate) for rate in rates],
        key=jax.random.key(job.seed),
        progress=context.progress,
        keep=partial(context.keep, task.network),
        after=partial(stored_rows, task.network, values),
        tuner=partial(tune_stored, values),
        batch_size=recipe.batch_size,
        loss=loss_of(task),
        place=on_mesh(settings.common.mesh),
        checkpoint=None if target.embedded else context.folder,
    ):
        if other := row.pop("also", None):
            row |= {"metric": other, "task": f"{about['task']}, {other}"}
        yield about | row


def changeable(network: st.Network, job: Job) -> int:
    """Returns how many parameters a method may change in the end, without the head's."""
    labels = labels_of(network, job.method)
    return st.recipes.masked_elements(network, labels, job.sparsity)


def tune_stored(values: str, network: st.Network, *given: Any, **how: Any) -> Any:
    """Returns what `tune` does, the best network as its stored delta gives it back."""
    tuned = st.tune(network, *given, **how)
    if tuned.best is None or tuned.best.network is None:
        return tuned
    delta = st.deltas.extract(network, tuned.best.network, values=values)
    delta = st.deltas.from_bytes(st.deltas.to_bytes(delta))
    again, _ = st.deltas.apply(network, delta)
    return tuned._replace(best=tuned.best._replace(network=again))


def stored_rows(base: st.Network, values: str, tuned: st.Network) -> Iterator[Row]:
    """Yields the bytes of a delta, how many elements outside the head it changes, in which
    share of each stage, and how many tensors it leaves alone."""
    size = len(st.deltas.to_bytes(st.deltas.extract(base, tuned, values=values)))
    counts = {
        path: int((np.asarray(new) != np.asarray(old)).sum())
        for (path, old), new in zip(
            st.tree.flatten(base.params).items(),
            jax.tree.leaves(tuned.params),
            strict=True,
        )
        if not path.startswith(f"{HEAD}/")
    }
    stages = [s.name for s in base.stages if st.tree.count(base.params.get(s.name, {}))]
    shares = {
        stage: sum(n for path, n in counts.items() if path.startswith(f"{stage}/"))
        / st.tree.count(base.params[stage])
        for stage in stages
        if stage != HEAD
    }
    yield {
        "split": "stored",
        "metric": "bytes",
        "value": size,
        "differ": sum(counts.values()),
        "untouched": sum(n == 0 for n in counts.values()),
        "tensors": len(counts),
        "shares": shares,
    }


def by_method(rows: Sequence[Row], config: Config) -> str:
    """Returns score, bytes, changed weights and untouched tensors by method."""
    lines = [
        "| task | tuned | sparsity | score | bytes | changed | untouched tensors |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    tests = [row for row in rows if row["split"] == "test"]
    kinds = dict.fromkeys((r["task"], r["method"], r["sparsity"]) for r in tests)
    for task, method, sparsity in kinds:
        group = [r for r in tests if same(r, method, sparsity) and r["task"] == task]
        cell = tables.cells(group, "task", "method")[task, method]
        held = [r for r in rows if r["split"] == "stored" and same(r, method, sparsity)]
        values = [task, method, f"{100 * sparsity:g} %", tables.text_of(cell)]
        values += ["", "", ""]
        if held:
            changed = np.mean([r["differ"] for r in held])
            alone = np.mean([r["untouched"] for r in held])
            size = np.mean([r["value"] for r in held])
            values[4:] = [f"{size:,.0f}", f"{changed:,.0f}"]
            values.append(f"{alone:.0f} of {held[0]['tensors']}")
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def same(row: Row, method: str, sparsity: float) -> bool:
    """Returns whether a row is of a method at a sparsity."""
    return (row["method"], row["sparsity"]) == (method, sparsity)


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns what the table holds, and the table."""
    note = (
        "Test score in percent of the stored delta, mean (standard error) over seeds."
    )
    return f"{note}\n\n{by_method(rows, config)}"


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws score.png, mean score against mean stored bytes with a point for each sparsity,
    and layers.png, the share of the weights of each layer that change."""
    held = [row for row in rows if row["split"] == "stored"]
    lines: dict[str, tuple[list[float], list[float]]] = {}
    kinds = dict.fromkeys((row["method"], row["sparsity"]) for row in held)
    for method, sparsity in sorted(kinds):
        group = [row for row in held if same(row, method, sparsity)]
        scores = [score for row in group if (score := score_of(rows, row)) is not None]
        if scores:
            bytes_, means = lines.setdefault(method, ([], []))
            bytes_.append(float(np.mean([row["value"] for row in group])))
            means.append(float(np.mean(scores)))
    if lines:
        axes = {"xlabel": "bytes of the stored delta", "ylabel": "test score (%)"}
        curves({"": lines}, out / "score.png", log=True, **axes)
    shares: dict[str, dict[tuple[str, str], float]] = {}
    for row in held:
        if row["method"] in SPARSE and row["seed"] == 0:
            cells = shares.setdefault(f"{100 * row['sparsity']:g} %", {})
            for stage, share in row["shares"].items():
                cells[row["method"], stage] = 100 * share
    if shares:
        heat_maps(shares, out / "layers.png")


def score_of(rows: Sequence[Row], stored: Row) -> float | None:
    """Returns the test score of a stored delta."""
    wanted = {"split": "test", "task": stored["task"], "seed": stored["seed"]}
    wanted |= {name: stored[name] for name in ("method", "sparsity")}
    return next((r["value"] for r in rows if wanted.items() <= r.items()), None)


STUDY = Study(
    name="diff_pruning",
    settings=Settings,
    job=Job,
    jobs=jobs,
    rows=rows,
    tables={"summary": summary, "by_method": by_method},
    draw=draw,
    free=("methods", "sparsity"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

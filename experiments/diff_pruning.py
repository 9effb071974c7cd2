"""A task as a sparse change of all weights (diff pruning, Guo, Rush and Kim 2021).

Claim (their table 1): half a percent of the weights, chosen by gates that learn which to
keep, do as well as all of them (80.6 and 80.6 on GLUE with BERT-large); the largest changes
of full fine-tuning do not (75.5).

    python -m experiments.diff_pruning      # embedded sentences
    python -m experiments.diff_pruning --dataset glue/stsb --weights minilm \\
        --data-dir DATA --sparsity 0.005

Two CPU cores: ten minutes; the second was not run. On the embedded sentences' validation
data (three seeds, one pair of rates) constrained has 64.7, the largest changes of full
fine-tuning 63.0, and a random mask 52.3, as constrained had while its gates followed Adam.

Every method has the same number of steps in all, and the same number of learning rates.
What is tested is the network that the stored delta gives. The paper's way (structured,
plain) has a fixed strength of the penalty; constrained is ours, and needs none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import jax
import numpy as np
import tyro

import subtune_jax as st
from experiments.common import sparse
from experiments.common.flags import Common, Flags, Positive, Share, one_of
from experiments.common.modules import ModuleRecipe, ModuleRecipeFlags, loss_of
from experiments.common.report import results, tables
from experiments.common.report.intervals import paired_interval
from experiments.common.report.plots import curves, heat_maps
from experiments.common.report.results import Row
from experiments.common.sparse import DENSE, SPARSE, TWO_PHASES
from experiments.common.study import Config, Context, Study, choice_of_first_seed, main
from experiments.common.texts import TextTarget, TextTargetFlags
from experiments.common.trials import on_mesh, trial_rows

METHODS = ("full", "constrained", "non_adaptive", "random", "top_magnitude")


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
    one for each tensor), constrained (gates held to the target), outputs (that on the
    layers' output projections alone), fixed_gates (constrained, its gates then fixed in the
    place of a mask); non_adaptive (the largest changes of full), random and top_magnitude
    (masks chosen before tuning); lora (of the highest rank with no more values). Methods
    of two phases move all weights at the rates of full, and then few at the others."""
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
    """What is tried: learning rates, that of the mask where it comes second (else 0)."""

    learning_rate: float
    mask_learning_rate: float = 0.0


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns every method at every sparsity, the first seed first."""
    size = settings.recipe.batch_size
    st.training.placement(settings.common.mesh)(np.zeros(size))
    every = [
        Job(method, share, seed)
        for seed, method in product(range(settings.common.seeds), settings.methods)
        for share in ((1.0,) if method in DENSE else settings.sparsity)
    ]
    dense, few = rates_of(settings.recipe)
    if {*settings.methods} & {*TWO_PHASES} and len(dense) != len(few):
        raise st.InputError(
            f"--learning-rates has {len(few)} values and --full-learning-rates "
            f"{len(dense)}: methods of two phases take one of each, so give as many"
        )
    for job in every:
        if job.seed == 0:  # refuses what cannot be; the numbers of a rule do not matter
            phases_of(settings, task, job, Variant(1.0, 1.0))
    return iter(every)


def phases_of(
    settings: Settings, task: st.Task, job: Job, variant: Variant
) -> list[st.Phase]:
    """Returns the phases of a method: all have the same number of steps together."""
    recipe, diff = settings.recipe, settings.diff
    steps = recipe.epochs * -(-len(task.train.y) // recipe.batch_size)
    masked = int(steps * diff.mask_share)
    two = job.method in TWO_PHASES
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
    mask = rule(variant.mask_learning_rate) if two else body
    budget = sparse.Budget(steps, masked, body, mask, head, job.seed)
    return sparse.phases_of(task.network, job.method, job.sparsity, diff, budget)


def rates_of(recipe: ModuleRecipe) -> tuple[Sequence[float], Sequence[float]]:
    """Returns the learning rates at which all weights move, and those of a few."""
    return recipe.full_learning_rates or (), recipe.learning_rates or ()


def variants_of(method: str, recipe: ModuleRecipe) -> list[Variant]:
    """Returns what is tried. All weights move at the rates of full, also where a mask of
    few comes after them at the rates of few (paper: 1e-5, then 5e-5)."""
    dense, few = rates_of(recipe)
    if method in TWO_PHASES:
        return list(map(Variant, dense, few))
    return list(map(Variant, dense if method in ("full", "last_layer") else few))


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Yields the rows of the learning rates that are tried, of the test of the stored
    delta of the best, and of what that delta holds."""
    recipe, target = settings.recipe, settings.target
    choice = choice_of_first_seed(job, context, recipe.choose)
    variants = variants_of(job.method, recipe)
    if choice is not None:
        variants = [Variant(*(choice[name] for name in Variant._fields))]
    about = job._asdict() | {
        "dataset": target.dataset,
        "task": target.dataset.split("/")[-1],
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
        partial(phases_of, settings, task, job),
        variants,
        key=jax.random.key(job.seed),
        progress=context.progress,
        keep=keep,
        after=partial(sparse.stored_rows, base, values),
        outputs=True,
        tuner=partial(sparse.tune_stored, values),
        settings=st.Settings(
            loss=loss_of(task),
            batch_size=recipe.batch_size,
            place=on_mesh(settings.common.mesh),
        ),
        checkpoint=None if target.embedded else context.folder,
    ):
        if other := row.pop("also", None):
            row |= {"metric": other, "task": f"{about['task']}, {other}"}
        yield about | row


COLUMNS = (
    "task",
    "tuned",
    "sparsity",
    "score",
    "bytes",
    "values",
    "bytes a value",
    "differ",
    "before the mask",
    "expected",
    "untouched tensors",
    "seconds a step, compilation included",
)


def by_method(rows: Sequence[Row], config: Config) -> str:
    """Returns a line for each method and sparsity: score, and what the delta holds."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    tests = [row for row in rows if row["split"] == "test"]
    kinds = dict.fromkeys((r["task"], r["method"], r["sparsity"]) for r in tests)
    for task, method, sparsity in kinds:
        group = [r for r in tests if same(r, method, sparsity) and r["task"] == task]
        score = tables.cells(group, "task", "method")[task, method]
        held = [r for r in rows if r["split"] == "stored" and same(r, method, sparsity)]
        tries = [
            r for r in rows if r["split"] == "validation" and same(r, method, sparsity)
        ]
        paces = [r["seconds"] / r["steps"] for r in tries if r["steps"]]
        values = [task, method, f"{100 * sparsity:g} %", tables.text_of(score)]
        values += [
            mean_of(held, "value"),
            mean_of(held, "stored"),
            mean_of(held, "bytes_a_value", 2),
            mean_of(held, "differ"),
            mean_of(held, "before_mask"),
            mean_of(held, "expected"),
            f"{mean_of(held, 'untouched')} of {held[0]['tensors']}" if held else "",
            f"{np.mean(paces):.2f}" if paces else "",
        ]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def mean_of(rows: Sequence[Row], name: str, digits: int = 0) -> str:
    """Returns the mean of a value over rows as text; nothing where no row has it."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return f"{np.mean(values):,.{digits}f}" if values else ""


def differences(rows: Sequence[Row], config: Config) -> str:
    """Returns a gated method's score minus that of every other method, with the 95 %
    interval over the seeds that both have and their test examples."""
    tested = [row for row in rows if row["split"] == "outputs"]
    gated = [m for m in ("structured", "constrained", "plain") if by_seed(tested, m)]
    if not gated:
        return ""
    head = "sparsity", f"{gated[0]} minus", "seeds", "difference", "95 % interval"
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for sparsity in dict.fromkeys(
        r["sparsity"] for r in tested if r["method"] == gated[0]
    ):
        mine = by_seed(tested, gated[0], sparsity)
        for method in dict.fromkeys(r["method"] for r in tested):
            if method != gated[0]:
                theirs = by_seed(tested, method, sparsity) or by_seed(
                    tested, method, 1.0
                )
                cells = f"{100 * sparsity:g} %", method, *interval_cells(mine, theirs)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_seed(
    rows: Sequence[Row], method: str, sparsity: float | None = None
) -> dict[int, Row]:
    """Returns the rows of a method by seed, at a sparsity if there is one."""
    own = [row for row in rows if row["method"] == method]
    return {row["seed"]: row for row in own if sparsity in (None, row["sparsity"])}


def interval_cells(
    mine: Mapping[int, Row], theirs: Mapping[int, Row]
) -> tuple[str, str, str]:
    """Returns the number of common seeds, the difference and its interval; a run that
    diverged has no outputs, and its seed is left out."""
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return "0", "", ""
    pairs = [(mine[seed], theirs[seed]) for seed in seeds]
    metric = st.metrics.METRICS[pairs[0][0]["metric"]]
    one, other = ([np.asarray(p[i]["outputs"]) for p in pairs] for i in (0, 1))
    labels = [np.asarray(pair[0]["labels"]) for pair in pairs]
    if labels[0].dtype.kind in "iu":  # classes were chosen: a metric reads logits
        count = 1 + max(int(array.max()) for array in (*one, *other, *labels))
        one, other = ([np.eye(count)[a] for a in arrays] for arrays in (one, other))
    mean, low, high = paired_interval(metric, one, other, labels)
    return f"{len(seeds)}", f"{mean:.1f}", f"{low:.1f} to {high:.1f}"


def same(row: Row, method: str, sparsity: float) -> bool:
    """Returns whether a row is of a method at a sparsity."""
    return (row["method"], row["sparsity"]) == (method, sparsity)


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns what the table holds, and the table."""
    note = (
        "Test score in percent of the stored delta, mean (standard error) over seeds."
    )
    return f"{note}\n\n{by_method(rows, config)}\n\n{differences(rows, config)}".strip()


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
    settings=Settings,
    job=Job,
    name="diff_pruning",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary, "by_method": by_method, "differences": differences},
    draw=draw,
    free=("methods", "sparsity"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

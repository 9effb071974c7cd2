"""Why one layer can be better than all: the theory of surgical fine-tuning in numbers.

Claims (Lee et al. 2023): the first layer alone repairs an input-level shift and
the last alone an output-level one (Propositions 1 and 2); for two-layer linear networks
first-layer tuning reaches zero target loss where full tuning keeps a loss at every time
of its trajectory (Theorem 1); and tuning the block that was perturbed wins.

    python -m experiments.surgical_theory      # a minute on two cores

The construction for Theorem 1 is our own, the paper's proof was not read; the block noise
is N(0, 0.1^2) on all parameters of a block, as in a public version (the paper's is
unknown).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive
from experiments.common.images import Target
from experiments.common.report import results, tables
from experiments.common.report.results import Row
from experiments.common.study import Config, Context, Study, main
from experiments.common.surgical import Recipe, RecipeFlags, tuned_rows
from experiments.common.two_layer import input_shift, output_shift, theorem_gap

TUNED = ("first", "last", "full")
METHODS = ("none", "block1", "block2", "block3", "last", "all")
THEORY = "theory"  # the part that is not noise in a block


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    theory_seeds: Positive[int] = 20
    """Random networks of the propositions and the theorem (20: our choice)."""
    theory_steps: Positive[int] = 40_000
    """Steps of gradient descent of the theorem."""
    noise: Positive[float] = 0.1
    """Standard deviation of the noise added to a block's parameters."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"theory_seeds": 2, "theory_steps": 200}


class Job(NamedTuple):
    """The theory, or the noise in a block, tuned by every method under a seed."""

    part: str
    repeat: int


class Method(NamedTuple):
    """A method on the digits under a seed; what `tuned_rows` asks of a job."""

    shift: str
    seed: int
    method: str


def jobs(settings: Settings, task: None) -> Iterator[Job]:
    """Returns the theory, then the noise in every block under every seed."""
    yield Job(THEORY, 0)
    blocks = METHODS[1:2] if settings.common.smoke else METHODS[1:-1]
    for block in blocks:
        for seed in range(settings.common.seeds):
            yield Job(f"noise in {block}", seed)


def rows(settings: Settings, task: None, job: Job, context: Context) -> Iterator[Row]:
    """Yields relative errors of the theory, or accuracies after noise in a block."""
    about = {"dataset": "digits", "commit": results.commit()}
    if job.part == THEORY:
        with jax.enable_x64(True):
            new = theory_rows(settings.theory_seeds, settings.theory_steps)
    else:
        new = noise_rows(settings, job, context)
    return (about | row for row in new)


def theory_rows(seeds: int, steps: int) -> list[Row]:
    """Returns relative target errors: of the theorem at the end and at the lowest point of
    the trajectory, of the propositions per layer."""
    keys = jax.random.split(jax.random.key(0), seeds)
    rows = []
    for tuned in TUNED:
        gaps = jax.vmap(lambda k, t=tuned: theorem_gap(k, tuned=t, steps=steps))(keys)
        losses = np.asarray(gaps.population)
        rows += _rows("theorem 1, end", tuned, losses[:, -1])
        rows += _rows("theorem 1, lowest", tuned, losses.min(axis=1))
    for name, f in {"input shift": input_shift, "output shift": output_shift}.items():
        repaired = jax.vmap(f)(keys)
        rows += _rows(name, "first", repaired.first)
        rows += _rows(name, "last", repaired.last)
    return rows


def _rows(claim: str, tuned: str, values: Any) -> list[Row]:
    metric = {"metric": "relative error", "split": "population"}
    return [
        {"claim": claim, "method": tuned, "seed": seed, "value": float(value)} | metric
        for seed, value in enumerate(values)
    ]


def noise_rows(settings: Settings, job: Job, context: Context) -> Iterator[Row]:
    """Yields test accuracies of every method after the noise, on digits."""
    block, seed = job.part.removeprefix("noise in "), job.repeat
    target = replace(Target(), train_examples=100)
    task = st.demo.digits_task("none", seed, sizes=target.sizes)
    noisy = perturbed(task.network, block, settings.noise, seed)
    tuning = _TuningSettings(target, settings.recipe, settings.common)
    for method in METHODS[:2] if settings.common.smoke else METHODS:
        one = Method("none", seed, method)
        # Several networks of one job: each is kept under its method.
        own = context._replace(keep=lambda *kept, m=method: context.keep(*kept, m))
        *_, row = tuned_rows(tuning, task._replace(network=noisy), one, own)
        yield row | {"claim": job.part, "method": method, "seed": seed}


class _TuningSettings(NamedTuple):
    target: Target
    recipe: Recipe
    common: Common


def perturbed(network: st.Network, unit: str, noise: float, seed: int) -> st.Network:
    """Returns the network with N(0, noise^2) added to every parameter of a unit."""
    key, paths = jax.random.key(seed), st.selection.match(network, f"surgical:{unit}")
    places = {path: index for index, path in enumerate(paths)}

    def add(path, leaf):
        if path not in places:
            return leaf
        draw = jax.random.normal(jax.random.fold_in(key, places[path]), leaf.shape)
        return leaf + noise * draw

    return network._replace(params=st.tree.map_with_path(add, network.params))


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns the errors of the theory, and accuracy by perturbed and tuned block."""
    theory = [row for row in rows if row["part"] == THEORY]
    noise = [row for row in rows if row["part"] != THEORY]
    cells = tables.cells(noise, "claim", "method")
    return f"{theory_table(theory)}\n\n{tables.markdown(cells, 'perturbed')}"


def theory_table(rows: Sequence[Row]) -> str:
    """Returns median (lowest; highest) relative error by claim and tuned layer."""
    groups = tables.grouped(rows, "claim", "method")
    lines = ["| claim | tuned | median | lowest | highest |", "|---|---|---|---|---|"]
    for (claim, tuned), v in groups.items():
        numbers = (np.median(v), min(v), max(v))
        lines.append(
            f"| {claim} | {tuned} | {' | '.join(f'{n:.1e}' for n in numbers)} |"
        )
    return "\n".join(lines)


STUDY = Study(
    settings=Settings,
    job=Job,
    name="surgical_theory",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary},
    older={"theory_steps": 40_000},
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

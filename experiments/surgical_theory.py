"""Why one layer can be better than all: the theory of surgical fine-tuning in numbers.

    python -m experiments.surgical_theory      # a minute on two cores

Claims (papers/surgical.md 2.8): the first layer alone repairs an input-level shift and
the last alone an output-level one (Propositions 1 and 2); for two-layer linear networks
first-layer tuning reaches zero target loss where full tuning keeps a loss at every time
of its trajectory (Theorem 1); and tuning the block that was perturbed wins. The
construction for Theorem 1 is our own, the paper's proof was not read; the block noise is
N(0, 0.1^2) on all parameters of a block, a public version (the paper's is unknown).
"""

from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from experiments.cli import Common, Flags, as_config, main, progress
from experiments.common.report import results, tables
from experiments.common.report.results import Row
from experiments.common.two_layer import input_shift, output_shift, theorem_gap
from experiments.surgical import Recipe, RecipeFlags, tune
from experiments.targets import Target, Task, make_task
from subtune_jax import tree
from subtune_jax.errors import require_positive
from subtune_jax.network import Network
from subtune_jax.selection.select import match

NAME = "surgical_theory"
TUNED = ("first", "last", "full")
METHODS = ("none", "block1", "block2", "block3", "last", "all")


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    theory_seeds: int = 20
    """Random networks of the propositions and the theorem (papers/surgical.md 2.8)."""
    noise: float = 0.1
    """Standard deviation of the noise added to a block's parameters."""
    recipe: RecipeFlags = field(default_factory=Recipe)
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        self.recipe.check()
        require_positive(theory_seeds=self.theory_seeds, noise=self.noise)


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
        rows += _rows(name, "first", repaired.first) + _rows(
            name, "last", repaired.last
        )
    return rows


def _rows(claim: str, tuned: str, values) -> list[Row]:
    metric = {"metric": "relative error", "split": "population"}
    return [
        {"claim": claim, "method": tuned, "seed": seed, "value": float(value)} | metric
        for seed, value in enumerate(values)
    ]


def perturbed(network: Network, unit: str, noise: float, seed: int) -> Network:
    """Returns the network with N(0, noise^2) added to every parameter of a unit."""
    key, paths = jax.random.key(seed), match(network, f"surgical:{unit}")
    places = {path: index for index, path in enumerate(paths)}

    def add(path, leaf):
        if path not in places:
            return leaf
        draw = jax.random.normal(jax.random.fold_in(key, places[path]), leaf.shape)
        return leaf + noise * draw

    return network._replace(params=tree.map_with_path(add, network.params))


def noise_rows(settings: Settings, recipe: Recipe) -> list[Row]:
    """Returns test accuracies of tuning each block after each was perturbed, on digits."""
    rows, small = [], settings.common.smoke
    methods = METHODS[:2] if small else METHODS
    blocks = methods[1:] if small else methods[1:-1]
    jobs = [(b, s) for b in blocks for s in range(settings.common.seeds)]
    with progress() as bar:
        for block, seed in bar.track(jobs, description=NAME):
            task = make_task(Target(), settings.common, "none", seed)
            noisy = perturbed(task.network, block, settings.noise, seed)
            for method in methods:
                *_, row = tune(Task(noisy, *task[1:]), recipe, method, seed)
                fixed = {"claim": f"noise in {block}", "method": method, "seed": seed}
                rows.append(row | fixed | {"metric": "accuracy"})
    return rows


def run(settings: Settings) -> None:
    """Runs theory and block noise and writes rows and two tables."""
    settings.check()
    small = settings.common.smoke
    seeds, steps = (2, 200) if small else (settings.theory_seeds, 40_000)
    out = settings.common.out or Path("runs") / NAME
    results.open_folder(out, as_config(settings))
    with jax.enable_x64(True):
        theory = theory_rows(seeds, steps)
    noise = noise_rows(settings, settings.recipe.resolved(True, small))
    fixed = {"experiment": NAME, "dataset": "digits", "commit": results.commit()}
    results.keep(out, [fixed | row for row in theory + noise])
    text = f"{theory_table(theory)}\n\n{noise_table(noise)}\n"
    results.write(out / "summary.md", text)
    print(text)


def theory_table(rows: list[Row]) -> str:
    """Returns median (lowest; highest) relative error by claim and tuned layer."""
    groups = tables.grouped(rows, "claim", "method")
    lines = ["| claim | tuned | median | lowest | highest |", "|---|---|---|---|---|"]
    for (claim, tuned), v in groups.items():
        numbers = (np.median(v), min(v), max(v))
        lines.append(
            f"| {claim} | {tuned} | {' | '.join(f'{n:.1e}' for n in numbers)} |"
        )
    return "\n".join(lines)


def noise_table(rows: list[Row]) -> str:
    """Returns accuracy by perturbed and tuned block."""
    return tables.markdown(tables.cells(rows, "claim", "method"), "perturbed")


if __name__ == "__main__":
    main(run, Settings, __doc__)

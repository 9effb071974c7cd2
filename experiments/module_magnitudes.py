"""Do LayerNorms transfer because their weights are large? Magnitudes and controls.

Claim (papers/transformer_modules.md 3.1): LayerNorms do best for their size, perhaps since
their weights are larger than those of other modules. Which of them the paper calls
high-magnitude was not read; what is done here is proposed in 3.3 and 3.5.

    python -m experiments.module_magnitudes      # embedded sentences
    python -m experiments.module_magnitudes --dataset glue/cola --data-dir DATA \\
        --weights minilm --profile results/transformer_modules/cola --out runs/sizes

Sizes of the pretrained weights by module, layer and part; their rank correlation with the
scores of a finished transformer_modules folder; scores by the number of elements of each
LayerNorm vector that are tuned, the largest against random and smallest ones; and two
controls: the LayerNorms' factors instead of the LayerNorms (Adam then moves each by the
same share of itself), and as many elements of dense layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from experiments.cli import Common, Flags, main
from experiments.common.report import results, tables
from experiments.common.report.plots import curves, heat_maps
from experiments.common.report.results import Row
from experiments.jobs import choice_of_first, run_jobs
from experiments.modules import (
    Job,
    ModuleRecipe,
    ModuleRecipeFlags,
    job_of,
    module_rows,
    require_runnable,
)
from experiments.texts import TextTarget, TextTargetFlags, base_of, make_text_task
from experiments.transformer_modules import NAME as STUDY
from experiments.transformer_modules import module_table
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.network import Network
from subtune_jax.selection.weight_sizes import Statistics, statistics, unit_weights
from subtune_jax.tree import count

NAME = "module_magnitudes"
RULES = ("highest", "lowest", "random", "fisher")
CONTROLS = ("frozen", "full", "layer_norms", "rescaled", "random")
KINDS = (
    *("query", "key", "value", "attention_output", "attention_norm", "intermediate"),
    *("output", "output_norm", "layer_norms"),
)
PARTS = ("kernel", "scale", "bias")
MEASURES = Statistics._fields[1:]


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is proposed in papers/transformer_modules.md 3.3
    or our choice."""

    target: TextTargetFlags = field(default_factory=TextTarget)
    rules: tuple[str, ...] = ("highest", "lowest", "random")
    """Which elements of each LayerNorm vector: highest, lowest (by magnitude), random, or
    fisher (the highest Fisher information)."""
    counts: tuple[int, ...] = (1, 4, 16)
    """How many elements of each vector."""
    profile: Path | None = None
    """A folder of transformer_modules, whose scores are correlated with the sizes."""
    recipe: ModuleRecipeFlags = field(default_factory=ModuleRecipe)
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        self.target.check(self.common)
        self.recipe.check()
        for rule in self.rules:
            if rule not in RULES:
                raise unknown("rule", rule, RULES)
        for number in self.counts:
            require_positive(count=number)

    def resolved(self) -> "Settings":
        """Returns the settings with the recipe's defaults, and with `--smoke`."""
        smoke = self.common.smoke
        made = replace(self, recipe=self.recipe.resolved(self.target.dataset, smoke))
        if not smoke:
            return made
        few = {"rules": self.rules[:2], "counts": self.counts[:1]}
        return replace(made, common=replace(self.common, seeds=1), **few)

    @property
    def modules(self) -> list[str]:
        """What is tuned, see transformer_modules; `sizes` stands for the statistics."""
        chosen = [f"{r}_{n}" for r, n in product(self.rules, self.counts)]
        return ["sizes", *CONTROLS, *dict.fromkeys(chosen)]


def run(settings: Settings) -> None:
    """Runs what the folder does not have yet, then writes tables and pictures."""
    settings.check()
    settings = settings.resolved()
    target, common, recipe = settings.target, settings.common, settings.recipe
    task_of = lru_cache(1)(lambda seed: make_text_task(target, common, seed))
    network, profile = task_of(0).network, {}
    if (folder := settings.profile) is not None:
        profile = profile_of(results.read(folder), network)
        if not profile:
            raise InputError(f"--profile {folder} has no module of this network tested")
    require_runnable(task_of(0), recipe, settings.modules[1:], common.mesh)

    def rows_of(job: Job, rows: list[Row], folder: Path) -> Iterator[Row]:
        if job.module == "sizes":
            return size_rows(network)
        made = {"name": NAME, "dataset": target.dataset, "devices": common.mesh}
        made["chosen"] = choice_of_first(rows, job_of, job, recipe.choose)
        return module_rows(task_of(job.seed), recipe, job, **made, folder=folder)

    jobs = [Job(*j) for j in product(settings.modules, range(common.seeds))]
    jobs = [job for job in jobs if job.seed == 0 or job.module != "sizes"]
    jobs = sorted(jobs, key=lambda job: job.seed)
    base, free = base_of(target, common), {"rules", "counts", "profile"}
    out, made = run_jobs(
        jobs, job_of, rows_of, name=NAME, settings=settings, base=base, free=free
    )
    report(out, made, network, profile)


def size_rows(network: Network) -> Iterator[Row]:
    """Yields the statistics of the pretrained weights by kind, layer (and all) and part."""
    fixed = {"experiment": NAME, "method": "sizes", "module": "sizes", "seed": 0}
    fixed |= {"split": "pretrained", "commit": results.commit()}
    layers = [s.name for s in network.stages if s.name.startswith("layer_")]
    for kind, layer, part in product(KINDS, ("", *layers), ("", *PARTS)):
        unit = f"{layer}:{kind}" if layer else kind
        weights = unit_weights(network, unit, part or None)
        if weights.size:
            where = {"kind": kind, "layer": layer or "all", "part": part or "all"}
            for metric, value in statistics(weights)._asdict().items():
                found = value if np.isfinite(value) else None
                yield fixed | where | {"unit": unit, "metric": metric, "value": found}


def profile_of(rows: list[Row], network: Network) -> dict[str, float]:
    """Returns the mean test score of every module of this network in a folder of
    transformer_modules."""
    body = count(network.params) - count(network.params["head"])
    mine = [r for r in rows if r["experiment"] == STUDY and r["total_params"] == body]
    own = [r for r in mine if r["task"] == r["dataset"].split("/")[-1]]  # not carried
    found = tables.grouped([r for r in own if r["split"] == "test"], "module")
    return {module: float(np.mean(values)) for (module,), values in found.items()}


def correlations(network: Network, profile: dict[str, float]) -> tables.Cells:
    """Returns Spearman's correlation of each statistic with the scores, over kinds in all
    layers and over single layers, where there are three or more."""
    known = {unit: score for unit, score in profile.items() if is_unit(network, unit)}
    groups = {
        "modules over all layers": [u for u in known if ":" not in u],
        "modules of one layer": [u for u in known if ":" in u],
    }
    cells: tables.Cells = {}
    for name, units in groups.items():
        if len(units) < 3:
            continue
        sizes = [statistics(unit_weights(network, unit)) for unit in units]
        scores = [known[unit] for unit in units]
        for measure in Statistics._fields:
            values = [getattr(size, measure) for size in sizes]
            same = len(set(values)) == 1 or len(set(scores)) == 1
            found = float("nan") if same else float(spearmanr(values, scores)[0])
            cells[f"{name} ({len(units)})", measure] = (found, float("nan"))
    return cells


def is_unit(network: Network, name: str) -> bool:
    """Returns whether a module of a profile is a unit of the network."""
    table, _, unit = name.rpartition(":")
    return unit in network.units.get(table or "kinds", {})


def report(
    out: Path, rows: list[Row], network: Network, profile: dict[str, float]
) -> None:
    """Writes summary.md and the pictures, and prints the tables."""
    sizes = [row for row in rows if row["module"] == "sizes"]
    tests = [row for row in rows if row["split"] == "test"]
    parts = ["Pretrained weights, over all layers.", size_table(sizes)]
    parts += ["Test score by what was tuned.", module_table(tests)]
    if found := correlations(network, profile):
        corner = "rank correlation with the scores of"
        parts.append(tables.markdown(found, corner, digits=2))
    text = "\n\n".join(parts)
    results.write(out / "summary.md", f"{text}\n")
    drawn = {"RMS": "rms", "mean magnitude": "mean", "kurtosis": "kurtosis"}
    heat_maps({n: size_map(sizes, m) for n, m in drawn.items()}, out / "sizes.png")
    densities = {kind: density(unit_weights(network, kind)) for kind in KINDS}
    names = {"xlabel": "log10 of magnitude", "ylabel": "density"}
    curves({"": densities}, out / "histogram.png", **names)
    if lines := element_curves(tests):
        label = "elements of each LayerNorm vector"
        names = {"xlabel": label, "ylabel": "test score (%)", "log": True}
        curves(lines, out / "elements.png", **names)
    print(f"{text}\n\n{out}/summary.md  {out}/sizes.png  {out}/elements.png")


def size_table(sizes: list[Row]) -> str:
    """Returns the statistics by kind and part, over all layers."""
    shown = [
        row | {"of": f"{row['kind']}, {row['part']}"}
        for row in sizes
        if row["layer"] == "all" and row["value"] is not None
    ]
    kept = [row for row in shown if row["metric"] in MEASURES]
    cells = tables.cells(kept, "of", "metric")
    return tables.markdown(cells, "weights", digits=3, bold=False)


def size_map(sizes: list[Row], metric: str) -> dict[tuple[str, str], float]:
    """Returns `{(kind, layer): value}` of a statistic over all parts."""
    return {
        (row["kind"], row["layer"].removeprefix("layer_")): row["value"]
        for row in sizes
        if row["metric"] == metric and row["part"] == "all"
    }


def density(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centres of 40 bins of log10 |w| and the density in them, zeros aside."""
    size = np.abs(weights[weights != 0])
    share, edges = np.histogram(np.log10(size), bins=40, range=(-5, 1), density=True)
    return (edges[1:] + edges[:-1]) / 2, share


def element_curves(tests: list[Row]) -> dict[str, dict[str, tuple]]:
    """Returns `{task: {rule: (counts, means, errors)}}` of the element selections."""
    lines: dict[str, dict[str, tuple]] = {}
    for (module, task), cell in tables.cells(tests, "module", "task").items():
        mean, error, *_ = cell
        rule, _, number = module.rpartition("_")
        if rule in RULES and number.isdigit() and np.isfinite(mean):
            line = lines.setdefault(task, {}).setdefault(rule, ([], [], []))
            for values, value in zip(line, (int(number), mean, error), strict=True):
                values.append(value)
    return lines


if __name__ == "__main__":
    main(run, Settings, __doc__)

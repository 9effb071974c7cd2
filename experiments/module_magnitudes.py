"""Do LayerNorms transfer because their weights are large? Magnitudes and controls.

Claim (AkbarTajari et al. 2022): LayerNorms do best for their size, perhaps since their
weights are larger than those of other modules. Which of them the paper calls
high-magnitude was not read; the rules and controls here are our own.

    python -m experiments.module_magnitudes      # embedded sentences
    python -m experiments.module_magnitudes --dataset glue/cola --data-dir DATA \\
        --weights minilm --profile results/transformer_modules/cola --out runs/sizes

Sizes of the pretrained weights by module, layer
and part; their rank correlation with the scores of a finished transformer_modules folder;
scores by the number of elements of each LayerNorm vector that are tuned, the largest
against random and smallest ones; and two controls: the LayerNorms' factors instead of the
LayerNorms (Adam then moves each by the same share of itself), and as many elements of
dense layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from scipy.stats import spearmanr

import subtune_jax as st
from experiments.common.flags import Common, Flags, Positive, default, one_of
from experiments.common.module_tables import KINDS, carried, module_table
from experiments.common.modules import (
    Job,
    ModuleRecipe,
    ModuleRecipeFlags,
    Setting,
    module_rows,
    require_runnable,
)
from experiments.common.report import results, tables
from experiments.common.report.plots import curves, heat_maps
from experiments.common.report.results import Row
from experiments.common.study import Config, Context, Study, choice_of_first_seed, main
from experiments.common.texts import TextTarget, TextTargetFlags

PROFILE = "transformer_modules"  # the study whose folders are profiles
RULES = ("highest", "lowest", "random", "fisher")
CONTROLS = ("frozen", "full", "layer_norms", "rescaled", "random")
PARTS = ("kernel", "scale", "bias")


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TextTargetFlags = field(default_factory=TextTarget)
    rules: Annotated[tuple[str, ...], *one_of(*RULES)] = ("highest", "lowest", "random")
    """Which elements of each LayerNorm vector: highest, lowest (by magnitude), random, or
    fisher (the highest Fisher information)."""
    counts: tuple[Positive[int], ...] = (1, 4, 16)
    """How many elements of each vector."""
    profile: Annotated[Path | None, default("no correlation", "DIR")] = None
    """A folder of transformer_modules, whose scores are correlated with the sizes."""
    recipe: ModuleRecipeFlags = field(default_factory=ModuleRecipe)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {
        "rules": lambda rules: rules[:2],
        "counts": lambda counts: counts[:1],
    }

    @property
    def modules(self) -> list[str]:
        """What is tuned, see transformer_modules."""
        return [*CONTROLS, *(f"{r}_{n}" for r, n in product(self.rules, self.counts))]


def jobs(settings: Settings, task: st.Task) -> list[Job]:
    """Returns the sizes of the weights (module `sizes`), then every module under every
    seed."""
    require_runnable(task, settings.recipe, settings.modules, settings.common.mesh)
    if settings.profile is not None:
        network, folder = task.network, settings.profile
        body = st.tree.count(network.params) - st.tree.count(network.params["head"])
        if not profile_of(results.read_all(folder), body):
            raise st.InputError(
                f"--profile {folder} has no module of this network tested"
            )
    seeds = range(settings.common.seeds)
    tuned = [Job(module, seed) for seed in seeds for module in settings.modules]
    return [Job("sizes", 0), *tuned]


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Returns the sizes of the weights, or the rows of a tuned module."""
    if job.module == "sizes":
        return size_rows(task.network)
    target, recipe, common = settings.target, settings.recipe, settings.common
    setting = Setting(target, recipe, common, *context[1:4])  # folder, progress, keep
    choice = choice_of_first_seed(job, context, recipe.choose)
    return module_rows(task, job, setting, choice=choice)


def size_rows(network: st.Network) -> Iterator[Row]:
    """Yields the statistics of the pretrained weights by kind, layer (and all) and part."""
    about = {"method": "sizes", "split": "pretrained", "commit": results.commit()}
    layers = [s.name for s in network.stages if s.name.startswith("layer_")]
    for kind, layer, part in product(KINDS, ("", *layers), ("", *PARTS)):
        unit = f"{layer}:{kind}" if layer else kind
        weights = st.selection.unit_weights(network, unit, part or None)
        if weights.size:
            where = {"kind": kind, "layer": layer or "all", "part": part or "all"}
            for metric, value in st.selection.statistics(weights)._asdict().items():
                finite = value if np.isfinite(value) else None
                yield about | where | {"unit": unit, "metric": metric, "value": finite}


def profile_of(rows: Sequence[Row], body: int) -> dict[str, float]:
    """Returns the mean test score of every module in a folder of transformer_modules, of a
    network with so many parameters without the head."""
    own = [
        row
        for row in rows
        if row["experiment"] == PROFILE
        and row["total_params"] == body
        and row["split"] == "test"
        and row["task"] == row["dataset"].split("/")[-1]  # its own task and metric
        and not carried(row)
    ]
    grouped = tables.grouped(own, "module")
    return {module: float(np.mean(values)) for (module,), values in grouped.items()}


def correlations(sizes: Sequence[Row], profile: Mapping[str, float]) -> tables.Cells:
    """Returns Spearman's correlation of each statistic with the scores, over kinds in all
    layers and over single layers, where there are three or more."""
    of_unit: dict[str, dict[str, float | None]] = {}
    for row in sizes:
        if row["part"] == "all":
            of_unit.setdefault(row["unit"], {})[row["metric"]] = row["value"]
    units = [unit for unit in profile if unit in of_unit]
    groups = {
        "modules over all layers": [unit for unit in units if ":" not in unit],
        "modules of one layer": [unit for unit in units if ":" in unit],
    }
    cells: tables.Cells = {}
    for name, members in groups.items():
        for measure in st.selection.Statistics._fields if len(members) >= 3 else ():
            values = [of_unit[unit][measure] for unit in members]
            scores = [profile[unit] for unit in members]
            same = len(set(values)) == 1 or len(set(scores)) == 1 or None in values
            rho = float("nan") if same else float(spearmanr(values, scores)[0])
            cells[f"{name} ({len(members)})", measure] = (rho, float("nan"))
    return cells


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns the sizes of the weights, the scores, and how they correlate."""
    sizes = [row for row in rows if row["module"] == "sizes"]
    tests = [row for row in rows if row["split"] == "test"]
    parts = ["Pretrained weights, over all layers.", size_table(sizes)]
    parts += ["Test score by what was tuned.", module_table(tests)]
    if config["profile"] is not None and tests:
        body = tests[0]["total_params"]
        profile = profile_of(results.read_all(Path(config["profile"])), body)
        if cells := correlations(sizes, profile):
            corner = "rank correlation with the scores of"
            parts.append(tables.markdown(cells, corner, digits=2))
    return "\n\n".join(parts)


def size_table(sizes: Sequence[Row]) -> str:
    """Returns the statistics by kind and part, over all layers."""
    shown = [
        row | {"of": f"{row['kind']}, {row['part']}"}
        for row in sizes
        if row["layer"] == "all"
        and row["value"] is not None
        and row["metric"] != "count"
    ]
    cells = tables.cells(shown, "of", "metric")
    return tables.markdown(cells, "weights", digits=3, bold=False)


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws sizes.png, histogram.png and, of chosen elements, elements.png."""
    sizes = [row for row in rows if row["module"] == "sizes"]
    panels = {"RMS": "rms", "mean magnitude": "mean", "kurtosis": "kurtosis"}
    heat_maps({n: size_map(sizes, m) for n, m in panels.items()}, out / "sizes.png")
    densities = {
        kind: density(st.selection.unit_weights(task.network, kind))
        for kind in KINDS[:9]
    }
    axes = {"xlabel": "log10 of magnitude", "ylabel": "density"}
    curves({"": densities}, out / "histogram.png", **axes)
    if lines := element_curves([row for row in rows if row["split"] == "test"]):
        label = "elements of each LayerNorm vector"
        axes = {"xlabel": label, "ylabel": "test score (%)", "log": True}
        curves(lines, out / "elements.png", **axes)


def size_map(sizes: Sequence[Row], metric: str) -> dict[tuple[str, str], float]:
    """Returns `{(kind, layer): value}` of a statistic over all parts."""
    return {
        (row["kind"], row["layer"].removeprefix("layer_")): row["value"]
        for row in sizes
        if row["metric"] == metric and row["part"] == "all"
    }


def density(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centers of 40 bins of log10 |w| and the density in them, zeros aside."""
    size = np.abs(weights[weights != 0])
    share, edges = np.histogram(np.log10(size), bins=40, range=(-5, 1), density=True)
    return (edges[1:] + edges[:-1]) / 2, share


def element_curves(tests: Sequence[Row]) -> dict[str, dict[str, tuple]]:
    """Returns `{task: {rule: (counts, means, errors)}}` of the element selections."""
    lines: dict[str, dict[str, tuple]] = {}
    for (module, task), cell in tables.cells(tests, "module", "task").items():
        rule, _, number = module.rpartition("_")
        if rule in RULES and number.isdigit() and np.isfinite(cell.mean):
            line = lines.setdefault(task, {}).setdefault(rule, ([], [], []))
            point = (int(number), cell.mean, cell.error)
            for values, value in zip(line, point, strict=True):
                values.append(value)
    return lines


STUDY = Study(
    settings=Settings,
    job=Job,
    name="module_magnitudes",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary},
    draw=draw,
    free=("rules", "counts", "profile"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

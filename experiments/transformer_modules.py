"""Which module of a transformer carries a task? Each kind tuned alone, the rest frozen.

Claim (papers/transformer_modules.md 3.1): every module tuned alone comes close to full
fine-tuning, and LayerNorms do best for their size. The protocol is reconstructed there
(3.3): the paper's full text was not read, and no figure of its modules is a target.

    python -m experiments.transformer_modules      # embedded sentences
    python -m experiments.transformer_modules --dataset glue/cola --data-dir DATA \\
        --weights minilm --out runs/cola

A module is tuned together with the classifier. Rate and epoch are chosen on a part of the
training split; what GLUE calls validation is the test here and is read once. The relative
score is 100 (module - frozen) / (full - frozen), of means over the seeds, frozen being
the classifier alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from experiments.cli import Common, Flags, main
from experiments.common.report import results, tables
from experiments.common.report.plots import heat_maps
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
from experiments.trials import Task
from subtune_jax.errors import InputError
from subtune_jax.network import Network

NAME = "transformer_modules"
MODULES = (
    *("frozen", "full", "query", "key", "value", "attention_output", "attention_norm"),
    *("intermediate", "output", "output_norm", "layer_norms", "attention"),
    *("feed_forward", "biases", "random"),
)


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is proposed in papers/transformer_modules.md 3.3
    or our choice."""

    target: TextTargetFlags = field(default_factory=TextTarget)
    modules: tuple[str, ...] = MODULES
    """What is tuned beside the classifier: frozen (nothing), full, a unit (layer_norms;
    layer_3:query for one layer), a path pattern, random (as many elements of dense
    layers, drawn at random, as all LayerNorms have), rescaled (factors of the
    LayerNorms), or highest_N, lowest_N, random_N, fisher_N (N elements of each
    LayerNorm vector) and beyond_K (those beyond K standard deviations)."""
    layers: tuple[str, ...] = ()
    """Kinds of module (layer_norms, query, ...) to tune in each layer alone as well."""
    carry: str | None = None
    """Another task: what was tuned is frozen and gets a new classifier there."""
    recipe: ModuleRecipeFlags = field(default_factory=ModuleRecipe)
    common: Flags = field(default_factory=Common)

    def check(self) -> None:
        """Raises `InputError` for the first setting that cannot be."""
        self.common.check()
        self.target.check(self.common)
        self.recipe.check()
        if not self.modules:
            raise InputError("--modules needs at least one value")
        if self.carry is None:
            return
        self.carried.check(self.common)
        here, there = (
            t.removeprefix("glue/") for t in (self.target.dataset, self.carry)
        )
        if here == there:
            raise InputError(f"--carry needs another task than {self.carry}")

    @property
    def carried(self) -> TextTarget:
        """The other task; as many examples, texts read in the same way."""
        return replace(self.target, dataset=self.carry)

    def resolved(self) -> "Settings":
        """Returns the settings with the recipe's defaults, and with `--smoke`."""
        smoke = self.common.smoke
        made = replace(self, recipe=self.recipe.resolved(self.target.dataset, smoke))
        if not smoke:
            return made
        few = ("frozen", "full", "layer_norms", "random")
        modules = few if self.modules == MODULES else self.modules
        return replace(made, common=replace(self.common, seeds=1), modules=modules)


def run(settings: Settings) -> None:
    """Runs what the folder does not have yet, then writes the tables and the heat map."""
    settings.check()
    settings = settings.resolved()
    target, common = settings.target, settings.common
    task_of = lru_cache(1)(lambda seed: make_text_task(target, common, seed))
    carried_of = lru_cache(1)(
        lambda seed: make_text_task(settings.carried, common, seed)
    )
    modules = all_modules(task_of(0), settings)
    require_runnable(task_of(0), settings.recipe, modules, common.mesh)
    if settings.carry is not None:
        carried_of(0)

    def rows_of(job: Job, rows: list[Row], folder: Path) -> Iterator[Row]:
        made = {"name": NAME, "dataset": target.dataset, "devices": common.mesh}
        made |= {"folder": folder}
        made["chosen"] = choice_of_first(rows, job_of, job, settings.recipe.choose)
        if settings.carry is not None:
            made["after"] = lambda network: carried_rows(
                network, carried_of(job.seed), settings, job, folder
            )
        return module_rows(task_of(job.seed), settings.recipe, job, **made)

    jobs = [Job(*j) for j in product(modules, range(common.seeds))]
    jobs = sorted(jobs, key=lambda job: job.seed)
    base, free = base_of(target, common), {"modules", "layers"}
    out, made = run_jobs(
        jobs, job_of, rows_of, name=NAME, settings=settings, base=base, free=free
    )
    report(out, made)


def all_modules(task: Task, settings: Settings) -> list[str]:
    """Returns the modules, by default with the pooler if there is one, and what `--layers`
    asks for, as `layer_3:query`."""
    names = [s.name for s in task.network.stages if s.name.startswith("layer_")]
    pooler = settings.modules == MODULES and "pooler" in task.network.units["kinds"]
    made = [*settings.modules, *(["pooler"] if pooler else [])]
    made += [f"{name}:{kind}" for kind in settings.layers for name in names]
    return list(dict.fromkeys(made))


def carried_rows(
    network: Network, task: Task, settings: Settings, job: Job, folder: Path
) -> Iterator[Row]:
    """Yields the rows of a new classifier on the other task, all else as it was tuned."""
    carried = settings.carried
    params = {**network.params, "head": task.network.params["head"]}
    task = task._replace(network=network._replace(params=params))
    made = {"name": NAME, "dataset": carried.dataset, "folder": folder / "carried"}
    made |= {"devices": settings.common.mesh}
    frozen = Job("frozen", job.seed)
    here, there = (d.split("/")[-1] for d in (settings.target.dataset, carried.dataset))
    for row in module_rows(task, settings.recipe, frozen, **made):
        name = row["task"].replace(there, f"{here} to {there}", 1)
        yield row | job._asdict() | {"method": job.module, "task": name}


def report(out: Path, rows: list[Row]) -> None:
    """Writes summary.md and, of single layers, layers.png; prints the table."""
    tests = [row for row in rows if row["split"] == "test"]
    table, maps = module_table(tests), layer_maps(tests)
    results.write(out / "summary.md", f"{table}\n")
    if maps:
        heat_maps(maps, out / "layers.png")
    drawn = f"{out}/layers.png  " if maps else ""
    print(f"{table}\n\n{out}/summary.md  {drawn}{out}/results.jsonl")


def module_table(tests: list[Row]) -> str:
    """Returns score, relative score and trained share by module (those of the study first,
    in its order) and task."""
    known = {module: place for place, module in enumerate(MODULES)}
    tests = sorted(tests, key=lambda row: known.get(row["module"], len(known)))
    cells = tables.cells([*tests, *relative_rows(tests)], "module", "task")
    shares = {
        row["module"]: 100 * row["trainable_params"] / row["total_params"]
        for row in tests
        if " to " not in row["task"]
    }
    shown = {
        (f"{module} ({shares[module]:.3g} %)", task): cell
        for (module, task), cell in cells.items()
    }
    return tables.markdown(shown, "tuned (share)", bold=False)


def relative_rows(tests: list[Row]) -> list[Row]:
    """Returns rows of the relative score in percent, 100 (module - frozen) / (full -
    frozen), both ends as means over the seeds.

    None of a task where full is not above frozen by more than the standard error of
    their difference, nor of one that modules are carried to.
    """
    made = []
    for task in dict.fromkeys(r["task"] for r in tests if " to " not in r["task"]):
        own = [row for row in tests if row["task"] == task]
        frozen, full = gap(own)
        for row in own if full > frozen else []:
            value = row["value"]
            gained = None if value is None else value - frozen
            score = None if gained is None else 100 * gained / (full - frozen)
            made.append(row | {"task": f"{task}, relative", "value": score})
    return made


def gap(tests: list[Row]) -> tuple[float, float]:
    """Returns the mean scores of frozen and full over the seeds that have both; NaN where
    they are within a standard error, or there is no such seed."""
    whole = [row for row in tests if row["value"] is not None]
    known = {(row["module"], row["seed"]): row["value"] for row in whole}
    seeds = [s for m, s in known if m == "frozen" and ("full", s) in known]
    ends = np.array([[known[m, s] for s in seeds] for m in ("frozen", "full")])
    if not seeds:
        return float("nan"), float("nan")
    frozen, full = ends.mean(axis=1)
    spread = np.std(ends[1] - ends[0], ddof=1) if len(seeds) > 1 else 0.0
    apart = full - frozen > spread / np.sqrt(len(seeds))
    return (float(frozen), float(full)) if apart else (float("nan"), float("nan"))


def layer_maps(tests: list[Row]) -> dict[str, dict[tuple[str, str], float]]:
    """Returns `{task: {(kind, layer or "all"): mean score}}` of the kinds that were tuned
    in single layers."""
    maps: dict[str, dict[tuple[str, str], float]] = {}
    cells = tables.cells(tests, "module", "task")
    kinds = {found[1] for module, _ in cells if (found := in_layer(module))}
    for (module, task), cell in cells.items():
        layer, kind = in_layer(module) or ("all", module)
        if kind in kinds and np.isfinite(cell.mean):
            maps.setdefault(task, {})[kind, layer] = cell.mean
    return maps


def in_layer(module: str) -> tuple[str, str] | None:
    """Returns (layer, kind) of a module of one layer, as `layer_3:query`."""
    found = re.fullmatch(r"layer_(\d+):(\w+)", module)
    return found and found.groups()


if __name__ == "__main__":
    main(run, Settings, __doc__)

"""Which module of a transformer carries a task? Each kind tuned alone, the rest frozen.

Claim (AkbarTajari et al. 2022): every module tuned alone comes close to full fine-tuning,
and LayerNorms do best for their size. The protocol is partly reconstructed: the paper's
full text was not read, and no figure of its modules is a target.

    python -m experiments.transformer_modules      # embedded sentences
    python -m experiments.transformer_modules --dataset glue/cola --data-dir DATA \\
        --weights minilm --out runs/cola

Two CPU cores: five minutes, and an hour. A module is tuned together with the classifier.
Learning rate and epoch are chosen on a part of the training split; what GLUE calls
validation is the test here and is read once. The relative score is
100 (module - frozen) / (full - frozen), of means over the seeds, frozen being the
classifier alone.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

import subtune_jax as st
from experiments.common.flags import Common, Flags, default
from experiments.common.module_tables import MODULES, module_table
from experiments.common.modules import (
    Job,
    ModuleRecipe,
    ModuleRecipeFlags,
    Setting,
    module_rows,
    require_runnable,
)
from experiments.common.report import tables
from experiments.common.report.plots import heat_maps
from experiments.common.report.results import Row
from experiments.common.study import Config, Context, Study, choice_of_first_seed, main
from experiments.common.texts import TextTarget, TextTargetFlags

SMOKE_MODULES = ("frozen", "full", "layer_norms", "random")


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TextTargetFlags = field(default_factory=TextTarget)
    modules: tuple[str, ...] = MODULES
    """What is tuned beside the classifier: frozen (nothing), full, a unit (layer_norms;
    layer_3:query for one layer), a path pattern, random (as many elements of dense
    layers, drawn at random, as all LayerNorms have), rescaled (factors of the
    LayerNorms), or highest_N, lowest_N, random_N, fisher_N (N elements of each
    LayerNorm vector) and beyond_K (those beyond K standard deviations)."""
    layers: tuple[str, ...] = ()
    """Kinds of module (layer_norms, query, ...) to tune in each layer alone as well."""
    carry: Annotated[str | None, default("none", "DATASET")] = None
    """Another task: what was tuned is frozen and gets a new classifier there."""
    recipe: ModuleRecipeFlags = field(default_factory=ModuleRecipe)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {
        "modules": lambda modules: SMOKE_MODULES if modules == MODULES else modules
    }

    def check(self, settings: Any) -> None:
        """Raises `InputError` for a task that nothing can be carried to."""
        if self.carry is None:
            return
        self.carried.check(settings)
        if self.carried.glue_name == self.target.glue_name:
            raise st.InputError(f"--carry needs another task than {self.carry}")

    @property
    def carried(self) -> TextTarget:
        """The other task; as many examples, texts read in the same way."""
        return replace(self.target, dataset=self.carry)


def jobs(settings: Settings, task: st.Task) -> list[Job]:
    """Returns every module under every seed, the first seed first."""
    modules = all_modules(task, settings)
    require_runnable(task, settings.recipe, modules, settings.common.mesh)
    if settings.carry is not None:
        settings.carried.task(settings.common, None, 0)
    seeds = range(settings.common.seeds)
    return [Job(module, seed) for seed in seeds for module in modules]


def all_modules(task: st.Task, settings: Settings) -> list[str]:
    """Returns the modules, by default with the pooler if there is one, and what `--layers`
    asks for, as `layer_3:query`."""
    layers = [s.name for s in task.network.stages if s.name.startswith("layer_")]
    pooler = settings.modules == MODULES and "pooler" in task.network.units["kinds"]
    return [
        *settings.modules,
        *(["pooler"] if pooler else []),
        *(f"{layer}:{kind}" for kind in settings.layers for layer in layers),
    ]


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Returns the rows of a module, and of a new classifier on the task it is carried to."""
    target, recipe, common = settings.target, settings.recipe, settings.common
    setting = Setting(target, recipe, common, *context[1:4])  # folder, progress, keep
    after = () if settings.carry is None else carried_rows
    return module_rows(
        task,
        job,
        setting,
        choice=choice_of_first_seed(job, context, recipe.choose),
        after=partial(after, settings, job, setting) if after else lambda trial: (),
    )


def carried_rows(
    settings: Settings, job: Job, setting: Setting, trial: st.Trial
) -> Iterator[Row]:
    """Yields the rows of a new classifier on the other task, all else as it was tuned."""
    carried, network = settings.carried, trial.network
    task = carried.task(settings.common, None, job.seed)
    params = {**network.params, "head": task.network.params["head"]}
    source = task.network.source  # the names of its classes go with its head
    task = task._replace(network=network._replace(params=params, source=source))
    setting = setting._replace(target=carried, folder=setting.folder / "carried")
    # The delta of the job is that of the module; a new classifier on it is not kept.
    setting = setting._replace(keep=lambda base, tuned, row: None)
    here, there = (d.split("/")[-1] for d in (settings.target.dataset, carried.dataset))
    for row in module_rows(task, Job("frozen", job.seed), setting):
        name = row["task"].replace(there, f"{here} to {there}", 1)
        yield row | job._asdict() | {"method": job.module, "task": name}


def draw(out: Path, rows: Sequence[Row], settings: Settings, task: st.Task) -> None:
    """Draws layers.png, of the kinds that were tuned in single layers."""
    if maps := layer_maps([row for row in rows if row["split"] == "test"]):
        heat_maps(maps, out / "layers.png")


def layer_maps(tests: Sequence[Row]) -> dict[str, dict[tuple[str, str], float]]:
    """Returns `{task: {(kind, layer or "all"): mean score}}` of the kinds that were tuned
    in single layers."""
    maps: dict[str, dict[tuple[str, str], float]] = {}
    cells = tables.cells(tests, "module", "task")
    kinds = {one[1] for module, _ in cells if (one := in_layer(module))}
    for (module, task), cell in cells.items():
        layer, kind = in_layer(module) or ("all", module)
        if kind in kinds and np.isfinite(cell.mean):
            maps.setdefault(task, {})[kind, layer] = cell.mean
    return maps


def in_layer(module: str) -> tuple[str, str] | None:
    """Returns (layer, kind) of a module of one layer, as `layer_3:query`."""
    match = re.fullmatch(r"layer_(\d+):(\w+)", module)
    return match and match.groups()


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns score, relative score and trained share by module and task."""
    return module_table([row for row in rows if row["split"] == "test"])


STUDY = Study(
    settings=Settings,
    job=Job,
    name="transformer_modules",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary},
    draw=draw,
    free=("modules", "layers"),
    keeps=True,
)

if __name__ == "__main__":
    main(STUDY, __doc__)

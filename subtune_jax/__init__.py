"""Selective fine-tuning: choose the few weights that should move, tune just those.

    import subtune_jax as st

The names of the daily line stand here; all others in the namespaces `cost`, `data`,
`deltas`, `demo`, `elements`, `evaluation`, `losses`, `memory`, `metrics`, `models`,
`recipes`, `scores`, `selection`, `serving`, `training`, `tree` and `tuning`, which load
when they are used.
"""

import importlib
from types import ModuleType

from subtune_jax.cost import Cost, cost_table, step_cost
from subtune_jax.data.batches import Dataset
from subtune_jax.data.task import Task, split_task, test_once
from subtune_jax.deltas.delta import Delta
from subtune_jax.deltas.extract import extract
from subtune_jax.deltas.open import open_task
from subtune_jax.deltas.swap import apply, undo
from subtune_jax.errors import InputError
from subtune_jax.head import hidden_head, replace_head
from subtune_jax.host_functions import named
from subtune_jax.models.from_flax import from_linen, from_nnx
from subtune_jax.models.load import load_pretrained
from subtune_jax.network import Network, Stage, remat
from subtune_jax.selection.scores import top
from subtune_jax.selection.select import (
    assert_frozen,
    count_trainable,
    coverage,
    select,
)
from subtune_jax.serving.server import serve
from subtune_jax.training.loop import DivergedError, FitResult, fit
from subtune_jax.training.mesh import placement
from subtune_jax.training.optimizers import Rule, adam, adamw, sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.training.settings import Settings
from subtune_jax.training.tune import Trial, Tuned, tune

__version__ = "0.2.0"
NAMESPACES = {
    "cost": "subtune_jax.cost",
    "data": "subtune_jax.data",
    "deltas": "subtune_jax.deltas",
    "demo": "subtune_jax.demo",
    "elements": "subtune_jax.selection.elements",
    "evaluation": "subtune_jax.evaluation",
    "losses": "subtune_jax.losses",
    "memory": "subtune_jax.memory",
    "metrics": "subtune_jax.metrics",
    "models": "subtune_jax.models",
    "recipes": "subtune_jax.recipes",
    "scores": "subtune_jax.selection.scores",
    "selection": "subtune_jax.selection",
    "serving": "subtune_jax.serving",
    "training": "subtune_jax.training",
    "tree": "subtune_jax.tree",
    "tuning": "subtune_jax.tuning",
}

__all__ = [
    "Cost",
    "Dataset",
    "Delta",
    "DivergedError",
    "FitResult",
    "InputError",
    "Network",
    "Phase",
    "Rule",
    "Settings",
    "Stage",
    "Task",
    "Trial",
    "Tuned",
    "adam",
    "adamw",
    "apply",
    "assert_frozen",
    "cost_table",
    "count_trainable",
    "coverage",
    "evaluate",
    "extract",
    "fit",
    "from_linen",
    "from_nnx",
    "hidden_head",
    "load_pretrained",
    "named",
    "open_task",
    "placement",
    "predict",
    "remat",
    "replace_head",
    "select",
    "serve",
    "sgd",
    "split_task",
    "step_cost",
    "test_once",
    "top",
    "tune",
    "undo",
]


def __getattr__(name: str) -> ModuleType:
    if name in NAMESPACES:
        return importlib.import_module(NAMESPACES[name])
    raise AttributeError(f"module 'subtune_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *NAMESPACES])

"""Training: runs, sweeps of runs, trials, test-time adaptation, predictions."""

from subtune_jax.training.loop import DivergedError, FitResult, fit
from subtune_jax.training.mesh import Placement, data_mesh, placement
from subtune_jax.training.optimizers import (
    Rule,
    adam,
    adamw,
    ascent,
    normalized_sgd,
    sgd,
    uncorrected_epsilon,
)
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.training.race import race
from subtune_jax.training.settings import Settings
from subtune_jax.training.subset_runs import run_flops
from subtune_jax.training.subset_score import subset_score
from subtune_jax.training.suffix import cut, rejoin
from subtune_jax.training.sweep import Run, sweep
from subtune_jax.training.test_time import StreamResult, adapt_to_stream, memo, tent
from subtune_jax.training.tune import Trial, Tuned, tune
from subtune_jax.training.watch import EpochLog, Record, WatchError, early_then_log

__all__ = [
    "DivergedError",
    "EpochLog",
    "FitResult",
    "Run",
    "Phase",
    "Placement",
    "Record",
    "WatchError",
    "Rule",
    "Settings",
    "StreamResult",
    "Trial",
    "Tuned",
    "adam",
    "adamw",
    "adapt_to_stream",
    "ascent",
    "cut",
    "data_mesh",
    "early_then_log",
    "evaluate",
    "fit",
    "memo",
    "normalized_sgd",
    "placement",
    "predict",
    "race",
    "rejoin",
    "run_flops",
    "sgd",
    "subset_score",
    "sweep",
    "tent",
    "tune",
    "uncorrected_epsilon",
]

"""What a run did: learning and forgetting, drift, and the loss around its solutions."""

from subtune_jax.evaluation.curves import (
    area,
    at_step,
    first_reaching,
    forgotten,
    series,
)
from subtune_jax.evaluation.drift import distances, gradient_norms, linear_cka
from subtune_jax.evaluation.forgetting import (
    body,
    source_score,
    watch_forgetting,
    with_head,
)
from subtune_jax.evaluation.landscape import (
    Plane,
    line,
    plane,
    refit_statistics,
    surface,
)
from subtune_jax.evaluation.probe import refit_head, with_head_statistics

__all__ = [
    "Plane",
    "area",
    "at_step",
    "body",
    "distances",
    "first_reaching",
    "forgotten",
    "gradient_norms",
    "line",
    "linear_cka",
    "plane",
    "refit_head",
    "refit_statistics",
    "series",
    "source_score",
    "surface",
    "watch_forgetting",
    "with_head",
    "with_head_statistics",
]

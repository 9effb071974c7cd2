"""What all phases of a run share."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import NamedTuple

from subtune_jax.data.batches import Augment
from subtune_jax.errors import (
    InputError,
    require_function,
    require_type,
    require_whole,
)
from subtune_jax.losses import cross_entropy
from subtune_jax.training.mesh import Placement

Stages = str | Sequence[str]  # a mode, or the names of stages


class Settings(NamedTuple):
    """How a run trains, whatever its phases: as `fit`, `sweep`, `tune` and `race` take it.

    loss(outputs, targets) -> float[batch]. norm: `stored`, `tuned`, `batch` or names of
    stages (see `labels.stages_with_batch_stats`). dropout: `tuned`, `all`, `none` or
    names of stages (see `labels.stages_with_dropout`). accumulate: micro-batches per
    update; a step is one micro-batch. batch_size: examples per step. augment(x, rng) -> x
    changes training inputs at random. place: where arrays live (see `mesh.placement`);
    default: one device. cache_bytes: how much memory the activations of a frozen prefix
    may take to be computed once; 0 turns that off.
    """

    loss: Callable = cross_entropy
    norm: Stages = "stored"
    dropout: Stages = "tuned"
    accumulate: int = 1
    batch_size: int = 64
    augment: Augment | None = None
    place: Placement | None = None
    cache_bytes: int = 2**30


def require_settings(settings: Settings) -> None:
    """Raises `InputError` for settings of another type, and for numbers and functions that
    cannot be."""
    require_type(Settings, settings=settings)
    require_whole(batch_size=settings.batch_size, accumulate=settings.accumulate)
    require_function(2, loss=settings.loss)
    if settings.place is not None:
        require_type(Placement, place=settings.place)
    if not isinstance(settings.cache_bytes, Integral) or settings.cache_bytes < 0:
        raise InputError(
            f"cache_bytes must be a whole number from 0 up, got {settings.cache_bytes!r}"
        )
    if settings.augment is not None:
        require_function(2, augment=settings.augment)

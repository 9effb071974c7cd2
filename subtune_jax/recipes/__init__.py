"""Methods as lists of phases, to be given to `fit` or `tune`.

Every recipe takes the network and the rule that its trainable leaves follow; `steps` are
those of the whole run.
"""

from subtune_jax.recipes.diff_pruning import diff_pruning, masked_elements
from subtune_jax.recipes.fast import fast
from subtune_jax.recipes.units import (
    GROUP,
    auto_rgn,
    auto_snr,
    auto_snr_official,
    gradual_unfreezing,
    linear_probe_then_finetune,
    tune_units,
    without_norms,
)

__all__ = [
    "GROUP",
    "auto_rgn",
    "auto_snr",
    "auto_snr_official",
    "diff_pruning",
    "fast",
    "gradual_unfreezing",
    "linear_probe_then_finetune",
    "masked_elements",
    "tune_units",
    "without_norms",
]

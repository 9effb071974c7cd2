"""Tune: how the chosen weights move."""

from subtune_jax.tuning import hard_concrete
from subtune_jax.tuning.anchor import l1_sp, l2_sp
from subtune_jax.tuning.diff_pruning import (
    constrained_diff_pruning,
    diff_pruning,
    fixed_gates,
)
from subtune_jax.tuning.fast import (
    EnergySplit,
    contamination_energy,
    energy_split,
    maximum_entropy_head,
    normalized_features,
    output_error,
    stalled_update,
)
from subtune_jax.tuning.fixed_mask import fixed_mask, largest_changes, mask_indices
from subtune_jax.tuning.gates import expected_nonzero
from subtune_jax.tuning.hard_concrete import HardConcrete
from subtune_jax.tuning.lora import Factors, lora, lora_factors
from subtune_jax.tuning.method import Ended, Parts, Tuning, leaf_groups, no_penalty
from subtune_jax.tuning.rescaled import rescaled
from subtune_jax.tuning.subset import subset

__all__ = [
    "Ended",
    "EnergySplit",
    "Factors",
    "HardConcrete",
    "Parts",
    "Tuning",
    "constrained_diff_pruning",
    "contamination_energy",
    "diff_pruning",
    "energy_split",
    "expected_nonzero",
    "fixed_gates",
    "fixed_mask",
    "hard_concrete",
    "l1_sp",
    "l2_sp",
    "largest_changes",
    "mask_indices",
    "leaf_groups",
    "lora",
    "lora_factors",
    "maximum_entropy_head",
    "no_penalty",
    "normalized_features",
    "output_error",
    "rescaled",
    "stalled_update",
    "subset",
]

"""Tune: how the chosen weights move."""

from subtune_jax.tuning.anchor import l1_sp, l2_sp
from subtune_jax.tuning.fixed_mask import fixed_mask, largest_changes
from subtune_jax.tuning.lora import Factors, lora, lora_factors
from subtune_jax.tuning.method import Ended, Parts, Tuning, leaf_groups, no_penalty
from subtune_jax.tuning.rescaled import rescaled
from subtune_jax.tuning.subset import subset

__all__ = [
    "Ended",
    "Factors",
    "Parts",
    "Tuning",
    "fixed_mask",
    "l1_sp",
    "l2_sp",
    "largest_changes",
    "leaf_groups",
    "lora",
    "lora_factors",
    "no_penalty",
    "rescaled",
    "subset",
]

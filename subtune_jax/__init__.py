"""Selective fine-tuning: choose the few weights that should move, tune just those."""

from subtune_jax.cost import Cost, cost, cost_table
from subtune_jax.data.augmix import augmix_copies
from subtune_jax.data.batches import Batch, Data
from subtune_jax.data.digits import digits
from subtune_jax.data.splits import balanced_parts
from subtune_jax.errors import InputError
from subtune_jax.head import new_head
from subtune_jax.losses import (
    cross_entropy,
    entropy,
    marginal_entropy,
    span_cross_entropy,
    squared_error,
)
from subtune_jax.metrics import accuracy, span_accuracy, worst_group_accuracy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.from_flax import adopt, adopt_linen
from subtune_jax.models.load import Pretrained, load
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.models.vit import ViTConfig, vit
from subtune_jax.network import Network, Stage, forward, rematerialized
from subtune_jax.selection.select import (
    assert_frozen,
    coverage,
    select,
    trainable_count,
)
from subtune_jax.training.loop import Diverged, Fit, fit
from subtune_jax.training.mesh import placement
from subtune_jax.training.optimizers import Rule, adam, adamw, sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.training.sweep import Lane, sweep
from subtune_jax.training.test_time import adapt
from subtune_jax.tuning.anchor import l1_sp, l2_sp
from subtune_jax.tuning.fixed_mask import fixed_mask, largest_changes
from subtune_jax.tuning.method import Tuning
from subtune_jax.tuning.rescaled import rescaled
from subtune_jax.tuning.subset import subset

__all__ = [
    "Batch",
    "BertConfig",
    "Cost",
    "Data",
    "Diverged",
    "Fit",
    "InputError",
    "Lane",
    "Network",
    "Phase",
    "Pretrained",
    "ResNetConfig",
    "Rule",
    "Stage",
    "Tuning",
    "ViTConfig",
    "accuracy",
    "adam",
    "adamw",
    "adapt",
    "adopt",
    "adopt_linen",
    "assert_frozen",
    "augmix_copies",
    "balanced_parts",
    "bert",
    "cost",
    "cost_table",
    "coverage",
    "cross_entropy",
    "digits",
    "entropy",
    "evaluate",
    "fit",
    "fixed_mask",
    "forward",
    "l1_sp",
    "l2_sp",
    "largest_changes",
    "load",
    "marginal_entropy",
    "new_head",
    "placement",
    "predict",
    "rematerialized",
    "rescaled",
    "resnet",
    "select",
    "sgd",
    "span_accuracy",
    "span_cross_entropy",
    "squared_error",
    "subset",
    "sweep",
    "trainable_count",
    "vit",
    "worst_group_accuracy",
]

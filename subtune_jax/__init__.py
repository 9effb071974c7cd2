"""Selective fine-tuning: choose the few weights that should move, tune just those."""

from subtune_jax.cost import Cost, cost_table, step_cost
from subtune_jax.data.augmix import augmix_copies
from subtune_jax.data.batches import Batch, Dataset
from subtune_jax.data.digits import digits
from subtune_jax.data.splits import split_balanced
from subtune_jax.errors import InputError
from subtune_jax.head import replace_head
from subtune_jax.losses import (
    cross_entropy,
    entropy,
    marginal_entropy,
    span_cross_entropy,
    squared_error,
)
from subtune_jax.metrics import accuracy, span_accuracy, worst_group_accuracy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.from_flax import from_linen, from_nnx
from subtune_jax.models.load import load_pretrained
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.models.vit import ViTConfig, vit
from subtune_jax.network import Network, Stage, forward, remat
from subtune_jax.selection.select import (
    assert_frozen,
    count_trainable,
    coverage,
    select,
)
from subtune_jax.training.loop import DivergedError, FitResult, fit
from subtune_jax.training.mesh import placement
from subtune_jax.training.optimizers import Rule, adam, adamw, sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate, predict
from subtune_jax.training.sweep import Lane, sweep
from subtune_jax.training.test_time import adapt_to_stream
from subtune_jax.tuning.anchor import l1_sp, l2_sp
from subtune_jax.tuning.fixed_mask import fixed_mask, largest_changes
from subtune_jax.tuning.method import Tuning
from subtune_jax.tuning.rescaled import rescaled
from subtune_jax.tuning.subset import subset

__all__ = [
    "Batch",
    "BertConfig",
    "Cost",
    "Dataset",
    "DivergedError",
    "FitResult",
    "InputError",
    "Lane",
    "Network",
    "Phase",
    "ResNetConfig",
    "Rule",
    "Stage",
    "Tuning",
    "ViTConfig",
    "accuracy",
    "adam",
    "adamw",
    "adapt_to_stream",
    "from_nnx",
    "from_linen",
    "assert_frozen",
    "augmix_copies",
    "split_balanced",
    "bert",
    "step_cost",
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
    "load_pretrained",
    "marginal_entropy",
    "replace_head",
    "placement",
    "predict",
    "remat",
    "rescaled",
    "resnet",
    "select",
    "sgd",
    "span_accuracy",
    "span_cross_entropy",
    "squared_error",
    "subset",
    "sweep",
    "count_trainable",
    "vit",
    "worst_group_accuracy",
]

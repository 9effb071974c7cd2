"""Networks: families with their configurations, your own, and files of weights."""

from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.from_flax import from_linen, from_nnx, output_axes
from subtune_jax.models.imagenet_resnet import (
    ImageNetResNetConfig,
    imagenet_resnet,
)
from subtune_jax.models.load import load_pretrained
from subtune_jax.models.prune import prune
from subtune_jax.models.reinit import reinitialized
from subtune_jax.models.resnet import WIDE_28_10, ResNetConfig, resnet
from subtune_jax.models.save import restore, save
from subtune_jax.models.siamese import siamese
from subtune_jax.models.to_flax import from_orbax, to_linen, to_nnx, to_orbax
from subtune_jax.models.vit import ViTConfig, vit

__all__ = [
    "WIDE_28_10",
    "BertConfig",
    "ImageNetResNetConfig",
    "ResNetConfig",
    "ViTConfig",
    "bert",
    "from_linen",
    "from_nnx",
    "from_orbax",
    "imagenet_resnet",
    "load_pretrained",
    "output_axes",
    "prune",
    "reinitialized",
    "resnet",
    "restore",
    "save",
    "siamese",
    "to_linen",
    "to_nnx",
    "to_orbax",
    "vit",
]

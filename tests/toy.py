"""Small networks and data whose numbers a reader can check."""

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.head import linear
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.models.vit import ViTConfig, vit
from subtune_jax.network import Network, Stage


def hidden(params, stats, x, *, batch_stats, key):
    """A tanh layer."""
    del batch_stats, key
    return jnp.tanh(x @ params["kernel"] + params["bias"][None]), stats


def mlp(width: int = 6, traces: list | None = None, dtype=jnp.float32) -> Network:
    """Three stages `one`, `two`, `head`; `traces` grows by one with every trace.

    Without `traces` all such networks have equal stages, and tests share their programs.
    """

    def counted(*args, **kwargs):
        traces.append(1)
        return hidden(*args, **kwargs)

    keys = jax.random.split(jax.random.key(0), 3)
    sizes = {"one": (4, width), "two": (width, width), "head": (width, 3)}
    params = {
        name: {
            "kernel": jax.random.normal(k, shape, dtype) / 2,
            "bias": jnp.full(shape[1:], 0.1, dtype),
        }
        for (name, shape), k in zip(sizes.items(), keys, strict=True)
    }
    first = hidden if traces is None else counted
    stages = (Stage("one", first), Stage("two", hidden), Stage("head", linear))
    units = {"coarse": {"body": ("one", "two"), "head": ("head",)}}
    return Network(stages, params, {name: {} for name in params}, units)


def small_resnet(norm: str = "batch") -> Network:
    """A residual network of 3 blocks with 8 to 16 channels."""
    config = ResNetConfig(
        widths=(8, 8, 16), groups=4, norm=norm, channels=1, num_classes=3
    )
    return resnet(config, jax.random.key(0))


def points(examples: int = 48, seed: int = 0) -> Dataset:
    """Three separable classes in four dimensions."""
    rng = np.random.default_rng(seed)
    y = np.arange(examples, dtype=np.int32) % 3
    x = rng.normal(size=(examples, 4)) + 2 * np.eye(3, 4)[y]
    return Dataset(x.astype(np.float32), y)


def images(examples: int = 24, seed: int = 0) -> Dataset:
    """Three classes of 8 x 8 images that differ in brightness."""
    rng = np.random.default_rng(seed)
    y = np.arange(examples, dtype=np.int32) % 3
    x = 100 + 30 * (rng.normal(size=(examples, 8, 8, 1)) + y[:, None, None, None])
    return Dataset(np.clip(x, 0, 255).astype(np.uint8), y)


def transformer(family: str) -> tuple[Network, Dataset]:
    """A text (`bert`) or vision (`vit`) transformer of two layers, and 12 examples."""
    y = np.arange(12, dtype=np.int32) % 3
    if family == "vit":
        config = ViTConfig(
            8,
            4,
            1,
            hidden_size=16,
            num_layers=2,
            num_heads=4,
            intermediate_size=24,
            num_classes=3,
        )
        return vit(config, jax.random.key(0)), images(12)
    text = BertConfig(40, 16, 2, 4, 24, 12, dropout=0.1, num_classes=3)
    ids = np.random.default_rng(0).integers(1, 40, (12, 8)).astype(np.int32)
    x = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return bert(text, jax.random.key(0)), Dataset(x, y)

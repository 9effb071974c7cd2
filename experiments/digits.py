"""The embedded default: real digits, and a small network pretrained on them at first use."""

import hashlib

import jax
import numpy as np

from experiments.cli import cache_dir
from subtune_jax import tree
from subtune_jax.data.batches import Dataset
from subtune_jax.data.digits import digits
from subtune_jax.data.shifts import Shift
from subtune_jax.data.splits import split_balanced
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.models.save import restore, save
from subtune_jax.network import Network
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adamw
from subtune_jax.training.phases import Phase

STEPS, RATE = 600, 3e-3


def pools() -> dict[str, Dataset]:
    """Returns the halves of the digits for the source and the target task (disjoint)."""
    return split_balanced(
        digits(), {"source": 880, "target": None}, np.random.default_rng(0)
    )


def pretrained(shift: Shift, norm: str) -> Network:
    """Returns the network trained on the source task of a shift, from the cache if there.

    `norm` is `group` or `batch`. Pretraining: AdamW, cosine, 600 steps of 64.
    """
    source = shift.source(pools()["source"])
    config = ResNetConfig(norm=norm, channels=1, num_classes=int(source.y.max()) + 1)
    network = resnet(config, jax.random.key(0))
    recipe = f"{config} {STEPS} {RATE} {tree.fingerprint(source._asdict())}"
    file = (
        cache_dir()
        / f"digits-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    )
    if not file.exists():
        phase = Phase(
            select(network, {"all": [".*"]}),
            adamw(RATE, schedule="cosine", clip_norm=1.0),
            STEPS,
        )
        save(
            fit(network, phase, source, key=jax.random.key(1), norm="batch").network,
            file,
        )
    return restore(network, file)

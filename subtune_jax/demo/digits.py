"""Real digits, and a small network pretrained on them at first use."""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np

from subtune_jax import tree
from subtune_jax.data.batches import Dataset
from subtune_jax.data.digits import digits
from subtune_jax.data.shifts import Shift, shift
from subtune_jax.data.splits import split_balanced
from subtune_jax.data.task import Task, split_task
from subtune_jax.demo.cache import cached
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.network import Network
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adamw
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings

STEPS, LEARNING_RATE = 600, 3e-3
SIZES = {"train": 100, "validation": 100, "test": None}


def digits_task(
    name: str = "contrast",
    seed: int = 0,
    *,
    sizes: Mapping[str, int | None] = SIZES,
    norm: str = "group",
) -> Task:
    """Returns the task of a shift of the digits: a pretrained network, and new data.

    name: `contrast`, `gaussian_noise`, `subpopulation`, `label_flip` or another shift (see
    `data.shift`). The network has 75,002 parameters (with 10 classes) and was trained on
    one half of the digits; the parts are drawn from the other half, shifted. The seed
    draws the shift's noise and the parts. norm: of the network, `group` or `batch`.
    Raises `InputError` for an unknown shift.
    """
    rng = np.random.default_rng(seed)
    chosen = shift(name)
    target = chosen.target(digits_halves()["target"], rng)
    return split_task(digits_network(chosen, norm), target, sizes, rng)


def digits_halves() -> dict[str, Dataset]:
    """Returns the halves of the digits for the source and the target task (disjoint)."""
    return split_balanced(
        digits(), {"source": 880, "target": None}, np.random.default_rng(0)
    )


def digits_network(shift: Shift, norm: str = "group") -> Network:
    """Returns the network trained on the source task of a shift, from the cache if there.

    Pretraining: AdamW, cosine, 600 steps of 64.
    """
    source = shift.source(digits_halves()["source"])
    classes = int(source.y.max()) + 1
    config = ResNetConfig(norm=norm, channels=1, num_classes=classes)
    network = resnet(config, jax.random.key(0))
    recipe = f"{config} {STEPS} {LEARNING_RATE} {tree.fingerprint(source._asdict())}"
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    rule = adamw(LEARNING_RATE, schedule="cosine", clip_norm=1.0)
    phase = Phase(select(network, {"all": [".*"]}), rule, STEPS)

    def train() -> Network:
        run = fit(
            network,
            phase,
            source,
            key=jax.random.key(1),
            settings=Settings(norm="batch"),
            progress=False,
        )
        return run.network

    return cached(f"digits-{key}", network, train)

"""The source task of a network of images: its kept head, and images to remember it by."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.common.adaptation import (
    Job,
    adapted_rows,
    require_strategies,
)
from experiments.common.flags import Common, Positive, default
from experiments.common.images import Target, loaded
from experiments.common.pools import drawn_pool
from experiments.common.report.results import Row
from experiments.common.strategies import HEAD, Strategy
from experiments.common.study import Context
from subtune_jax.data.batches import Dataset
from subtune_jax.data.shifts import shift
from subtune_jax.data.splits import balanced_indices
from subtune_jax.data.task import Task
from subtune_jax.data.tfds import CIFAR10
from subtune_jax.demo.digits import digits_halves, digits_network
from subtune_jax.errors import InputError
from subtune_jax.evaluation import source_score
from subtune_jax.network import Network


@dataclass(frozen=True)
class SourceTask:
    """What is forgotten."""

    source_dataset: Annotated[
        str | None,
        default("the digits' own; cifar10 for weights of its classes", "TFDS"),
    ] = None
    """What the weights were trained on: a prepared TFDS image set, or a folder, of the
    classes that they know."""
    source_split: str = "test"
    """Its split. Of digits: the half that the network was trained on."""
    source_examples: Positive[int] = 256
    """Its images that are classified at every recorded step, drawn by class."""

    def check(self, settings: Any) -> None:
        """Raises `InputError` where a source is named beside that of the digits."""
        if settings.target.embedded and self.source_dataset is not None:
            raise InputError("digits are embedded, and so is their source task")


SourceFlags = Annotated[SourceTask, tyro.conf.OmitArgPrefixes]


def new_task() -> Target:
    """Returns the flags of a target task with a head that begins anew, and 256 images for
    the curves."""
    return Target(head_start="zeros", validation_examples=256)


def with_contrast(settings: Any) -> Any:
    """Returns the settings with one shift of the digits, where none was named."""
    target = settings.target
    if not target.embedded or target.shift is not None:
        return settings
    return replace(settings, target=replace(target, shift=("contrast",)))


@lru_cache(2)
def source_of(
    target: Target, source: SourceTask, common: Common, name: str
) -> tuple[Network, Dataset]:
    """Returns the network with its own head, and images of its task that the target has
    not."""
    rng, sizes = np.random.default_rng(0), {"source": source.source_examples}
    if target.embedded:
        chosen = shift(name)
        network = digits_network(chosen, target.network_norm)
        # The target's images are those of the other half, shifted: none is in both.
        held = chosen.source(digits_halves()["source"])
        return network, held.take(balanced_indices(held.y, sizes, rng)["source"])
    network = loaded(common.weights)
    dataset = source.source_dataset
    if dataset is None and network.source.classes == CIFAR10:
        dataset = "cifar10"
    if dataset is None:
        raise InputError(
            "--source-dataset names the images that the weights were trained on, as "
            "imagenet2012: forgetting is measured on them"
        )
    splits = (s.partition("[")[0] for s in (target.split, target.test_split or ""))
    if target.dataset.startswith(f"{dataset}_") and source.source_split in splits:
        raise InputError(
            f"{target.dataset} has the images of {dataset}'s {source.source_split} split: "
            "give another --source-split, so that no image is in both"
        )
    own = replace(
        target,
        dataset=dataset,
        split=source.source_split,
        new_head=False,
        breeds=None,
        groups=False,
    )
    return network, drawn_pool(own, common, network, sizes, rng).data


def target_jobs(
    strategies: Mapping[str, Strategy], names: Sequence[str], settings: Any, task: Task
) -> Iterator[Job]:
    """Returns every strategy on every target of images, the first seed first."""
    require_runnable(settings, task, [strategies[name] for name in names])
    seeds = range(settings.common.seeds)
    every = product(settings.target.shifts, seeds, names)
    return (Job(shift, method, seed) for shift, seed, method in every)


def target_rows(
    strategies: Mapping[str, Strategy],
    settings: Any,
    task: Task,
    job: Job,
    context: Context,
) -> Iterator[Row]:
    """Yields the rows of a strategy on a target of images."""
    target = settings.target
    about = {
        "dataset": target.dataset,
        "task": target.name_of(job.shift),
        "classes": task.network.params[HEAD]["kernel"].shape[1],
    }
    yield from adapted_rows(
        task,
        strategies[job.method],
        settings.recipe,
        job,
        context,
        remembered=remembered(settings, job.shift),
        about=about,
        mesh=settings.common.mesh,
    )


def remembered(settings: Any, name: str) -> Callable[[Network], float]:
    """Returns the accuracy of a network on its source task, by the kept head."""
    return source_score(
        *source_of(settings.target, settings.source, settings.common, name)
    )


def require_runnable(settings: Any, task: Task, strategies: Sequence[Strategy]) -> None:
    """Raises `InputError` for a source of other classes, and strategies that cannot be."""
    remembered(settings, settings.target.shifts[0])
    require_strategies(settings, task, strategies)

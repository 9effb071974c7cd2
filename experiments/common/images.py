"""Target tasks of images: a pretrained network, and data shifted from its source."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import numpy as np
import tyro

from experiments.common.flags import Common, Positive, by_data, default, one_of
from experiments.common.pools import VTAB, apart_task, drawn_pool, vtab_task
from subtune_jax.data.batches import steps_per_epoch
from subtune_jax.data.breeds import BENCHMARKS, SPLITS
from subtune_jax.data.classes import named_outputs
from subtune_jax.data.shifts import shift
from subtune_jax.data.task import Task, split_task
from subtune_jax.demo.digits import digits_task
from subtune_jax.errors import InputError
from subtune_jax.head import replace_head, without_classes
from subtune_jax.models.load import load_pretrained
from subtune_jax.network import Network
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.predict import evaluate

PROBE_LEARNING_RATE, PROBE_EPOCHS = 1e-3, 30  # of a fresh head, from zeros; our choice
TWO_DIGITS_SHIFTS = ("contrast", "subpopulation")
DIGITS_SHIFTS = ("contrast", "gaussian_noise", "subpopulation", "label_flip")


@dataclass(frozen=True)
class Target:
    """What the target task is."""

    dataset: str = "digits"
    """digits (embedded), a prepared TFDS image set (cifar10, cifar10_corrupted/...), or
    a folder of images as CLASS/FILE or CLASS/GROUP/FILE."""
    split: str = "test"
    """TFDS split that target images are drawn from, as test or test[:2000]."""
    test_split: Annotated[
        str | None, default("what the other parts leave of --split", "TFDS")
    ] = None
    """TFDS split of the test images."""
    parts: Annotated[str, *one_of("drawn", *VTAB)] = "drawn"
    """How parts are made: drawn by class from the splits, or those of VTAB-1k (1,000
    training images, the whole test split), official or of SubTuning's repository."""
    shift: Annotated[
        tuple[str, ...] | None,
        default(
            f"{' '.join(DIGITS_SHIFTS)} for digits (studies of SubTuning: contrast "
            "subpopulation), else none",
            "NAME...",
        ),
    ] = None
    """Shifts to run, also corruptions at a severity, as jpeg_compression_5; none is for
    data that are shifted already."""
    train_examples: Annotated[Positive[int] | None, *by_data(100, 1000)] = None
    """Target images for training, balanced over classes (real: the paper)."""
    validation_examples: Positive[int] = 100
    """Target images for choosing learning rate and epoch (official code)."""
    test_examples: Annotated[
        Positive[int] | None, default("all that are left", "INT")
    ] = None
    """Target images for the test (official code: 900)."""
    groups: bool = False
    """For a folder with groups: balance the parts over pairs of class and group, and
    report the accuracy of the worst pair (paper: Waterbirds, CelebA)."""
    breeds: Annotated[str | None, *one_of(*BENCHMARKS, default="none")] = None
    """Take the target subclasses of this BREEDS benchmark of --dataset imagenet2012, or of
    another set with its labels; the weights are those of a network of the source."""
    breeds_split: Annotated[str, *one_of(*SPLITS)] = "rand"
    """How BREEDS divides subclasses."""
    hierarchy: Annotated[Path | None, default("none", "DIR")] = None
    """Folder of the class hierarchy files of BREEDS (see the documentation)."""
    new_head: bool = False
    """Give the network a fresh head for the classes of --dataset. Without it the head is
    kept, and the classes must be those that the weights' configuration names."""
    head_start: Annotated[str, *one_of("probed", "zeros")] = "probed"
    """How a fresh head begins: trained alone on the training part before the study, or at
    zeros, to train with the rest."""
    resize: bool = False
    """Resize images to the size that the network takes."""
    network_norm: Annotated[str, *one_of("group", "batch")] = "group"
    """Norm layers of the embedded network."""

    OLDER: ClassVar = {"test_split": None, "parts": "drawn", "head_start": "probed"}

    @property
    def embedded(self) -> bool:
        """Whether the data need no download."""
        return self.dataset == "digits"

    @property
    def shifts(self) -> tuple[str, ...]:
        """The shifts to run."""
        every = DIGITS_SHIFTS if self.embedded else ("none",)
        return every if self.shift is None else self.shift

    @property
    def sizes(self) -> dict[str, int | None]:
        """The examples of each part; `None` is all that are left."""
        return {
            "train": self.train_examples,
            "validation": self.validation_examples,
            "test": self.test_examples,
        }

    def check(self, settings: Any) -> None:
        """Raises `InputError` for the first combination that cannot be."""
        for name in self.shifts:
            if shift(name).level == "feature" and not self.embedded:
                raise InputError(
                    f"shift {name!r} changes the source task: it is for digits only"
                )
        given = settings.common.weights or settings.common.data_dir
        problems = {
            "digits are embedded: --split, --parts and --resize are for real data": (
                self.embedded
                and (
                    self.resize
                    or self.parts != "drawn"
                    or self.split not in ("train", "test")
                )
            ),
            f"--split {self.split} and --test-split {self.test_split} may share images": (
                self.test_split not in (None, self.split)
                and bool(_splits(self.split) & _splits(self.test_split))
            ),
            f"--parts {self.parts} is for studies that choose by folds": (
                self.parts != "drawn"
                and not hasattr(getattr(settings, "recipe", None), "folds")
            ),
            f"--parts {self.parts} are of a TFDS set, without --groups and --breeds": (
                self.parts != "drawn"
                and (self.groups or self.breeds or Path(self.dataset).is_dir())
            ),
            "digits are embedded: their network has a head for them": (
                self.embedded and self.new_head
            ),
            "--network-norm is of the digits' network: weights have theirs": (
                not self.embedded and self.network_norm != "group"
            ),
            "digits are embedded: --weights and --data-dir name real data": (
                self.embedded and given
            ),
            f"data set {self.dataset!r} needs --weights: a folder or hub id": (
                not self.embedded and settings.common.weights is None
            ),
            "--groups needs --dataset: a folder as CLASS/GROUP/FILE": (
                self.groups and not Path(self.dataset).is_dir()
            ),
            "--breeds and --hierarchy are given together or not at all": (
                (self.breeds is None) != (self.hierarchy is None)
            ),
            "--breeds needs a --dataset with ImageNet labels, no --groups": (
                self.breeds is not None and (self.groups or self.embedded)
            ),
        }
        for problem, holds in problems.items():
            if holds:
                raise InputError(problem)

    def fingerprint(self, common: Common) -> str | None:
        """Returns that of the weights, and of the files of a folder by name and size; the
        digits' network is known by its code."""
        if self.embedded:
            return None
        weights = loaded(common.weights).source.fingerprint
        root = Path(self.dataset)
        if not root.is_dir():
            return weights
        files = sorted(p for p in root.glob("**/*") if p.is_file())
        listing = [(str(p.relative_to(root)), p.stat().st_size) for p in files]
        return f"{weights} {hashlib.sha256(str(listing).encode()).hexdigest()}"

    def task(self, common: Common, name: str, seed: int) -> Task:
        """Returns the task of a shift; the seed draws its images, noise and parts."""
        if self.embedded:
            sizes, norm = self.sizes, self.network_norm
            return digits_task(name, seed, sizes=sizes, norm=norm)
        rng, network = np.random.default_rng(seed), loaded(common.weights)
        if self.new_head:  # what the old one told apart means nothing to these data
            network = network._replace(source=without_classes(network.source))
        if self.parts in VTAB:
            task = vtab_task(self, common, network)
        elif self.test_split in (None, self.split) or Path(self.dataset).is_dir():
            pool = drawn_pool(self, common, network, self.sizes, rng)
            data = shift(name).target(pool.data, rng)
            task = split_task(network, data, self.sizes, rng, pool.groups)
        else:
            task = apart_task(self, common, network, name, rng)
        if not self.new_head:
            return task
        classes = 1 + int(max(task.train.y.max(), task.validation.y.max()))
        classes = max(classes, len(task.train.classes))
        if self.head_start == "zeros":
            task = task._replace(network=replace_head(network, classes))
        else:
            task = probed(task, classes, seed)
        return task._replace(network=named_outputs(task.network, task.train))

    def name_of(self, name: str) -> str:
        """Returns what a task is called in tables: its shift, or its data set, or both."""
        dataset = self.breeds or self.dataset.rstrip("/").split("/")[-1]
        if name == "none":
            return dataset
        return f"{dataset}, {name}" if "corrupted" in self.dataset else name


def with_digits(settings: Any) -> Any:
    """Returns the settings with two shifts of the digits, where none was named: an early
    layer is best for one, and late ones for the other."""
    target = settings.target
    if not target.embedded or target.shift is not None:
        return settings
    return replace(settings, target=replace(target, shift=TWO_DIGITS_SHIFTS))


TargetFlags = Annotated[Target, tyro.conf.OmitArgPrefixes]


@lru_cache(1)
def loaded(weights: str) -> Network:
    """Seeds and shifts share it, and with it their compiled programs."""
    return load_pretrained(weights)


def probed(task: Task, num_classes: int, seed: int) -> Task:
    """Returns the task with a fresh head on its network, trained alone: all else frozen,
    the best of `PROBE_EPOCHS` epochs on validation data kept."""
    network = replace_head(task.network, num_classes, jax.random.key(seed))
    steps = PROBE_EPOCHS * steps_per_epoch(len(task.train.y), 64, drop=False)
    head = select(network, {"head": [f"{network.stages[-1].name}/.*"]})
    result = fit(
        network,
        Phase(head, adam(PROBE_LEARNING_RATE), steps),
        task.train,
        key=jax.random.key(seed),
        progress=False,
        validate=lambda network: evaluate(
            network, task.validation, task.metrics["validation"]
        ),
    )
    return task._replace(network=result.network)


def _splits(spec: str) -> set[str]:
    """Returns the names of the splits in a TFDS specification, as train[:80%]+test."""
    return {part.partition("[")[0].strip() for part in spec.split("+")}

"""Target tasks of texts: an encoder, and disjoint parts of labelled sentences."""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.common.flags import Common, Positive, by_data, default, one_of
from subtune_jax.data.batches import Dataset
from subtune_jax.data.splits import balanced_indices
from subtune_jax.data.task import Sealed, Task
from subtune_jax.data.text import GLUE, glue, tokenizer
from subtune_jax.demo import docstrings
from subtune_jax.demo.docstrings import docstrings_task
from subtune_jax.errors import InputError, unknown
from subtune_jax.metrics import METRICS
from subtune_jax.models.load import load_pretrained
from subtune_jax.network import Network, Tokens, remat

EMBEDDED = {"docstrings": docstrings.TARGET, "docstrings_other": docstrings.OTHER}


@dataclass(frozen=True)
class TextTarget:
    """What the target task is."""

    dataset: str = "docstrings"
    """docstrings or docstrings_other (embedded), or a task of GLUE, as glue/cola."""
    train_examples: Annotated[Positive[int] | None, *by_data(100, 1000)] = None
    """Sentences for training; docstrings: balanced over classes, else drawn at random,
    since F1 and Matthews depend on how often a class is."""
    validation_examples: Annotated[Positive[int] | None, *by_data(100, 200)] = None
    """Sentences of the training split for choosing."""
    max_length: Annotated[
        Positive[int] | None,
        default("128, or fewer if the network has fewer positions", "INT"),
    ] = None
    """Longest text in tokens; longer ones are cut."""
    pooling: Annotated[str | None, *one_of("dense", "cls", "mean", default="mean")] = (
        None
    )
    """From tokens to a vector; the embedded encoder and MiniLM were trained with mean."""
    dropout: Annotated[float | None, default("the network's own", "FLOAT")] = None
    """Dropout while training."""
    dtype: Annotated[str | None, *one_of("float32", "bfloat16", default="float32")] = (
        None
    )
    """What the network computes in; parameters stay float32."""
    remat: bool = False
    """Compute the inside of each layer again in the backward pass: less memory, more
    FLOPs."""

    @property
    def embedded(self) -> bool:
        """Whether the data need no download."""
        return self.dataset in EMBEDDED

    @property
    def shifts(self) -> tuple[None]:
        """Texts are not shifted."""
        return (None,)

    def check(self, settings: Any) -> None:
        """Raises `InputError` for the first combination that cannot be."""
        common = settings.common
        if self.embedded:
            given = (common.weights, common.data_dir, self.max_length, self.pooling)
            if any(flag is not None for flag in (*given, self.dropout, self.dtype)):
                raise InputError(
                    "docstrings are embedded: --weights, --data-dir, --max-length, "
                    "--pooling, --dropout and --dtype are for real data"
                )
            return
        if self.glue_name not in GLUE:
            choices = [*EMBEDDED, *(f"glue/{name}" for name in GLUE)]
            raise unknown("data set", self.dataset, choices)
        if common.weights is None:
            raise InputError(
                f"{self.dataset} needs --weights: minilm, a folder of a BERT or a hub id"
            )

    @property
    def glue_name(self) -> str:
        """The name of a task of GLUE, without its prefix."""
        return self.dataset.removeprefix("glue/")

    @property
    def sizes(self) -> dict[str, int]:
        """The sentences of the two parts that are drawn."""
        return {"train": self.train_examples, "validation": self.validation_examples}

    def fingerprint(self, common: Common) -> str | None:
        """Returns that of the weights; the embedded encoder is known by its code."""
        return None if self.embedded else encoder(self, common, 1).source.fingerprint

    def task(self, common: Common, shift: None, seed: int) -> Task:
        """Returns the task; the seed draws training and validation sentences."""
        if self.embedded:
            modules, sizes = EMBEDDED[self.dataset], self.sizes | {"test": None}
            task = docstrings_task(modules, seed, sizes=sizes)
            return task._replace(network=in_memory(task.network, self))
        network, train, tests = glue_parts(self, common)
        # As often as the set has them: all examples count as one class.
        parts = balanced_indices(np.zeros(len(train.y), int), self.sizes, seed)
        (_, test), *others = tests.items()
        metric, *more = GLUE[self.glue_name].metrics
        also = {name: (Sealed(test), METRICS[name]) for name in more}
        also |= {
            name.split("_")[-1]: (Sealed(data), METRICS[metric])
            for name, data in others
        }
        return Task(
            network,
            train.only(parts["train"]),
            train.only(parts["validation"]),
            Sealed(test),
            {part: METRICS[metric] for part in ("validation", "test")},
            metric,
            also,
        )


TextTargetFlags = Annotated[TextTarget, tyro.conf.OmitArgPrefixes]


# Seeds share it, and with it their compiled programs; a carried task is the second.
@lru_cache(2)
def glue_parts(
    target: TextTarget, common: Common
) -> tuple[Network, Dataset, dict[str, Dataset]]:
    """Returns the encoder with a fresh head, all sentences for training, and those of
    GLUE's validation splits: our tests."""
    name = target.glue_name
    home = common.data_dir or os.environ.get("TFDS_DATA_DIR")
    if home is None:
        raise InputError("give --data-dir or set TFDS_DATA_DIR: where is GLUE?")
    network = encoder(target, common, GLUE[name].outputs)
    reads = tokens_read(network, common)
    read = tokenizer(network.source.folder, reads.vocab_size)
    max_length = min(target.max_length or 128, reads.max_length)
    train = glue(name, "train", home, read, max_length)
    tests = {
        split: glue(name, split, home, read, max_length)
        for split in evaluation_splits(name)
    }
    return in_memory(network, target), train, tests


def evaluation_splits(task: str) -> tuple[str, ...]:
    """Returns the splits of a task of GLUE that have labels and are not for training."""
    both = ("validation_matched", "validation_mismatched")
    return both if task == "mnli" else ("validation",)


def tokens_read(network: Network, common: Common) -> Tokens:
    """Returns what an encoder reads; raises `InputError` for another network."""
    reads = network.source.reads
    if not isinstance(reads, Tokens):
        raise InputError(
            f"--weights {common.weights} is a network of images: expected a text encoder"
        )
    return reads


def in_memory(network: Network, target: TextTarget) -> Network:
    """Returns the network, with rematerialized stages where `--remat` asks for them."""
    return remat(network) if target.remat else network


def encoder(target: TextTarget, common: Common, num_classes: int) -> Network:
    """Returns the encoder with a fresh head of zeros."""
    return load_pretrained(
        common.weights,
        num_classes,
        pooling=target.pooling or "mean",
        dropout=target.dropout,
        dtype=target.dtype,
    )

"""Target tasks of texts: an encoder, and disjoint parts of labelled sentences."""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
import tyro

from experiments import sentences
from experiments.cli import Common
from experiments.targets import Task
from subtune_jax.data.batches import Dataset
from subtune_jax.data.splits import balanced_indices
from subtune_jax.data.text import GLUE, glue, tokenizer
from subtune_jax.errors import InputError, require_positive, unknown
from subtune_jax.metrics import METRICS
from subtune_jax.models.load import load_pretrained
from subtune_jax.network import Network, Tokens, remat

EMBEDDED = {"docstrings": sentences.TARGET, "docstrings_other": sentences.OTHER}


@dataclass(frozen=True)
class TextTarget:
    """Flags that say what the target task is."""

    dataset: str = "docstrings"
    """docstrings or docstrings_other (embedded), or a task of GLUE: glue/cola, ..."""
    train_examples: int | None = None
    """Sentences for training; docstrings 100, balanced over classes, else 1000, drawn at
    random, since F1 and Matthews depend on how often a class is."""
    validation_examples: int | None = None
    """Sentences of the training split for choosing; docstrings 100, else 200."""
    max_length: int | None = None
    """Longest text in tokens; longer ones are cut. Default 128, or fewer if the network has
    fewer positions."""
    pooling: str | None = None
    """From tokens to a vector: dense, cls or mean; default mean (the embedded encoder and
    MiniLM were trained so)."""
    dropout: float | None = None
    """Dropout while training; default: the network's own."""
    dtype: str | None = None
    """What the network computes in: float32 (default) or bfloat16; parameters stay float32."""
    remat: bool = False
    """Compute each layer's inside again in the backward pass: less memory, more FLOPs."""

    def check(self, common: Common) -> None:
        """Raises `InputError` for the first flag that cannot be."""
        sizes = {"train_examples": self.train_examples, "max_length": self.max_length}
        sizes["validation_examples"] = self.validation_examples
        require_positive(**{k: v for k, v in sizes.items() if v is not None})
        if self.dataset in EMBEDDED:
            given = (common.weights, common.data_dir, self.max_length, self.pooling)
            if any(flag is not None for flag in (*given, self.dropout, self.dtype)):
                raise InputError(
                    "docstrings are embedded: --weights, --data-dir, --max-length, --pooling, "
                    "--dropout and --dtype are for real data"
                )
            return
        if self.dataset.removeprefix("glue/") not in GLUE:
            choices = [*EMBEDDED, *(f"glue/{name}" for name in GLUE)]
            raise unknown("data set", self.dataset, choices)
        if common.weights is None:
            raise InputError(
                f"{self.dataset} needs --weights: minilm, a folder of a BERT or a hub id"
            )


TextTargetFlags = Annotated[TextTarget, tyro.conf.OmitArgPrefixes]


def base_of(target: TextTarget, common: Common) -> str | None:
    """Returns the fingerprint of the weights; the embedded encoder's are of its code."""
    if target.dataset in EMBEDDED:
        return None
    return loaded(target, common, 1).source.fingerprint


def make_text_task(target: TextTarget, common: Common, seed: int) -> Task:
    """Returns the target task; the seed draws training and validation sentences."""
    rng = np.random.default_rng(seed)
    if target.dataset in EMBEDDED:
        sizes = {"train": 100, "validation": 100} | asked(target) | {"test": None}
        data = sentences.data(EMBEDDED[target.dataset])
        parts = balanced_indices(data.y, sizes, rng)
        taken = {name: data.only(index) for name, index in parts.items()}
        return Task(in_memory(sentences.pretrained(), target), **taken)
    network, train, tests = glue_task(target, common)
    at_random = np.zeros(len(train.y), int)  # all alike: as often as the set has them
    sizes = {"train": 1000, "validation": 200} | asked(target)
    parts = balanced_indices(at_random, sizes, rng)
    taken = {part: train.only(index) for part, index in parts.items()}
    (_, test), *others = tests.items()
    metric, *more = GLUE[target.dataset.removeprefix("glue/")].metrics
    also = {name: (test, METRICS[name]) for name in more}
    also |= {name.split("_")[-1]: (data, METRICS[metric]) for name, data in others}
    metrics = {part: METRICS[metric] for part in ("validation", "test")}
    return Task(network, **taken, test=test, metrics=metrics, metric=metric, also=also)


# Seeds share it, and with it their compiled programs; a carried task is the second.
@lru_cache(2)
def glue_task(
    target: TextTarget, common: Common
) -> tuple[Network, Dataset, dict[str, Dataset]]:
    """Returns the encoder with a fresh head, all sentences for training, and those of
    GLUE's validation splits: our tests."""
    name = target.dataset.removeprefix("glue/")
    home = common.data_dir or os.environ.get("TFDS_DATA_DIR")
    if home is None:
        raise InputError("give --data-dir or set TFDS_DATA_DIR: where is GLUE?")
    found = loaded(target, common, GLUE[name].outputs)
    reads = tokens_read(found, common)
    read = tokenizer(found.source.folder, reads.vocab_size)
    max_length = min(target.max_length or 128, reads.max_length)
    train = glue(name, "train", home, read, max_length)
    tests = {
        split: glue(name, split, home, read, max_length) for split in tests_of(name)
    }
    return in_memory(found, target), train, tests


def tests_of(task: str) -> tuple[str, ...]:
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
    """Returns the network, with rematerialised stages where `--remat` asks for them."""
    return remat(network) if target.remat else network


def asked(target: TextTarget) -> dict[str, int]:
    """Returns the sizes that flags give."""
    sizes = {"train": target.train_examples, "validation": target.validation_examples}
    return {name: size for name, size in sizes.items() if size is not None}


def loaded(target: TextTarget, common: Common, num_classes: int) -> Network:
    """Returns the encoder with a fresh head of zeros."""
    return load_pretrained(
        common.weights,
        num_classes,
        pooling=target.pooling or "mean",
        dropout=target.dropout,
        dtype=target.dtype,
    )

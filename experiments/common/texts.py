"""Target tasks of texts: an encoder, and disjoint parts of labelled sentences."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro

from experiments.common.flags import Common, Positive, by_data, default, one_of
from subtune_jax.data.batches import Dataset
from subtune_jax.data.classes import named_outputs
from subtune_jax.data.splits import balanced_indices
from subtune_jax.data.squad import SQUAD, Windows, exact_match, f1, squad
from subtune_jax.data.tables import DELIMITERS, LINES, table
from subtune_jax.data.task import Sealed, Task, split_task
from subtune_jax.data.text import GLUE, glue
from subtune_jax.data.tfds import split_sizes
from subtune_jax.data.tokenizer_files import tokenizer
from subtune_jax.demo import docstrings
from subtune_jax.demo.docstrings import docstrings_task
from subtune_jax.errors import InputError, unknown
from subtune_jax.metrics import METRICS
from subtune_jax.models.files.folder import find
from subtune_jax.models.files.sentence import pooling_of
from subtune_jax.models.load import load_pretrained
from subtune_jax.network import Network, Tokens, remat

EMBEDDED = {"docstrings": docstrings.TARGET, "docstrings_other": docstrings.OTHER}


@dataclass(frozen=True)
class TextTarget:
    """What the target task is."""

    dataset: str = "docstrings"
    """docstrings or docstrings_other (embedded), a task of GLUE, as glue/cola, squad (v1.1:
    answers are spans of a passage; scored by F1 and exact match), or a file of your own,
    CSV or JSON lines: see --text and --label."""
    text: Annotated[tuple[str, ...], default("none", "COLUMN [COLUMN]")] = ()
    """The column of texts in a file of your own, or two of pairs."""
    label: Annotated[str | None, default("none", "COLUMN")] = None
    """The column of labels: names or whole numbers of classes (scored by accuracy), else
    numbers (by Spearman's and Pearson's correlation). The test part is what the other parts
    leave of the file."""
    train_examples: Annotated[Positive[int] | None, *by_data(100, 1000)] = None
    """Sentences (squad: questions) for training; docstrings: balanced over classes, else drawn
    at random, since F1 and Matthews depend on how often a class is."""
    validation_examples: Annotated[Positive[int] | None, *by_data(100, 200)] = None
    """Sentences of the training split for choosing."""
    max_length: Annotated[
        Positive[int] | None,
        default("128, squad: 384, or fewer if the network has fewer positions", "INT"),
    ] = None
    """Longest text in tokens; longer ones are cut, passages into windows."""
    stride: Positive[int] = 128
    """By how many tokens a window of a passage begins after the one before (paper)."""
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

    OLDER: ClassVar = {"stride": 128, "text": [], "label": None}

    @property
    def embedded(self) -> bool:
        """Whether the data need no download."""
        return self.dataset in EMBEDDED

    @property
    def own(self) -> bool:
        """Whether the data are a file of the user's."""
        return Path(self.dataset).suffix.lower() in (*DELIMITERS, *LINES)

    @property
    def shifts(self) -> tuple[None]:
        """Texts are not shifted."""
        return (None,)

    def check(self, settings: Any) -> None:
        """Raises `InputError` for the first combination that cannot be."""
        common = settings.common
        if self.own != bool(self.text and self.label) or self.own != bool(
            self.text or self.label
        ):
            raise InputError(
                "--text and --label name the columns of a --dataset FILE, of .csv, .tsv or "
                ".jsonl: the three are given together"
            )
        if self.embedded:
            given = (common.weights, common.data_dir, self.max_length, self.pooling)
            if any(flag is not None for flag in (*given, self.dropout, self.dtype)):
                raise InputError(
                    "docstrings are embedded: --weights, --data-dir, --max-length, "
                    "--pooling, --dropout and --dtype are for real data"
                )
            return
        if not self.own and self.glue_name not in GLUE and self.dataset != "squad":
            choices = [
                *EMBEDDED,
                *(f"glue/{name}" for name in GLUE),
                "squad",
                "FILE.csv",
            ]
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
        """Returns that of the weights, and of a file of texts; the embedded encoder is
        known by its code."""
        if self.embedded:
            return None
        weights = encoder(self, common, 1).source.fingerprint
        return f"{weights} {file_fingerprint(self.dataset)}" if self.own else weights

    def task(self, common: Common, shift: None, seed: int) -> Task:
        """Returns the task; the seed draws training and validation sentences."""
        if self.embedded:
            modules, sizes = EMBEDDED[self.dataset], self.sizes | {"test": None}
            task = docstrings_task(modules, seed, sizes=sizes)
            return task._replace(network=in_memory(task.network, self))
        if self.dataset == "squad":
            return squad_task(self, common, seed)
        if self.own:
            return table_task(self, common, seed)
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
    name, home = target.glue_name, common.tfds_home()
    network = encoder(target, common, GLUE[name].outputs)
    read, max_length = reader(network, target, common, 128)
    train = glue(name, "train", home, read, max_length)
    tests = {
        split: glue(name, split, home, read, max_length)
        for split in evaluation_splits(name)
    }
    return in_memory(network, target), train, tests


def file_fingerprint(file: str) -> str:
    """Returns the SHA-256 of a file; raises `InputError` where it cannot be read."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None


@lru_cache(1)
def own_parts(target: TextTarget, common: Common) -> tuple[Network, Dataset]:
    """Returns the encoder with a fresh head for the labels of a file, and its rows."""
    words, max_length = reader(encoder(target, common, 1), target, common, 128)
    assert target.label is not None
    data = table(target.dataset, target.text, target.label, words, max_length)
    network = encoder(target, common, len(data.classes) or 1)
    return in_memory(named_outputs(network, data), target), data


def table_task(target: TextTarget, common: Common, seed: int) -> Task:
    """Returns the task of a file; the seed draws its parts, balanced over classes."""
    network, data = own_parts(target, common)
    sizes = target.sizes | {"test": None}
    if data.classes:
        return split_task(network, data, sizes, seed)
    parts = balanced_indices(np.zeros(len(data.y), int), sizes, seed)
    train, validation, test = (data.only(parts[part]) for part in sizes)
    return Task(
        network,
        train,
        validation,
        Sealed(test),
        {part: METRICS["spearman"] for part in ("validation", "test")},
        "spearman",
        {"pearson": (Sealed(test), METRICS["pearson"])},
    )


def squad_task(target: TextTarget, common: Common, seed: int) -> Task:
    """Returns the task of answering questions: those of the training part are drawn by the
    seed, and the set's validation split is our test."""
    home = common.tfds_home()
    network = encoder(target, common, 2, head="span")
    read, max_length = reader(network, target, common, 384)

    def held(split: str, **chosen: Any) -> Windows:
        return squad(split, home, read, max_length, target.stride, **chosen)

    many = split_sizes(SQUAD, home)["train"]
    drawn = balanced_indices(np.zeros(many, int), target.sizes, seed)
    train, validation = (
        held("train", chosen=lambda count, part=part: drawn[part])
        for part in ("train", "validation")
    )
    test = held("validation")
    return Task(
        in_memory(network, target),
        train.data,
        validation.data,
        Sealed(test.data),
        {"validation": f1(validation), "test": f1(test)},
        "f1",
        {"exact_match": (Sealed(test.data), exact_match(test))},
    )


def reader(
    network: Network, target: TextTarget, common: Common, longest: int
) -> tuple[Any, int]:
    """Returns the tokenizer of an encoder, and how many tokens a text has at most."""
    reads = tokens_read(network, common)
    read = tokenizer(network.source.folder, reads.vocab_size)
    return read, min(target.max_length or longest, reads.max_length)


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


@lru_cache(4)
def own_pooling(weights: str) -> str | None:
    """Returns mean, or `None` where the folder of weights says how it pools."""
    return None if pooling_of(find(weights)) else "mean"


def encoder(
    target: TextTarget, common: Common, num_classes: int, head: str | None = None
) -> Network:
    """Returns the encoder with a fresh head of zeros."""
    return load_pretrained(
        common.weights,
        num_classes,
        pooling=target.pooling or own_pooling(common.weights),
        dropout=target.dropout,
        dtype=target.dtype,
        head=head,
    )

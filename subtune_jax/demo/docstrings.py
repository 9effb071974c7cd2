"""Texts: sentences of Python's own documentation, and a small encoder.

What a newcomer can run without a download. The task is to say which module of the
standard library a docstring's first sentence is from; the encoder, of some 100,000
parameters, is pretrained on other modules at first use. Real English, and far from what a
BERT has read.
"""

import ast
import hashlib
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.task import Task, split_task
from subtune_jax.data.text import encode
from subtune_jax.demo.cache import cached
from subtune_jax.head import replace_head
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.network import Network
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adamw
from subtune_jax.training.phases import Phase

SOURCE = (
    "asyncio",
    "importlib",
    "email",
    "multiprocessing",
    "xml",
    "unittest",
    "inspect",
)
TARGET = ("logging", "_pydecimal", "mailbox", "http")
OTHER = ("tarfile", "urllib", "pydoc", "turtle")  # a second target, to carry modules to
CONFIG = BertConfig(
    vocab_size=1200,
    hidden_size=48,
    num_layers=4,
    num_heads=4,
    intermediate_size=96,
    max_positions=32,
    dropout=0.0,
    pooling="mean",
    num_classes=len(SOURCE),
)
STEPS, LEARNING_RATE = 500, 2e-3
SIZES = {"train": 100, "validation": 100, "test": None}
# Of the training, since the recipe cannot tell: 2 draws an epoch's remainder at random.
VERSION = 2
WIDTHS = (16, CONFIG.max_positions)


@cache
def sentences(modules: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Returns the first sentences of the modules' docstrings, each once, and their
    module's number."""
    home = Path(sysconfig.get_paths()["stdlib"])
    numbers: dict[str, int] = {}
    for number, module in enumerate(modules):
        files = sorted([*home.glob(f"{module}.py"), *home.glob(f"{module}/**/*.py")])
        for file in files:
            for sentence in _docstrings(file):
                numbers.setdefault(sentence, number)
    return list(numbers), np.array(list(numbers.values()), np.int32)


def _docstrings(file: Path) -> list[str]:
    with warnings.catch_warnings(action="ignore"):  # old escapes in the library
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    texts = [ast.get_docstring(n) or "" for n in nodes if isinstance(n, kinds)]
    firsts = [re.split(r"(?<=\.)\s|\n\n", text.strip())[0] for text in texts]
    return [" ".join(first.split()) for first in firsts if len(first.split()) >= 4]


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@cache
def words() -> Any:
    """Returns the word-piece tokenizer of the source sentences: every letter, and the most
    frequent words. Training one gives another vocabulary in each process."""
    import tokenizers

    lower = tokenizers.normalizers.BertNormalizer(lowercase=True).normalize_str
    split = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    texts = sentences(SOURCE)[0]
    counts = Counter(word for text in texts for word, _ in split(lower(text)))
    letters = sorted({letter for word in counts for letter in word})
    common = sorted(counts.keys() - set(letters), key=lambda w: (-counts[w], w))
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *common]
    numbers = {piece: i for i, piece in enumerate(pieces[: CONFIG.vocab_size])}
    return tokenizers.BertWordPieceTokenizer(numbers, lowercase=True)


def data(modules: tuple[str, ...], widths: tuple[int, ...] = WIDTHS) -> Dataset:
    """Returns the sentences of modules as token ids, labelled by module; a batch is padded
    to the smallest of `widths` that holds it."""
    texts, labels = sentences(modules)
    x = encode(words(), [[text] for text in texts], CONFIG.max_positions)
    x = {name: replace(leaf, buckets=widths) for name, leaf in x.items()}
    return Dataset(x, labels, tuple(modules))


def docstrings_task(
    modules: tuple[str, ...] = TARGET,
    seed: int = 0,
    *,
    sizes: Mapping[str, int | None] = SIZES,
) -> Task:
    """Returns the task of telling modules apart by sentences of their docstrings.

    modules: `TARGET` or `OTHER`. The seed draws the parts, class-balanced.
    """
    # One width: every width is a program of its own, and with sentences this short
    # compilation takes longer than padding.
    padded = data(modules, WIDTHS[-1:])
    return split_task(docstrings_network(), padded, sizes, seed)


def docstrings_network() -> Network:
    """Returns the encoder trained on the source modules, with a fresh head for the target."""
    return replace_head(docstrings_source()[0], len(TARGET))


def docstrings_source() -> tuple[Network, Dataset]:
    """Returns the encoder with the head of the source modules, from the cache if there, and
    the sentences that it was trained on. AdamW, cosine, 500 steps of 64."""
    texts, network = sentences(SOURCE)[0], bert(CONFIG, jax.random.key(0))
    vocabulary = sorted(words().get_vocab().items())
    recipe = (VERSION, CONFIG, STEPS, LEARNING_RATE, texts, vocabulary)
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]
    rule = adamw(LEARNING_RATE, schedule="cosine", clip_norm=1.0)
    phase = Phase(select(network, {"all": [".*"]}), rule, STEPS)

    def train() -> Network:
        key = jax.random.key(1)
        return fit(network, phase, data(SOURCE), key=key, progress=False).network

    return cached(f"docstrings-{key}", network, train), data(SOURCE)

"""Sentences as token ids, and the tasks of GLUE through TFDS."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import BUCKETS, ragged
from subtune_jax.data.tfds import class_names, records
from subtune_jax.errors import InputError, require_positive, unknown


class GlueTask(NamedTuple):
    """A task's text fields (one or two), its outputs (1: a regression) and metrics."""

    fields: tuple[str, ...]
    outputs: int
    metrics: tuple[str, ...]


_PAIR = ("sentence1", "sentence2")
GLUE = {
    "cola": GlueTask(("sentence",), 2, ("matthews",)),
    "sst2": GlueTask(("sentence",), 2, ("accuracy",)),
    "mrpc": GlueTask(_PAIR, 2, ("f1", "accuracy")),
    "stsb": GlueTask(_PAIR, 1, ("spearman", "pearson")),
    "qqp": GlueTask(("question1", "question2"), 2, ("f1", "accuracy")),
    "mnli": GlueTask(("premise", "hypothesis"), 3, ("accuracy",)),
    "qnli": GlueTask(("question", "sentence"), 2, ("accuracy",)),
    "rte": GlueTask(_PAIR, 2, ("accuracy",)),
    "wnli": GlueTask(_PAIR, 2, ("accuracy",)),
}

# Tables may be larger than their tokenizer's vocabulary: round sizes are faster.
PADDING = 1024


def tokenizer(folder: str | Path, vocabulary: int | None = None) -> Any:
    """Returns the fast tokenizer of a folder: `tokenizer.json`, or BERT's from `vocab.txt`.

    vocabulary: how many words the network knows. Raises `InputError` when there is
    neither file, one is damaged, or the tokenizer is of another vocabulary: it gives ids
    that the network does not know, or leaves more of them unused than padding explains.
    """
    import tokenizers  # a tenth of a second, only where there is text

    folder = Path(folder)
    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    if not whole.exists() and not words.exists():
        raise InputError(f"{folder} has no tokenizer.json and no vocab.txt")
    try:
        if whole.exists():
            loaded = tokenizers.Tokenizer.from_file(str(whole))
        else:
            loaded = tokenizers.BertWordPieceTokenizer(str(words), **_settings(folder))
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"{folder} has no readable tokenizer: {error}") from None
    size = max(loaded.get_vocab().values(), default=-1) + 1
    if vocabulary is not None and not 0 <= vocabulary - size < PADDING:
        raise InputError(
            f"the tokenizer in {folder} has ids up to {size - 1}, the network "
            f"{vocabulary} words: expected {max(vocabulary - PADDING, 0)} to "
            f"{vocabulary - 1}, so it belongs to another network"
        )
    loaded.no_padding()
    return loaded


def _settings(folder: Path) -> dict[str, Any]:
    """Returns what `tokenizer_config.json` says of a `vocab.txt`; BERT's rules where not."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    return {
        "lowercase": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
    }


def encode(
    tokenizer: Any, sentences: Sequence[Sequence[str]], max_length: int
) -> dict[str, Any]:
    """Returns `input_ids`, `attention_mask`, `token_type_ids` as ragged int32 arrays.

    `sentences` has one or two texts per example, the same number for all; examples are
    cut to `max_length` tokens. Raises `InputError` for another number, for no example, and
    where `max_length` leaves no room for a word beside the special tokens.
    """
    require_positive(max_length=max_length, examples=len(sentences))
    parts = {len(example) for example in sentences}
    if parts not in ({1}, {2}):
        raise InputError(
            f"examples have {' and '.join(map(str, sorted(parts)))} texts: expected one "
            "or two, the same for all"
        )
    special = tokenizer.num_special_tokens_to_add(parts == {2})
    if max_length <= special:
        raise InputError(
            f"max_length is {max_length}: {special} are special tokens, so expected "
            f"{special + 1} or more"
        )
    tokenizer.enable_truncation(max_length)
    inputs = [e[0] if len(e) == 1 else tuple(e) for e in sentences]
    encodings = tokenizer.encode_batch(inputs)
    columns = {
        "input_ids": [one.ids for one in encodings],
        "attention_mask": [one.attention_mask for one in encodings],
        "token_type_ids": [one.type_ids for one in encodings],
    }
    buckets = (*(size for size in BUCKETS if size < max_length), max_length)
    return {
        name: ragged([np.array(row, np.int32) for row in rows], buckets)
        for name, rows in columns.items()
    }


def glue(
    task: str, split: str, data_dir: str | Path, tokenizer: Any, max_length: int = 128
) -> Dataset:
    """Returns a task of GLUE (`rte`; also `glue/rte`), read without TensorFlow.

    x: as `encode`; y: int32[n], or float32[n, 1] for `stsb`. What GLUE publishes with
    labels for evaluation is its `validation` split: our test. Raises `InputError` for
    an unknown task, a split without labels, and a record that lacks a text.
    """
    name = task.removeprefix("glue/")
    if name not in GLUE:
        raise unknown("GLUE task", name, GLUE)
    examples = records(f"glue/{name}", split, data_dir)
    rows = [examples[i] for i in range(len(examples))]
    sentences = [texts(row, GLUE[name].fields, f"glue/{name}") for row in rows]
    labels = labelled([row["label"] for row in rows], GLUE[name].outputs, split)
    names = class_names(f"glue/{name}", data_dir) if GLUE[name].outputs > 1 else ()
    return Dataset(encode(tokenizer, sentences, max_length), labels, names)


def texts(row: dict[str, Any], fields: Sequence[str], name: str) -> list[str]:
    """Returns a record's texts; raises `InputError` where it lacks one."""
    missing = [field for field in fields if field not in row]
    if missing:
        raise InputError(
            f"{name} is a task of {' and '.join(fields)}: a record has no "
            f"{' and no '.join(missing)}, only {', '.join(row)}"
        )
    return [
        text.decode() if isinstance(text, bytes) else text
        for text in (row[field] for field in fields)
    ]


def labelled(labels: Sequence[float], outputs: int, split: str) -> np.ndarray:
    """Returns int32[n] labels, or float32[n, 1] for one output; raises `InputError` for a
    label that no output has."""
    y = np.asarray(labels)
    if y.min() < 0 or (outputs > 1 and y.max() >= outputs):
        raise InputError(
            f"split {split!r} has labels {y.min()} to {y.max()}: expected 0 to "
            f"{outputs - 1 if outputs > 1 else 5} (-1 is what GLUE gives for none)"
        )
    return y.astype(np.float32)[:, None] if outputs == 1 else y.astype(np.int32)

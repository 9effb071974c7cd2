"""Sentences as token ids, and the tasks of GLUE through TFDS."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import BUCKETS, ragged
from subtune_jax.data.tfds import class_names, records
from subtune_jax.errors import InputError, require_positive, require_whole, unknown


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


def encode(
    tokenizer: Any, sentences: Sequence[Sequence[str]], max_length: int
) -> dict[str, Any]:
    """Returns `input_ids`, `attention_mask`, `token_type_ids` as ragged int32 arrays.

    `sentences` has one or two texts per example, the same number for all; a string is one
    text. Examples are cut to `max_length` tokens, on the tokenizer's side. Raises
    `InputError` for what is no tokenizer or no text, another number of texts, no example,
    and where `max_length` leaves no room for a word beside the special tokens.
    """
    if not hasattr(tokenizer, "encode_batch"):
        kind = type(tokenizer).__name__
        raise InputError(
            f"tokenizer must be one, as data.tokenizer returns, got {kind}"
        )
    if isinstance(sentences, str) or not isinstance(sentences, Sequence | np.ndarray):
        kind = "one text" if isinstance(sentences, str) else type(sentences).__name__
        raise InputError(f"sentences must be a list of texts, got {kind}")
    require_whole(max_length=max_length)
    require_positive(examples=len(sentences))
    sentences = [(e,) if isinstance(e, str) else e for e in sentences]
    for number, example in enumerate(sentences):
        if wrong := not_texts(example):
            raise InputError(f"example {number} {wrong}")
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
    left = (tokenizer.truncation or {}).get("direction") == "left"
    # Tokenizers that are built in Python, such as BERT's, cut on the right alone.
    tokenizer.enable_truncation(max_length, **({"direction": "left"} if left else {}))
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


def not_texts(example: Any) -> str | None:
    """Returns what is wrong with an example that is not a list or tuple of texts."""
    if not isinstance(example, list | tuple):
        return f"is no text: {example!r:.40}"
    for text in example:
        if isinstance(text, list | tuple):
            return f"has a text in parts, {text!r:.40}: join its words with spaces"
        if not isinstance(text, str):
            return f"is no text: {text!r:.40}"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"has half of a surrogate pair: {text!r:.40}"
    return None


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

"""Questions on passages (SQuAD v1.1): long passages as windows, and answers as text."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.buckets import BUCKETS, ragged
from subtune_jax.data.tfds import records
from subtune_jax.errors import InputError, require_positive
from subtune_jax.metrics import Metric

SQUAD = "squad/v1.1"
LONGEST_QUESTION = 64  # tokens; longer ones are cut (BERT's code, recalled)
LONGEST_ANSWER = 30  # tokens (the same)


class Question(NamedTuple):
    """A question, its passage, all accepted answers, and where in the passage each begins
    (in characters)."""

    question: str
    passage: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


class Windows(NamedTuple):
    """Questions, each on one or more overlapping windows of its passage.

    data: x as `text.encode`, of a window; y int32[windows, 2], the first and last token of
    the first answer, or 0 and 0, the class token, where the window does not hold it. owner:
    int[windows], the number of its question. characters: for each window int32[tokens, 2],
    from where to where in the passage a token is, -1 where it is not of the passage.
    """

    data: Dataset
    owner: np.ndarray
    characters: tuple[np.ndarray, ...]
    questions: tuple[Question, ...]


def squad(
    split: str,
    data_dir: str | Path,
    tokenizer: Any,
    max_length: int = 384,
    stride: int = 128,
    *,
    chosen: Callable[[int], Sequence[int]] = range,
) -> Windows:
    """Returns questions of SQuAD v1.1 through TFDS, read without TensorFlow.

    chosen: from how many there are to the places of those to take. The set's `validation`
    split is our test. See `windows` for the others. Raises `InputError` for a set that is
    not there.
    """
    examples = records(SQUAD, split, data_dir)
    rows = (examples[int(i)] for i in chosen(len(examples)))
    return windows(tokenizer, map(_question, rows), max_length, stride)


def windows(
    tokenizer: Any,
    questions: Iterable[Question],
    max_length: int = 384,
    stride: int = 128,
) -> Windows:
    """Returns questions as token ids with their passages, cut into windows.

    max_length: tokens of a window, with question and special tokens. stride: by how many
    tokens a window begins after the one before, at most the passage's share of a window
    (the paper: 384 and 128). Raises `InputError`
    where a window has no room for passage, or there is no question.
    """
    require_positive(max_length=max_length, stride=stride)
    questions = tuple(questions)
    if not questions:
        raise InputError("there are no questions")
    columns: dict[str, list[np.ndarray]] = {n: [] for n in _COLUMNS.values()}
    spans, owner, characters = [], [], []
    for number, question in enumerate(questions):
        for encoding in _encodings(tokenizer, question, max_length, stride):
            for name, column in _COLUMNS.items():
                columns[column].append(np.array(getattr(encoding, name), np.int32))
            places = _characters(encoding)
            spans.append(_span(places, question))
            owner.append(number)
            characters.append(places)
    tokenizer.no_truncation()  # as it was given
    buckets = (*(size for size in BUCKETS if size < max_length), max_length)
    x = {name: ragged(rows, buckets) for name, rows in columns.items()}
    data = Dataset(x, np.array(spans, np.int32))
    return Windows(data, np.array(owner), tuple(characters), questions)


_COLUMNS = {
    "ids": "input_ids",
    "attention_mask": "attention_mask",
    "type_ids": "token_type_ids",
}


def _encodings(
    tokenizer: Any, question: Question, max_length: int, stride: int
) -> list[Any]:
    """Returns the encodings of the windows of one question."""
    tokenizer.no_truncation()
    asked = tokenizer.encode(question.question, add_special_tokens=False)
    end = asked.offsets[:LONGEST_QUESTION][-1][1] if asked.offsets else 0
    count = min(len(asked.offsets), LONGEST_QUESTION)
    room = max_length - count - tokenizer.num_special_tokens_to_add(True)
    if room < 1:
        raise InputError(
            f"max_length is {max_length}, and a question takes {max_length - room} tokens "
            "with the special ones: there is no room for its passage"
        )
    # The library asks for how many tokens two windows share.
    shared = max(room - stride, 0)
    tokenizer.enable_truncation(max_length, stride=shared, strategy="only_second")
    whole = tokenizer.encode(question.question[:end], question.passage)
    return [whole, *whole.overflowing]


def _characters(encoding: Any) -> np.ndarray:
    """Returns int32[tokens, 2]: where in the passage each token is, -1 outside."""
    inside = np.array(encoding.sequence_ids, dtype=object) == 1
    return np.where(inside[:, None], np.array(encoding.offsets), -1).astype(np.int32)


def _span(characters: np.ndarray, question: Question) -> tuple[int, int]:
    """Returns the first and last token of the first answer; 0 and 0 where the window does
    not hold all of it, or there is none."""
    if not question.answers:
        return 0, 0
    begin = question.starts[0]
    end = begin + len(question.answers[0])
    inside = characters[:, 0] >= 0
    touches = inside & (characters[:, 1] > begin) & (characters[:, 0] < end)
    places = np.flatnonzero(touches)
    if not len(places):
        return 0, 0
    whole = characters[places[0], 0] <= begin and characters[places[-1], 1] >= end
    return (int(places[0]), int(places[-1])) if whole else (0, 0)


def answered(held: Windows, logits: np.ndarray) -> list[str]:
    """Returns the answer to each question: over its windows, the passage from token s to
    token e <= s + 29 with the highest start logit at s plus end logit at e; of equals the
    shortest, then the first.

    logits: float[windows, tokens, 2], as `predict` gives them.
    """
    best: dict[int, tuple[float, str]] = {}
    for number, places, scores in zip(held.owner, held.characters, logits, strict=True):
        score, first, last = _best_span(places, scores)
        passage = held.questions[number].passage
        if number not in best or score > best[number][0]:
            best[number] = score, passage[places[first, 0] : places[last, 1]]
    return [best[number][1] for number in range(len(held.questions))]


def _best_span(places: np.ndarray, logits: np.ndarray) -> tuple[float, int, int]:
    tokens = len(places)
    inside = places[:, 0] >= 0
    start, end = (np.where(inside, logits[:tokens, i], -np.inf) for i in (0, 1))
    best = -np.inf, 0, 0
    for more in range(min(LONGEST_ANSWER, tokens)):
        sums = start[: tokens - more] + end[more:]
        first = int(np.argmax(sums))
        if sums[first] > best[0]:
            best = float(sums[first]), first, first + more
    return best


def exact_match(held: Windows) -> Metric:
    """Returns the metric of how many answers are an accepted one, in percent, after
    `plain`."""
    return _metric(held, lambda said, accepted: float(plain(said) == plain(accepted)))


def f1(held: Windows) -> Metric:
    """Returns the metric of the mean F1 over the words of answers after `plain`, in percent;
    of several accepted ones the best counts."""
    return _metric(held, _words_f1)


def _metric(held: Windows, score: Callable[[str, str], float]) -> Metric:
    def metric(logits: np.ndarray, spans: np.ndarray) -> float:
        if len(logits) != len(held.owner):
            raise InputError(
                f"there are outputs for {len(logits)} windows, and these questions have "
                f"{len(held.owner)}"
            )
        if np.isnan(logits).any():
            return float("nan")
        said = answered(held, logits)
        best = [
            max((score(text, accepted) for accepted in question.answers), default=0.0)
            for text, question in zip(said, held.questions, strict=True)
        ]
        return 100 * float(np.mean(best))

    return metric


def plain(text: str) -> str:
    """Returns a text in lower case, without punctuation and the articles a, an and the, its
    words one space apart (the set's own script, recalled)."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _words_f1(said: str, accepted: str) -> float:
    one, other = plain(said).split(), plain(accepted).split()
    shared = sum((Counter(one) & Counter(other)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(one), shared / len(other)
    return 2 * precision * recall / (precision + recall)


def _question(row: dict[str, Any]) -> Question:
    """Returns a record of TFDS as a question."""

    def text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    answers = row["answers"]
    return Question(
        text(row["question"]),
        text(row["context"]),
        tuple(map(text, answers["text"])),
        tuple(map(int, answers["answer_start"])),
    )

"""Own texts: CSV files and JSON lines, with columns of texts and one of labels."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.classes import plain
from subtune_jax.data.text import encode, not_texts
from subtune_jax.errors import InputError, listed, require_names, require_path, unknown

DELIMITERS = {".csv": ",;\t", ".tsv": "\t", ".txt": "\t,;"}
LINES = (".jsonl", ".ndjson", ".json")
MISSING = ("nan", "inf", "-inf", "infinity", "-infinity")
# What stands for no label beside numbers; beside names, `NA` may be Namibia.
ABSENT = ("na", "n/a", "null", "none", "<na>", "-", "?")


class Table(NamedTuple):
    """Texts, one or two of each row, with labels: int32[n] by `classes`, or float32[n, 1]
    where they are numbers that are not all whole (`classes` is then empty)."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray
    classes: tuple[str, ...]


class Cells(NamedTuple):
    """The texts and the label of a row, and its line in the file."""

    line: int
    texts: tuple[Any, ...]
    label: Any


def table(
    file: str | Path,
    text: str | Sequence[str],
    label: str,
    tokenizer: Any,
    max_length: int = 128,
    *,
    classes: Sequence[str] | None = None,
    regression: bool = False,
) -> Dataset:
    """Returns the texts of a file as token ids, with their labels; see `read_table` and
    `encode`."""
    read = read_table(file, text, label, classes=classes, regression=regression)
    return Dataset(encode(tokenizer, read.texts, max_length), read.labels, read.classes)


def read_table(
    file: str | Path,
    text: str | Sequence[str],
    label: str,
    *,
    classes: Sequence[str] | None = None,
    regression: bool = False,
) -> Table:
    """Returns the texts and labels of a CSV file with a header, or of JSON lines.

    text: the column of texts, or two of pairs. Fields of a CSV file are separated by what
    its header is (comma, semicolon or tab). Classes are the names in the label column in
    alphabetical order, whole numbers in theirs; classes: their order, for a part that lacks
    one. Numbers that are not all whole, and with regression all numbers, are no classes.
    Raises `InputError` with the line of the first row that has no text or no label, and
    for a file that cannot be read, another encoding than UTF-8, a column that is not there,
    and a label that is none of `classes`.
    """
    require_path(file=file)
    for name, column in {"text": text, "label": label}.items():
        if not isinstance(column, str) and (name == "label" or not _are_texts(column)):
            raise InputError(f"{name} must name a column, got {column!r:.60}")
    if isinstance(classes, list | tuple):
        classes = [str(name) for name in classes]
    if classes is not None:
        require_names(classes=classes)
    file, columns = Path(file), (text,) if isinstance(text, str) else tuple(text)
    if len(columns) not in (1, 2):
        raise InputError(f"text must be one column or two, got {len(columns)}")
    content = _content(file)
    rows = _json_rows if file.suffix.lower() in LINES else _csv_rows
    cells = list(rows(file, content, columns, label))
    if not cells:
        raise InputError(f"{file} has no rows")
    for row in cells:
        _require_texts(file, row, columns)
    labels, names = _labels(file, cells, label, classes, regression)
    return Table([row.texts for row in cells], labels, names)


def _content(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"line {line} of {file} is not in UTF-8: save the file in that encoding"
        ) from None


def _csv_rows(
    file: Path, content: str, columns: Sequence[str], label: str
) -> Iterator[Cells]:
    suffix = file.suffix.lower()
    if suffix not in DELIMITERS:
        raise unknown("kind of table", suffix or file.name, (*DELIMITERS, *LINES))
    header, places, delimiter = _header(file, content, (*columns, label), suffix)
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=delimiter, strict=True
    )
    try:
        next(reader)
        for row in filter(None, reader):
            if len(row) != len(header):
                raise InputError(
                    f"line {reader.line_num} of {file} has {len(row)} fields, and the header "
                    f"{len(header)}: a text with {delimiter!r} in it needs quotes"
                )
            *texts, one = (row[place] for place in places)
            yield Cells(reader.line_num, tuple(texts), one)
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} of {file}: {error}") from None


def _header(
    file: Path, content: str, columns: Sequence[str], suffix: str
) -> tuple[list[str], list[int], str]:
    """Returns the names of a header, the places of columns, and what separates them."""
    first = content.split("\n", 1)[0]
    headers = {}
    for delimiter in DELIMITERS[suffix]:
        try:
            names = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error as error:
            raise InputError(f"line 1 of {file}: {error}") from None
        headers[delimiter] = names
        if all(names.count(column) == 1 for column in columns):
            return names, [names.index(column) for column in columns], delimiter
    likely = max(headers.values(), key=len)
    for column in columns:
        if likely.count(column) > 1:
            raise InputError(f"{file} has {likely.count(column)} columns {column!r}")
        if column not in likely:
            raise unknown(f"column of {file}", column, likely)
    raise InputError(f"{file} has no header with {listed(columns)}")


def _json_rows(
    file: Path, content: str, columns: Sequence[str], label: str
) -> Iterator[Cells]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(
                f"line {number} of {file} is no JSON object: expected one in every line"
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f"line {number} of {file} is a JSON {type(row).__name__}: expected an object"
            )
        for column in (*columns, label):
            if column not in row:
                raise unknown(f"column of line {number} of {file}", column, row)
        yield Cells(number, tuple(row[c] for c in columns), row[label])


def _require_texts(file: Path, row: Cells, columns: Sequence[str]) -> None:
    wrong = not_texts(row.texts)
    if wrong:
        raise InputError(f"line {row.line} of {file} {wrong}")
    for column, text in zip(columns, row.texts, strict=True):
        # One stray quote makes one text of many lines, in silence.
        if "\n" in text and file.suffix.lower() == ".tsv":
            raise InputError(
                f"line {row.line} of {file} ends a text of several lines, which began at a "
                "quote: save a table with such texts as .csv or .jsonl"
            )
        if not text.strip():
            raise InputError(f"line {row.line} of {file} has no text in {column!r}")


def _labels(
    file: Path,
    cells: Sequence[Cells],
    label: str,
    classes: Sequence[str] | None,
    regression: bool,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels by the names of their classes, or numbers; see `Table`."""
    values = [_label(file, row, label) for row in cells]
    numbers = [_number(value) for value in values]
    if classes is None:
        _require_one_kind(file, cells, values, numbers, regression)
    if classes is None and None not in numbers:
        known = [number for number in numbers if number is not None]
        if regression or not all(number.is_integer() for number in known):
            return np.array(known, np.float32)[:, None], ()
        classes = [f"{n}" for n in sorted({int(number) for number in known})]
    names = tuple(sorted(set(values)) if classes is None else classes)
    _require_distinct(file, names)
    place = {name: i for i, name in enumerate(names)}
    for row, value in zip(cells, values, strict=True):
        if value not in place:
            raise unknown(f"label in line {row.line} of {file}", value, names)
    return np.array([place[value] for value in values], np.int32), names


def _require_one_kind(
    file: Path,
    cells: Sequence[Cells],
    values: Sequence[str],
    numbers: Sequence[float | None],
    regression: bool,
) -> None:
    """Raises `InputError` for the first label that is no number where most are numbers."""
    odd = [i for i, number in enumerate(numbers) if number is None]
    absent = all(values[i].lower() in ABSENT for i in odd)
    few = len(odd) <= len(numbers) // 2
    if odd and (regression or few or (absent and len(odd) < len(numbers))):
        raise InputError(
            f"line {cells[odd[0]].line} of {file} has the label {values[odd[0]]!r}, and "
            "other lines have numbers: give classes= if all are names"
        )


def _label(file: Path, row: Cells, column: str) -> str:
    value = row.label
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or not isinstance(value, str | int | float):
        kind = "no label" if value is None else f"a {type(value).__name__} as label"
        raise InputError(f"line {row.line} of {file} has {kind} in {column!r}")
    name = str(value).strip()
    if not name or name.lower() in MISSING:
        raise InputError(
            f"line {row.line} of {file} has no label in {column!r}: {name!r}"
        )
    number = _number(name)  # pandas writes 1 as 1.0 where a column had gaps
    return name if number is None or not number.is_integer() else f"{int(number)}"


def _number(value: str) -> float | None:
    """Returns a number; `None` for names, and codes such as 01."""
    if not re.fullmatch(r"[-+]?(0|[1-9]\d*)?(\.\d*)?([eE][-+]?\d+)?", value):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) <= float(np.finfo(np.float32).max) else None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)


def _require_distinct(file: Path, names: Sequence[str]) -> None:
    """Raises `InputError` for labels that a person would take for one."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(plain(name) or name, name)
        if other != name:
            raise InputError(
                f"{file} has the labels {other!r} and {name!r}, which differ in case or "
                "punctuation alone: make them one"
            )

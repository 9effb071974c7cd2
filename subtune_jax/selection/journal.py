"""A file of evaluations: a search that was killed goes on, and repeats none of them."""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from subtune_jax.errors import InputError

Key = tuple[tuple[str, ...], int, int]  # (units, fold, seed)


class Score(NamedTuple):
    """What training a subset gave: the higher the better (NaN: it diverged), and the
    FLOPs that it took."""

    value: float
    flops: float = 0.0


@dataclass(frozen=True)
class Journal:
    """The evaluations of a search so far; `file` is where new ones are added. score: what
    their values depend on, by name; empty before the first search."""

    scores: dict[Key, Score]
    file: TextIO | None = None
    score: dict[str, str] = field(default_factory=dict)

    def require_score(self, about: Mapping[str, str]) -> None:
        """Raises `InputError` unless the evaluations are of this score; an empty journal is
        its from now on."""
        if not self.score and not self.scores:
            self.score.update(about)
            if self.file is not None:
                _write(self.file, {"score": self.score})
            return
        differing = [n for n in about if self.score.get(n) != about[n]]
        if differing:
            other = (
                ", ".join(sorted(differing)) if self.score else "it does not say which"
            )
            raise InputError(
                f"the journal has evaluations of another score ({other}): give another file, "
                "or remove this one to begin anew"
            )

    def once(
        self, keys: Sequence[Key], scores: Callable[[list[Key]], Iterable[Score]]
    ) -> list[Score]:
        """Returns the scores of keys. `scores` evaluates those that are not there, one by
        one or together, and each is written as it comes."""
        missing = [key for key in keys if key not in self.scores]
        if missing:
            for key, new in zip(missing, scores(missing), strict=True):
                self._add(key, Score(*map(float, new)))
        return [self.scores[key] for key in keys]

    def _add(self, key: Key, score: Score) -> None:
        self.scores[key] = score
        if self.file is not None:
            about = dict(zip(("units", "fold", "seed"), key, strict=True))
            _write(self.file, {**about, **score._asdict()})


@contextmanager
def open_journal(
    file: str | Path | None, about: Mapping[str, Any] = {}
) -> Iterator[Journal]:
    """Yields the journal in a file, or one in memory where there is none.

    about: what scores depend on, as JSON values; the file's first line. A last line that a
    kill cut off is dropped. Raises `InputError` for the journal of another search, one
    that another process has open, and what is not a journal.
    """
    if file is None:
        yield Journal({})
        return
    file, line = Path(file), json.loads(json.dumps(dict(about), sort_keys=True))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = file.open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from None
    with opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is searching with {file}") from None
        scores, score = _read(opened, file, line)
        yield Journal(scores, opened, score)


def _read(
    opened: TextIO, file: Path, about: Mapping[str, Any]
) -> tuple[dict[Key, Score], dict[str, str]]:
    opened.seek(0)
    text = opened.read()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        opened.truncate(len(whole.encode()))
    if not whole:
        _write(opened, {"about": about})
        return {}, {}
    try:
        first, *rows = map(json.loads, whole.splitlines())
        score = dict(rows.pop(0)["score"]) if rows and "score" in rows[0] else {}
        scores = {
            (tuple(row["units"]), row["fold"], row["seed"]): Score(
                row["value"], row["flops"]
            )
            for row in rows
        }
        before = first["about"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is not the journal of a search") from None
    differing = [k for k in {**before, **about} if before.get(k) != about.get(k)]
    if differing:
        changes = ", ".join(
            f"{k} {before.get(k)!r} (now {about.get(k)!r})" for k in sorted(differing)
        )
        raise InputError(f"{file} is the journal of another search: {changes}")
    return scores, score


def _write(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()
    os.fsync(file.fileno())

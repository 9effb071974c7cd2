"""An experiment's folder: `config.json`, and `results.jsonl` with a line per run."""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from subtune_jax.errors import InputError

Row = dict[str, Any]


def open_folder(
    out: Path,
    config: Mapping[str, Any],
    free: Iterable[str] = (),
    older: Mapping[str, Any] = {},
) -> list[Row]:
    """Creates the folder, or opens it to continue; returns the rows of finished runs.

    free: settings that may differ between calls. They say which runs exist, not what a
    run does; those that are lists are merged. older: the value of a setting in a folder
    that was written before the setting existed. Raises `InputError` when another setting
    differs, or the folder cannot be written.
    """
    config = json.loads(json.dumps(config))
    file = out / "config.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if file.exists():
            old = dict(older) | json.loads(file.read_text())
            _require_equal(old, config, set(free), out)
            config |= {
                k: _both(old[k], config[k]) for k in free if k in old and k in config
            }
        write(file, json.dumps(config, indent=1))
        rows = read(out)
        write(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    except json.JSONDecodeError:
        raise InputError(
            f"{file} is damaged: choose another --out or remove it"
        ) from None
    return rows


def _both(old: Any, new: Any) -> Any:
    """Returns the value for all runs of a folder: every entry of lists, else the new."""
    lists = isinstance(old, list) and isinstance(new, list)
    return old + [entry for entry in new if entry not in old] if lists else new


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Holds a folder for this process; raises `InputError` if another one has it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is writing to {out}") from None
        yield


def _require_equal(old: Row, new: Row, free: set[str], out: Path) -> None:
    other = [
        k for k in old.keys() | new.keys() if k not in free and old.get(k) != new.get(k)
    ]
    if other:
        changes = ", ".join(
            f"{k} {old.get(k)!r} (now {new.get(k)!r})" for k in sorted(other)
        )
        raise InputError(
            f"{out} holds runs of another configuration: {changes}; choose another --out"
        )


def read(out: Path) -> list[Row]:
    """Returns the rows of a folder; a last line cut off by a kill is not one.

    Raises `InputError` for another line that is no JSON.
    """
    file = out / "results.jsonl"
    if not file.exists():
        return []
    lines = file.read_text().split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except json.JSONDecodeError as error:
        raise InputError(f"{file} has a line that is not JSON: {error}") from None


def read_all(folder: Path) -> list[Row]:
    """Returns the rows of a folder and of the folders in it, in order of their names."""
    homes = sorted(file.parent for file in folder.glob("**/results.jsonl"))
    return [row for home in homes for row in read(home)]


def keep(out: Path, rows: Iterable[Row]) -> None:
    """Replaces the folder's rows by these; rows of an interrupted job are dropped."""
    try:
        write(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None


def append(out: Path, rows: Iterable[Row]) -> None:
    """Adds rows, all or none of them, which are on the disk when this returns."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = out / "results.jsonl"
    try:
        before = file.stat().st_size if file.exists() else 0
        try:
            with file.open("ab", buffering=0) as written:
                while text:
                    text = text[written.write(text) :]
                os.fsync(written.fileno())
        except OSError:
            os.truncate(file, before)
            raise
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None


def write(file: Path, text: str) -> None:
    """Writes a text file under a temporary name and renames it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(file)


def commit() -> str:
    """Returns the git commit of the working directory, `-dirty` if changed, or `unknown`."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(
            asked, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

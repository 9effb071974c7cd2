"""A folder of tasks: one file for each, added and removed in one step of the file system.

Every file is written whole under a temporary name and then linked to its own, so that
another process sees all of a task or nothing, and of two that add one name the first has
it. There is no index: adding a task costs the same whatever is there. Tasks are
bytes here: listing and copying them needs no array library.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from subtune_jax.errors import InputError, unknown

SUFFIX = ".delta"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Store:
    """The tasks of a folder, by name."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    def __iter__(self) -> Iterator[str]:
        """Yields the names of the tasks, in order; no task is read."""
        if not self.folder.is_dir():
            return iter(())
        with os.scandir(self.folder) as entries:
            files = [entry.name for entry in entries]
        return iter(
            sorted(
                file.removesuffix(SUFFIX)
                for file in files
                if file.endswith(SUFFIX) and NAME.fullmatch(file)
            )
        )

    def file(self, name: str) -> Path:
        """Returns the file of a task; raises `InputError` for what cannot be a name."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a task: expected letters, digits, '.', '_' and '-'"
            )
        return self.folder / f"{name}{SUFFIX}"

    def add(self, name: str, data: bytes, *, replace: bool = False) -> Path:
        """Writes a task's bytes (`deltas.to_bytes`), and returns its file.

        Raises `InputError` where there is a task of that name, unless it is to be
        replaced, and where the folder cannot be written.
        """
        if not isinstance(data, bytes):
            raise InputError(
                f"a store keeps bytes, got {type(data).__name__}: give to_bytes(delta)"
            )
        file = self.file(name)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            if replace:
                temporary.replace(file)
            elif not _linked(temporary, file):
                raise InputError(
                    f"{self.folder} has a task {name!r}: give another name, or "
                    "replace=True"
                )
        except OSError as error:
            raise InputError(
                f"cannot write to {self.folder}: {error.strerror or error}"
            ) from None
        finally:
            with suppress(OSError):
                temporary.unlink()
        return file

    def get(self, name: str) -> bytes:
        """Returns a task's bytes; raises `InputError`, with the nearest name, for none."""
        try:
            return self.file(name).read_bytes()
        except FileNotFoundError:
            raise self._unknown(name) from None
        except OSError as error:
            raise InputError(
                f"cannot read {self.file(name)}: {error.strerror or error}"
            ) from None

    def remove(self, name: str) -> None:
        """Removes a task; raises `InputError`, with the nearest name, where there is none."""
        try:
            self.file(name).unlink()
        except FileNotFoundError:
            raise self._unknown(name) from None
        except OSError as error:
            raise InputError(
                f"cannot remove {self.file(name)}: {error.strerror or error}"
            ) from None

    def _unknown(self, name: str) -> InputError:
        names = list(self)
        if not self.folder.is_dir():
            return InputError(f"there is no folder {self.folder}")
        if not names:
            return InputError(f"{self.folder} has no tasks")
        return unknown("task", name, names)


def _linked(temporary: Path, file: Path) -> bool:
    """Gives a file its second name, unless that is taken: unlike a rename, it never
    replaces another process's file."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        return False
    return True

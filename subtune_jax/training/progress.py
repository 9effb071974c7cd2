"""A line that shows where a run stands: steps, loss, score and the time left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from subtune_jax.training.watch import History


class Bar:
    """The bar of one run."""

    def __init__(self, progress: Progress, total: int):
        self.progress = progress
        self.task = progress.add_task("fit", total=total)

    def update(self, step: int, history: History) -> None:
        """Shows the step, the loss of the last epoch and the best score so far."""
        text = "fit"
        if history.epochs:
            text += f" loss {history.epochs[-1].loss:.4g}"
        if history.scores:
            text += f" score {history.scores[-1]:.4g}"
        self.progress.update(self.task, completed=step, description=text)


def columns() -> tuple[ProgressColumn, ...]:
    """Returns what a bar shows: what runs, how much is done, time taken and left."""
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


@contextmanager
def bar(total: int, show: bool | None) -> Iterator[Bar]:
    """Yields the bar of a run of `total` steps; shown on a terminal, or as `show` says."""
    shown = sys.stderr.isatty() if show is None else show
    console = Console(stderr=True)
    with Progress(*columns(), console=console, disable=not shown) as progress:
        yield Bar(progress, total)

"""A study is a value; the one runner here does the rest for all of them."""

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from absl import logging
from rich.console import Console
from rich.progress import Progress

from experiments.common.flags import as_config, checked, groups, resolved
from experiments.common.report import results
from experiments.common.report.results import Row
from subtune_jax.deltas import Store, extract, to_bytes
from subtune_jax.errors import InputError
from subtune_jax.network import Network
from subtune_jax.training.progress import columns

# Flags that do not change what a run is: where things are, and how many there are.
FREE = ("seeds", "data_dir", "weights", "lanes")
UNSAVED = ("out", "cost", "keep")
Config = Mapping[str, Any]  # all flags of a folder, flat, as JSON values


class Context(NamedTuple):
    """What a job sees beside its task: the rows of earlier jobs, a folder of its own for
    checkpoints, `progress(text)`, which is shown at once, `keep(base, tuned, row,
    *names)`, which writes the delta of a chosen network with its test row (under
    `--keep`; names tell the networks of one job apart), and the study's folder."""

    earlier: Sequence[Row]
    folder: Path
    progress: Callable[[str], None]
    keep: Callable[..., None]
    out: Path


def no_picture(out: Path, rows: Sequence[Row], settings: Any, task: Any) -> None:
    """Draws nothing: the tables say all."""


class Study(NamedTuple):
    """One experiment: its flags, its jobs, and what their rows show.

    settings: a frozen dataclass of flag groups, with a group `common` and, for a study of
    a task, `target`. job: a NamedTuple; its fields stand in all rows of the job, and it
    has a `seed` (and a `shift`). jobs(settings, task) -> the jobs in their order, given
    the first task; raises `InputError` for what cannot be, before a file is written.
    rows(settings, task, job, context) -> the rows of one job. tables: `{name:
    table(rows, config) -> markdown}`; the first one is the folder's summary, the others
    are for the documentation. draw(out, rows, settings, task) writes pictures. free:
    flags that add jobs and change none. older: `{flag: value}` for folders that were
    written before the flag existed. cost(settings, task) -> the table of `--cost`. keeps:
    whether the jobs call `context.keep`. draws_once: whether all seeds see the task of the
    first, so that what was chosen on its data is never tested on them.
    """

    name: str
    settings: type
    job: type
    jobs: Callable[[Any, Any], Iterable]
    rows: Callable[[Any, Any, Any, Context], Iterable[Row]]
    tables: Mapping[str, Callable[[Sequence[Row], Config], str]]
    draw: Callable[[Path, Sequence[Row], Any, Any], None] = no_picture
    free: tuple[str, ...] = ()
    older: Mapping[str, Any] = {}
    cost: Callable[[Any, Any], str] | None = None
    keeps: bool = False
    draws_once: bool = False


def main(study: Study, doc: str) -> None:
    """Reads the flags and runs the study; bad input is one sentence, exit code 2."""
    logging.set_verbosity(logging.FATAL)  # TFDS and Orbax log; what matters is raised
    try:
        run(study, tyro.cli(study.settings, description=doc))
    except InputError as error:
        _stop(f"error: {error}", 2)
    except BrokenPipeError:  # `--help | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        about = f"{error.strerror}: {error.filename}" if error.strerror else error
        _stop(f"error: {about}", 2)
    except KeyboardInterrupt:
        # XLA may be compiling in a thread of its own, and would crash while Python takes
        # itself down. All rows are on the disk and the folder's lock is released.
        sys.stdout.flush()
        print("stopped: the same command continues", file=sys.stderr, flush=True)
        os._exit(130)


def run(study: Study, settings: Any) -> None:
    """Runs the jobs that the folder does not have, then writes its summary and pictures."""
    checked(settings)
    if settings.common.keep and not study.keeps:
        raise InputError(f"{study.name} chooses no network to keep: leave --keep out")
    target = getattr(settings, "target", None)
    settings = resolved(settings, target is None or target.embedded)
    target, common = getattr(settings, "target", None), settings.common

    # One task at a time: the jobs of a shift and a seed come one after the other.
    @lru_cache(1)
    def task_of(shift: str | None, seed: int) -> Any:
        return None if target is None else target.task(common, shift, seed)

    shifts = (None,) if target is None else target.shifts
    first = task_of(shifts[0], 0)
    jobs = list(dict.fromkeys(study.jobs(settings, first)))
    if common.cost:
        print(_cost(study, settings, first))
        return
    out = common.out or Path("runs") / study.name
    config = config_of(settings) | {"base": target and target.fingerprint(common)}
    with results.lock(out):
        older = older_of(settings) | dict(study.older)
        rows = results.open_folder(out, config, {*FREE, *study.free}, older)
        done = {job_of(study, row) for row in rows if row["split"] != "validation"}
        # A job that a kill cut short is done again: its rows go.
        rows = [row for row in rows if job_of(study, row) in done]
        results.keep(out, rows)
        todo = [job for job in jobs if job not in done]
        for job, say in _announced(study.name, todo, rows):
            folder = out / "checkpoints" / slug(job)
            failed: list[InputError] = []
            kept = _nothing_kept
            if common.keep:
                kept = _keeper(out / "deltas", job, failed)
            context = Context(tuple(rows), folder, say, kept, out)
            seed = 0 if study.draws_once else getattr(job, "seed", 0)
            task = task_of(getattr(job, "shift", None), seed)
            new = [
                job._asdict() | {"experiment": study.name} | row
                for row in study.rows(settings, task, job, context)
            ]
            results.append(out, new)
            if failed:  # only now: a delta that cannot be written loses no row
                raise failed[0]
            shutil.rmtree(folder, ignore_errors=True)
            rows += new
        report(study, out, rows, settings, first)


def report(
    study: Study, out: Path, rows: Sequence[Row], settings: Any, task: Any
) -> None:
    """Writes the summary and the pictures of a folder, and prints the summary."""
    text = summary(study, rows, config_of(settings))
    results.write(out / "summary.md", f"{text}\n")
    study.draw(out, rows, settings, task)
    files = sorted(out.glob("*.png"))
    names = [out / "summary.md", *files, out / "results.jsonl"]
    print(f"{text}\n\n{'  '.join(map(str, names))}")


def older_of(settings: Any) -> dict[str, Any]:
    """Returns the values of flags in folders that were written before their groups had
    them."""
    values: dict[str, Any] = {}
    for group in groups(settings):
        values |= getattr(type(group), "OLDER", {})
    return values


def config_of(settings: Any) -> dict[str, Any]:
    """Returns the flags that a folder remembers."""
    return {k: v for k, v in as_config(settings).items() if k not in UNSAVED}


def summary(study: Study, rows: Sequence[Row], config: Config) -> str:
    """Returns what summary.md says of the rows of a folder."""
    return next(iter(study.tables.values()))(rows, config)


def job_of(study: Study, row: Row) -> Any:
    """Returns the job that wrote a row."""
    return study.job(*(row[name] for name in study.job._fields))


def task_name(job: tuple) -> str:
    """Returns a job's name for its delta, where no two jobs have the same."""
    plain = "-".join(map(str, job))
    if slug(job) == plain and plain[0].isalnum():
        return plain
    digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
    return f"{slug(job).strip('_-')}-{digest}".strip("-")


def slug(job: tuple) -> str:
    """Returns a job's name for a folder."""
    return re.sub(r"[^a-zA-Z0-9-]", "_", "-".join(map(str, job)))


def choice_of_first_seed(job: Any, context: Context, choose: str) -> Row | None:
    """Returns the first seed's test row, whose choice this job takes.

    `None` if the job chooses for itself: `choose` is `each`, it is the first seed, or
    every run of the first seed diverged.
    """
    if choose == "each" or job.seed == 0:
        return None
    wanted = job._replace(seed=0)._asdict().items()
    row = next(
        r for r in context.earlier if r["split"] == "test" and wanted <= r.items()
    )
    chosen = row["value"] is not None and row["learning_rate"] is not None
    return row if chosen else None


def _cost(study: Study, settings: Any, task: Any) -> str:
    if study.cost is None:
        raise InputError(
            f"{study.name} has no table of costs (Study.cost): leave --cost out"
        )
    return study.cost(settings, task)


def _keeper(folder: Path, job: Any, failed: list[InputError]) -> Callable[..., None]:
    """Returns the function that adds a job's delta to a folder of tasks, or its error to
    those of the job."""

    def keep(base: Network, tuned: Network, row: Row, *names: str, **form: Any) -> None:
        about = {
            "selection": job._asdict() | {"learning_rate": row["learning_rate"]},
            "metrics": {row["metric"]: row["value"]},
        }
        try:
            delta = extract(base, tuned, **about, **form)
            Store(folder).add(task_name((*job, *names)), to_bytes(delta), replace=True)
        except InputError as error:
            failed.append(error)

    return keep


def _nothing_kept(
    base: Network, tuned: Network, row: Row, *names: str, **form: Any
) -> None:
    pass


def _announced(
    name: str, jobs: Sequence[tuple], rows: Sequence[Row]
) -> Iterator[tuple[tuple, Callable[[str], None]]]:
    """Yields the jobs, each with a function that shows what it does.

    On a terminal there is one bar. Elsewhere a line follows every job, with its score, its
    seconds and the time left by the mean of the jobs so far.
    """
    silent = not sys.stderr.isatty()
    began = time.perf_counter()
    with Progress(*columns(), console=Console(stderr=True), disable=silent) as bar:
        shown = bar.add_task(name, total=len(jobs))
        for number, job in enumerate(jobs, start=1):
            label = f"{name} {' '.join(map(str, job))}"
            begin, before = time.perf_counter(), len(rows)

            def say(text: str, label: str = label) -> None:
                bar.update(shown, description=f"{label}: {text}")
                if silent:
                    print(f"{label}: {text}", file=sys.stderr)

            yield job, say
            bar.update(shown, advance=1, description=label)
            if silent:
                now = time.perf_counter()
                left = (now - began) / number * (len(jobs) - number)
                score = _score(rows[before:])
                print(
                    f"{label}: {score}{now - begin:.0f} s, {number} of {len(jobs)}, "
                    f"{_duration(left)} left",
                    file=sys.stderr,
                )


def _score(rows: Sequence[Row]) -> str:
    tests = [row["value"] for row in rows if row["split"] == "test"]
    return "" if not tests or tests[0] is None else f"{tests[0]:.1f}, "


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)

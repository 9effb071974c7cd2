"""What lies between a pretrained network and what two ways of fine-tuning make of it (FAST,
Varno et al. 2020).

Claim (their abstract, in our words): the geometry of source and target loss shows why one
way of transfer forgets what another keeps.

    python -m experiments.fast_landscape      # embedded digits
    python -m experiments.fast_landscape --dataset cifar100 --new-head \\
        --weights resnet20_cifar10 --data-dir DATA --steps 300

One CPU core: two minutes. The plane goes through the body of the base (the origin), of ordinary
fine-tuning (on the x axis) and of FAST, in units of the L2 norm of their weights. The
source loss is that of the kept head on raw features; the target loss that of a head which
is refitted at every point to the training part, on validation data. Norms have stored
statistics, or such as are refitted at every point. The paper's recipe for its pictures is
not known: this one is ours.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import numpy as np

import subtune_jax as st
from experiments.common.adaptation import Recipe, RecipeFlags, adapted
from experiments.common.flags import Common, Flags, Positive, one_of
from experiments.common.images import TargetFlags
from experiments.common.report import results
from experiments.common.report.plots import surfaces
from experiments.common.report.results import Row
from experiments.common.source import (
    SourceFlags,
    SourceTask,
    new_task,
    require_runnable,
    source_of,
    with_contrast,
)
from experiments.common.strategies import STRATEGIES
from experiments.common.study import Config, Context, Study, main

PAIR = ("torch", "fast")  # ordinary fine-tuning and FAST
NAMES = {"torch": "ordinary", "fast": "FAST"}


def one_rate() -> Recipe:
    """Returns the flags of training: both ways have the same learning rate."""
    return Recipe(learning_rates=(3e-3,))


@dataclass(frozen=True)
class Settings:
    """Flags; a default without a source is our choice."""

    target: TargetFlags = field(default_factory=new_task)
    points: Positive[int] = 11
    """Points of the plane along each axis."""
    statistics: Annotated[tuple[str, ...], *one_of("stored", "refit")] = ("stored",)
    """Statistics of the norms at a point: those between the three networks', or refitted to
    the training part (of a network with batch norms)."""
    source: SourceFlags = field(default_factory=SourceTask)
    recipe: RecipeFlags = field(default_factory=one_rate)
    common: Flags = field(default_factory=Common)

    SMOKE: ClassVar = {"points": 2}

    completed = with_contrast


LossesOf = Callable[[st.Network], tuple[float, float]]


class Job(NamedTuple):
    """A plane under a seed."""

    shift: str | None
    seed: int
    statistics: str


def jobs(settings: Settings, task: st.Task) -> Iterator[Job]:
    """Returns a plane for every target, seed and kind of statistics."""
    require_runnable(settings, task, [STRATEGIES[name] for name in PAIR])
    if len(settings.recipe.learning_rates) != 1:
        raise st.InputError(
            "--learning-rates needs one value here: both ways are tuned at the same rate"
        )
    if settings.points < 2:
        raise st.InputError("--points must be 2 or more: a plane has two axes")
    if "refit" in settings.statistics and not any(task.network.stats.values()):
        raise st.InputError(
            "--statistics refit is for networks with batch norms: this one stores none"
        )
    for shift in settings.target.shifts:
        for seed in range(settings.common.seeds):
            for statistics in settings.statistics:
                yield Job(shift, seed, statistics)


def rows(
    settings: Settings, task: st.Task, job: Job, context: Context
) -> Iterator[Row]:
    """Yields the plane, and the distances and losses of its networks."""
    target = settings.target
    base, held = source_of(target, settings.source, settings.common, job.shift)
    about = {"dataset": target.dataset, "task": target.name_of(job.shift)}
    about |= {"commit": results.commit(), "steps": settings.recipe.steps}
    about |= {"total_params": st.tree.count(base.params)}
    began = time.perf_counter()
    tuned = {name: tuned_by(name, settings, task, job, context) for name in PAIR}
    bodies = {"base": base}
    bodies |= {name: st.evaluation.with_head(n, base) for name, n in tuned.items()}
    losses = losses_of(task, held, job.statistics)
    plane = st.evaluation.plane(*bodies.values())
    yield about | surface_of(plane, settings.points, losses)
    for name, network in bodies.items():
        loss, own = losses(network), tuned.get(name)
        test = own and st.test_once(partial(st.predict, own), task)
        about |= {"seconds": time.perf_counter() - began}
        yield about | row_of(name, network, base, loss, task, test)


def tuned_by(
    name: str, settings: Settings, task: st.Task, job: Job, context: Context
) -> st.Network:
    """Returns the network that a strategy tunes; raises `InputError` if it diverges."""
    (rate,) = settings.recipe.learning_rates
    strategy, mesh = STRATEGIES[name], settings.common.mesh
    run, _ = adapted(task, strategy, settings.recipe, rate, job.seed, mesh)
    if not isinstance(run, st.FitResult):
        raise st.InputError(f"{name} diverged at --learning-rates {rate}: lower it")
    score = st.evaluate(run.network, task.validation)
    context.progress(f"{NAMES[name]} ended at {score:.1f} on validation data")
    return run.network


def surface_of(plane: Any, points: int, losses: LossesOf) -> Row:
    """Returns the losses at points x points of a plane, a quarter wider than its corners."""
    corners = np.array(plane.corners)
    low, high = corners.min(axis=0), corners.max(axis=0)
    edge = 0.25 * (high - low)
    xs, ys = np.linspace(low - edge, high + edge, points).T
    grids = np.array([[losses(plane.at(x, y)) for x in xs] for y in ys])
    return {
        "split": "plane",
        "value": None,
        "xs": xs.tolist(),
        "ys": ys.tolist(),
        "corners": corners.tolist(),
        "source": grids[..., 0].round(4).tolist(),
        "target": grids[..., 1].round(4).tolist(),
    }


def row_of(
    name: str,
    network: st.Network,
    base: st.Network,
    losses: tuple[float, float],
    task: st.Task,
    test: dict[str, float] | None,
) -> Row:
    """Returns the losses of a network with the base's head, how far it is from the base,
    and the test score of the network as it was tuned (`None`: it was not)."""
    return {
        "split": "test",
        "method": NAMES.get(name, name),
        "metric": task.metric,
        "trainable_params": st.tree.count(network.params) if test else 0,
        "value": test[task.metric] if test else None,
        "source": losses[0],
        "target": losses[1],
        "distances": st.evaluation.distances(network, base),
        "cka": cka(network, base, task.validation),
    }


def losses_of(task: st.Task, held: st.Dataset, statistics: str) -> LossesOf:
    """Returns the function network -> (source loss, target loss)."""

    def losses(network: st.Network) -> tuple[float, float]:
        if statistics == "refit":
            size = min(256, len(task.train.y))
            network = st.evaluation.refit_statistics(
                network, task.train, batch_size=size
            )
        classes = task.network.params["head"]["kernel"].shape[1]
        refitted = st.evaluation.refit_head(network, task.train, classes)
        return loss_of(network, held), loss_of(refitted, task.validation)

    return losses


def loss_of(network: st.Network, data: st.Dataset) -> float:
    """Returns the mean cross-entropy of a network on data."""
    return st.evaluate(network, data, mean_cross_entropy)


def mean_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns -log softmax(logits)[label], the mean over the examples."""
    return float(st.losses.cross_entropy(jax.numpy.asarray(logits), labels).mean())


def cka(network: st.Network, base: st.Network, data: st.Dataset) -> float:
    """Returns the CKA of a network's features with those of the base."""
    one, other = (st.predict(st.evaluation.body(n), data) for n in (network, base))
    return st.evaluation.linear_cka(one, other)


COLUMNS = (
    "task",
    "statistics",
    "network",
    "source loss",
    "target loss, head refitted",
    "test accuracy",
    "distance",
    "CKA with the base",
)


def summary(rows: Sequence[Row], config: Config) -> str:
    """Returns losses and distances of the networks of each plane, means over seeds."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    tests = [row for row in rows if row["split"] == "test"]
    kinds = dict.fromkeys((r["task"], r["statistics"], r["method"]) for r in tests)
    for kind in kinds:
        group = [r for r in tests if (r["task"], r["statistics"], r["method"]) == kind]
        values = [np.mean([r[name] for r in group]) for name in ("source", "target")]
        scores = [r["value"] for r in group if r["value"] is not None]
        distance = np.mean([np.linalg.norm([*r["distances"].values()]) for r in group])
        cells = [f"{value:.3f}" for value in values]
        cells += [f"{np.mean(scores):.1f}" if scores else ""]
        cells += [f"{distance:.2f}", f"{np.mean([r['cka'] for r in group]):.3f}"]
        lines.append(f"| {' | '.join([*kind, *cells])} |")
    return "\n".join(lines)


def draw(out: Path, rows: Sequence[Row], settings: Any, task: st.Task) -> None:
    """Draws landscape.png: source and target loss on the planes of the first seed."""
    panels = {}
    for row in rows:
        if row["split"] == "plane" and row["seed"] == 0:
            points = dict(zip(("base", *NAMES.values()), row["corners"], strict=True))
            refit = " at refitted statistics" * (row["statistics"] == "refit")
            for name, dark in (("source", "remembered"), ("target", "learned")):
                title = f"{row['task']}: {name} loss{refit} (dark: {dark})"
                panels[title] = (row["xs"], row["ys"], row[name], points)
    if panels:
        along = "distance from the base, towards ordinary fine-tuning"
        surfaces(panels, out / "landscape.png", along, "distance, towards FAST")


STUDY = Study(
    settings=Settings,
    job=Job,
    name="fast_landscape",
    jobs=jobs,
    rows=rows,
    tables={"summary": summary},
    draw=draw,
    free=("shift", "statistics"),
)

if __name__ == "__main__":
    main(STUDY, __doc__)

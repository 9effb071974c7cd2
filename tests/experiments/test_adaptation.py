"""Strategies for a new head: what they share, and what their curves are compared by."""

import re
from dataclasses import replace

import pytest

from experiments import fast_adaptation, fast_landscape
from experiments.common import curve_tables, diff_tables, source
from experiments.common.adaptation import CURVES
from experiments.common.flags import Common, resolved
from experiments.common.images import Target
from experiments.common.report import results
from experiments.common.strategies import STRATEGIES, phases_of
from subtune_jax.demo.digits import digits_task
from subtune_jax.errors import InputError
from subtune_jax.network import Source


def row(method, seed, *points, **more):
    """Returns a test row whose curve goes through (step, target, source)."""
    zeros = [0.0] * (len(CURVES) - 2)
    curve = [[step, target, kept, *zeros] for step, target, kept in points]
    about = {"split": "test", "task": "t", "classes": 10, "value": 50.0}
    return about | {"method": method, "seed": seed, "curve": curve} | more


GOOD = row("good", 0, (0, 10, 90), (1, 40, 88), (2, 80, 70))
BETTER = row("better", 0, (0, 10, 90), (1, 79.5, 80), (2, 79.5, 60))
SLOW = row("slow", 0, (0, 10, 90), (1, 20, 90), (2, 30, 90))


def test_sources_are_compared_where_all_that_end_well_have_been():
    """Both good ones end within a point; the lower of their highest values is 79.5."""
    groups = curve_tables.tested([GOOD, BETTER, SLOW], "t")
    assert curve_tables.equal_level(groups, 0) == 79.5
    drops = {
        method: curve_tables.measured(groups, rows[0])["drop at equal target"]
        for method, rows in groups.items()
    }
    assert drops == {"good": 20, "better": 10, "slow": None}
    assert curve_tables.measured(groups, GOOD)["drop when learning"] == 2


def test_runs_that_diverged_show():
    lost = row("good", 1) | {"value": None}
    table = curve_tables.by_strategy([GOOD, lost, row("gone", 0)], {})
    (good,) = [line for line in table.splitlines() if "| good |" in line]
    assert "50.0, 1 of 2" in good and "| t | gone | all of 1 diverged |" in table


def test_older_rows_of_sparse_differences_have_their_task_in_their_name():
    assert diff_tables.of({"task": "stsb, pearson"}) == "stsb"
    assert diff_tables.of({"task": "a, b", "of": "a, b"}) == "a, b"


def test_no_image_of_the_source_is_one_of_the_target_s():
    target = Target(shift=("none",), train_examples=100, validation_examples=256)
    network, held = source.source_of(target, source.SourceTask(), Common(), "none")
    task = digits_task("none", 0, sizes=target.sizes)
    seen = {
        image.tobytes() for part in (task.train, task.validation) for image in part.x
    }
    assert not seen & {image.tobytes() for image in held.x}
    assert network.params["head"]["kernel"].shape[1] == 10 and len(held.y) == 256


def test_a_source_with_the_images_of_a_corrupted_target_is_refused(monkeypatch):
    classes = source.CIFAR10
    network = digits_task("none", 0).network._replace(source=Source(classes=classes))
    monkeypatch.setattr(source, "loaded", lambda weights: network)
    target = Target(dataset="cifar10_corrupted/gaussian_noise_5", split="test")
    with pytest.raises(InputError, match="has the images of cifar10's test split"):
        source.source_of(target, source.SourceTask(), Common(weights="w"), "none")
    other = network._replace(source=Source(classes=("a", "b")))
    monkeypatch.setattr(source, "loaded", lambda weights: other)
    with pytest.raises(InputError, match="--source-dataset names the images"):
        source.source_of(target, source.SourceTask(), Common(weights="v"), "none")


def test_all_strategies_have_as_many_updates_and_a_batch_of_one_is_refused():
    settings = resolved(fast_adaptation.Settings(), embedded=True)
    network = digits_task("contrast", 0).network
    for strategy in STRATEGIES.values():
        phases = phases_of(network, strategy, "adam", 100, 1e-3)
        assert sum(phase.steps for phase in phases) == 100
    one = replace(settings, recipe=replace(settings.recipe, batch_size=1))
    task = digits_task("contrast", 0)
    with pytest.raises(InputError, match="a batch of 1 leaves none"):
        source.require_runnable(one, task, [STRATEGIES["fast"]])


@pytest.mark.slow
def test_of_several_rates_the_best_alone_has_a_curve_and_it_is_that_of_its_run(
    call, tmp_path
):
    flags = "--steps 10 --strategies fast --learning-rates 1e-4 3e-3 --seeds 1"
    assert not call(fast_adaptation, flags)
    *tries, test = results.read(tmp_path / "out")
    assert [row["split"] for row in tries] == ["validation"] * 2
    assert not any("curve" in row for row in tries)
    best = max(tries, key=lambda row: row["value"])
    assert test["learning_rate"] == best["learning_rate"] == 3e-3
    last = test["curve"][-1]
    assert last[0] == 10 and last[1] == pytest.approx(best["value"], rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--points 1", "--points must be 2 or more"),
        ("--statistics refit", "is for networks with batch norms"),
        ("--learning-rates 1e-3 3e-3", "needs one value here"),
        ("--strategies fst", "unrecognized|Unrecognized"),
    ],
)
def test_a_plane_that_cannot_be_is_said_before_a_file_is_written(
    call, tmp_path, capsys, flags, message
):
    assert call(fast_landscape, flags) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()

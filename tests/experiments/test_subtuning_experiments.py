"""The studies of SubTuning: profiles, searches that were killed, what flags cannot be."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import subtune_jax as st
from experiments import (
    subtuning_greedy,
    subtuning_profile,
    subtuning_variants,
    surgical_shifts,
)
from experiments.common.flags import Common
from experiments.common.search_tables import by_search, regret
from experiments.common.subtuning import Recipe, new_task, phase, scorer, tuned

TWO = "--shift contrast --units block1_0 block3_0"


def rows(out: Path) -> list[dict]:
    text = (out / "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_profile_has_every_fold_of_every_unit(call, tmp_path, capsys):
    assert call(subtuning_profile, f"--smoke {TWO}") == 0
    out = tmp_path / "out"
    tuned = [row["tuned"] for row in rows(out)]
    assert tuned == ["head alone", "all blocks", "block1_0", "block3_0"]
    for row in rows(out):
        assert row["split"] == "folds" and len(row["values"]) == 2
        assert row["value"] == np.mean(row["values"]) and row["flops"] > 0
    assert (out / "profile.png").stat().st_size > 5000
    assert "| block3_0 |" in (out / "summary.md").read_text()
    shown = capsys.readouterr().err
    assert "block1_0, fold 1: " in shown and "at most 0 min left" in shown
    before = (out / "results.jsonl").read_bytes()
    assert call(subtuning_profile, f"--smoke {TWO}") == 0
    assert (out / "results.jsonl").read_bytes() == before
    # A journal alone is not taken for one of other data.
    for name in ("config.json", "results.jsonl"):
        (out / name).unlink()
    assert call(subtuning_profile, f"--smoke {TWO} --train-examples 60") == 2
    assert "of another search: train_examples 100 (now 60)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "flags", "problem"),
    [
        (subtuning_greedy, "--units block9_0", "'block9_0' matches no unit"),
        (subtuning_greedy, "--folds 1", "folds must be from 2 to 100 here, got 1"),
        (subtuning_greedy, "--folds 11", "11 folds need 11 examples of every class"),
        (subtuning_greedy, "--searches random", "unknown --searches 'random'"),
        (subtuning_greedy, "--parts vtab", "--parts and --resize are for real data"),
        (
            subtuning_profile,
            "--pairs --window 2",
            "--pairs takes the place of --window",
        ),
        (subtuning_profile, "--window 4", "a run of 4 units is longer than the 3"),
        (subtuning_variants, "--variants quantised", "unknown variant 'quantised'"),
        (subtuning_variants, "--queries 20 200", "ends with 200 labels: there are 100"),
        (subtuning_variants, "--tuned block7", "'block7' matches no unit"),
        (subtuning_variants, "--queries 50 20", "--queries must rise, got 50 20"),
        (subtuning_variants, "--network-norm group", "'block3_0' has group norms"),
        (
            surgical_shifts,
            "--dataset cifar100 --weights w --parts vtab",
            "vtab is for studies that choose by folds",
        ),
        (
            subtuning_greedy,
            "--dataset cifar100 --weights w --split test[:200]",
            "--split test[:200] and --test-split test may share images",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    call, tmp_path, capsys, module, flags, problem
):
    assert call(module, f"--shift contrast {flags}") == 2
    assert problem in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def found(task, method, seed, value, split="test", **more):
    row = {"task": task, "method": method, "seed": seed, "value": value}
    return row | {"split": split, **more}


def test_regret_is_the_mean_paired_difference_with_its_interval():
    values = {"exhaustive": (60.0, 62.0, 61.0), "cheap": (59.0, 62.0, 60.0)}
    tests = [
        found("t", f"SubTuning, {name}", seed, value)
        for name, scores in values.items()
        for seed, value in enumerate(scores)
    ]
    # Differences 1, 0, 1: mean 2/3, standard error 1/3, t(2) = 4.303.
    assert regret(tests, {"task": "t"}, "cheap") == "0.67 (-0.77 to 2.10)"
    assert regret(tests, {"task": "t"}, "exhaustive") == ""
    searches = [
        found(
            "t", f"search {name}", 0, 50.0, "search", units=["a"], runs=9, flops=flops
        )
        for name, flops in (("exhaustive", 8e12), ("cheap", 1e12))
    ]
    assert by_search([*searches, *tests], {}).splitlines()[-1] == (
        "| t | cheap | a | 50.0 | 9 | 1.00 | 0.12 | 0.67 (-0.77 to 2.10) |"
    )
    lost = found(
        "t", "search exhaustive", 0, None, "search", units=[], runs=5, flops=1e12
    )
    assert "| diverged |" in by_search([lost], {})


def test_a_folder_has_no_splits_and_its_parts_are_disjoint(tmp_path, real_data):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(20):
            pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    weights = str(real_data / "weights" / "resnet20_cifar10")
    target = replace(
        new_task(),
        dataset=str(tmp_path),
        new_head=True,
        train_examples=10,
        validation_examples=4,
    )
    task = target.task(Common(weights=weights), "none", 0)
    assert task.network.params["head"]["bias"].shape == (2,)
    assert len(task.test) == 26
    seen = {
        image.tobytes() for part in (task.train, task.validation) for image in part.x
    }
    shown = []
    st.test_once(lambda data: shown.append(data.x) or np.zeros((26, 2)), task)
    assert len(seen) == 14 and not seen & {image.tobytes() for image in shown[0]}


def test_a_search_trains_as_the_subset_does_afterwards():
    """Of a network with batch norms: those of the tuned block use the batch."""
    task = st.demo.digits_task("contrast", norm="batch")
    recipe, units = Recipe(epochs=1, batch_size=32, folds=2), ("block3_0",)
    first, second = st.data.balanced_folds(task.train.y, 2, 0)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    result = st.fit(
        task.network,
        phase(task.network, units, recipe, 1),
        task.train.take(second),
        key=key,
        settings=st.Settings(norm="tuned", batch_size=32),
    )
    prints = {st.tree.fingerprint(n.stats) for n in (result.network, task.network)}
    assert len(prints) == 2
    value = st.evaluate(result.network, task.train.take(first))
    assert scorer(task, recipe, lambda text: None)(units, 0, 0).value == value


def test_a_head_alone_scores_the_same_on_shared_features():
    """Of a network with batch norms: neither way drops the ragged batch of a run in which
    no norm trains."""
    task = st.demo.digits_task("contrast", norm="batch")
    recipe = Recipe(epochs=2, batch_size=32, folds=2)
    alone, shared = (
        scorer(task, recipe, lambda text: None, share=share)((), 0, 0)
        for share in (False, True)
    )
    assert alone.value == shared.value
    result = tuned(task, recipe, (), 0)
    assert (
        result.epochs[-1].step == 2 * 4
    )  # 100 images: three batches of 32 and a ragged one
    assert tuned(task, recipe, ("block3_0",), 0).epochs[-1].step == 2 * 3

"""Smoke runs, effects of flags and errors of the smaller surgical experiments."""

import json
import re
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from experiments import (
    surgical_scores,
    surgical_shifts,
    surgical_size,
    surgical_test_time,
    surgical_theory,
)
from experiments.common.flags import Common
from experiments.common.images import Target
from experiments.common.pools import image_pool
from experiments.common.report.results import read as rows
from subtune_jax import tree
from subtune_jax.models.load import load_pretrained
from subtune_jax.models.resnet import ResNetConfig, resnet
from tests import toy
from tests.data.test_breeds import EDGES, LEAVES

pytestmark = pytest.mark.slow


def final(folder):
    return [row for row in rows(folder) if row["split"] == "test"]


def test_sizes_train_on_as_many_images_and_at_least_the_fewest_steps(call, tmp_path):
    flags = (
        "--shift contrast --methods last --seeds 1 --epochs 2 --tries 1 --min-steps 5"
    )
    assert call(surgical_size, f"{flags} --sizes 10 100") == 0
    found = {row["size"]: row["steps"] for row in final(tmp_path / "out")}
    assert found == {10: 5, 100: 10}  # batches of 20: 5 epochs of 1, 2 epochs of 5


def test_smaller_sizes_are_parts_of_larger_ones_and_the_test_part_stays():
    task = Target(train_examples=100).task(Common(), "contrast", 0)
    parts = {size: surgical_size.sized(task, size, 0) for size in (10, 30, 100)}
    rows = {n: {x.tobytes() for x in part.train.x} for n, part in parts.items()}
    assert [len(rows[n]) for n in (10, 30, 100)] == [10, 30, 100]
    assert rows[10] < rows[30] < rows[100]
    assert np.bincount(parts[10].train.y).tolist() == [1] * 10
    for part in parts.values():
        assert part.test is task.test and part.validation is task.validation


def test_a_race_of_blocks_is_a_method_that_says_what_won_and_what_it_took(
    call, tmp_path
):
    flags = "--shift contrast --methods race --seeds 1 --train-examples 20"
    assert call(surgical_shifts, f"{flags} --epochs 4 --head-learning-rates 1e-2") == 0
    *ran, test = rows(tmp_path / "out")
    # Two rates of each block and of everything, one of the head, two strengths of L1-SP;
    # an image batch an epoch. One in four of the 11 has two epochs, and one of those four.
    assert len(ran) == 11
    assert sorted(row["steps"] for row in ran) == [1] * 8 + [2] * 2 + [4]
    assert test["split"] == "test" and test["method"] == "race"
    (winner,) = [row for row in ran if row["steps"] == 4]
    assert all(test[k] == winner[k] for k in ("tuned", "learning_rate", "setting"))
    assert 0.5 < test["full_runs"] < 6 and test["flops"] > 0


@pytest.mark.parametrize("module", [surgical_size, surgical_shifts])
def test_a_folder_of_diverged_runs_alone_is_said(call, capsys, module):
    flags = "--shift contrast --methods last --seeds 1 --epochs 1 --head-learning-rates 1e38"
    flags += " --sizes 100" if module is surgical_size else ""
    assert call(module, flags) == 0
    shown = [
        line for line in capsys.readouterr().out.splitlines() if "diverged |" in line
    ]
    assert shown[0].endswith("| 1 of 1 diverged |")


def test_scores_are_compared_with_a_given_profile(call, tmp_path):
    assert call(surgical_scores, "--shift label_flip --smoke") == 0
    measured = tmp_path / "out"
    other = tmp_path / "other"
    flags = f"--shift label_flip --smoke --profile {measured}"
    assert call(surgical_scores, flags, other) == 0
    assert {row["method"] for row in rows(other)} == {"scores"}
    assert (other / "summary.md").read_text() == (measured / "summary.md").read_text()


def test_scores_are_of_as_many_batches_as_asked(call, tmp_path):
    for batches in (1, 2):
        out = tmp_path / str(batches)
        assert (
            call(surgical_scores, f"--shift contrast --smoke --batches {batches}", out)
            == 0
        )
    one, two = (
        {
            (r["metric"], r["unit"]): r["value"]
            for r in rows(tmp_path / n)
            if "unit" in r
        }
        for n in "12"
    )
    assert one["rgn", "block1"] != two["rgn", "block1"]
    assert one["magnitude", "block1"] == two["magnitude", "block1"]


def test_a_stream_is_scored_image_by_image_and_rates_are_chosen_on_validation(
    call, tmp_path
):
    flags = "--methods block1 none --modes online --seeds 2 --choose first --copies 4"
    flags += (
        " --memo-learning-rates 1e-3 1e-1 --validation-examples 12 --test-examples 8"
    )
    assert call(surgical_test_time, flags) == 0
    found = rows(tmp_path / "out")
    tried = [r for r in found if r["split"] == "validation"]
    assert [(r["method"], r["seed"], r["learning_rate"]) for r in tried] == [
        ("block1", 0, 1e-3),
        ("block1", 0, 1e-1),
    ]
    best = max(tried, key=lambda row: row["value"])["learning_rate"]
    tests = [r for r in final(tmp_path / "out") if r["method"] == "block1"]
    assert [r["learning_rate"] for r in tests] == [best, best]
    for row in found:
        assert len(row["curve"]) == row["steps"] == (12 if row in tried else 8)
        assert row["curve"][-1] == pytest.approx(row["value"], abs=0.06)


def test_tent_under_batch_statistics_runs_by_batches(call, tmp_path):
    flags = (
        "--adaptations tent --modes online --methods norms none --seeds 1 --norm batch"
    )
    flags += " --network-norm batch --tent-batch-size 16 --test-examples 40"
    assert call(surgical_test_time, flags) == 0
    norms, none = final(tmp_path / "out")
    assert norms["status"] == "ok" and norms["steps"] == 40
    assert norms["trainable_params"] > 0 == none["trainable_params"]
    assert norms["value"] > none["value"]  # batch statistics repair much of the noise


def test_a_stream_that_diverges_keeps_what_it_had(call, tmp_path):
    flags = (
        "--methods all --modes online --seeds 1 --copies 4 --memo-learning-rates 1e30"
    )
    assert call(surgical_test_time, f"{flags} --test-examples 8") == 0
    (row,) = final(tmp_path / "out")
    assert (row["status"], row["value"]) == ("diverged", None) and row["steps"] < 8


def test_tries_and_the_choice_of_the_first_seed(call, tmp_path):
    flags = "--shift contrast --methods block1 auto_rgn l1_sp --seeds 2 --epochs 1"
    assert call(surgical_shifts, f"{flags} --tries 2 --choose first") == 0
    found = rows(tmp_path / "out")
    tried = {}
    for row in found:
        if row["split"] == "validation":
            one = (row["learning_rate"], row["setting"])
            tried.setdefault((row["method"], row["seed"]), []).append(one)
    assert tried["block1", 0] == [(1e-2, 0), (1e-3, 0)]
    assert tried["auto_rgn", 0] == [(1e-1, 0), (1e-2, 0)]
    assert tried["l1_sp", 0] == [(1e-2, 1e-4), (1e-2, 1e-3)]
    for row in final(tmp_path / "out"):
        chosen = (row["learning_rate"], row["setting"])
        assert tried[row["method"], 1] == [chosen]
    assert (tmp_path / "out" / "relative.png").exists() is False  # no `all` beside it


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (surgical_size, "--sizes 0", "--sizes must be a positive number, got 0"),
        (surgical_size, "--sizes", "--sizes needs at least one value"),
        (
            surgical_size,
            "--min-steps 0",
            "--min-steps must be a positive number, got 0",
        ),
        (surgical_size, "--train-examples 9", "--sizes says how many images train"),
        (surgical_size, "--methods blok1", "unknown method 'blok1'"),
        (surgical_size, "--sizes 9000", "9000 train examples are more than there are"),
        (surgical_scores, "--batches 0", "--batches must be a positive number, got 0"),
        (
            surgical_scores,
            "--profile nowhere",
            "--profile nowhere has no results.jsonl",
        ),
        (surgical_test_time, "--copies 0", "--copies must be a positive number, got 0"),
        (surgical_test_time, "--modes offline", "unknown --modes 'offline'"),
        (surgical_test_time, "--adaptations meno", "unknown --adaptations 'meno'"),
        (
            surgical_test_time,
            "--memo-learning-rates 0",
            "--memo-learning-rates must be a positive number, got 0",
        ),
        (
            surgical_test_time,
            "--tent-batch-size 0",
            "--tent-batch-size must be a positive number",
        ),
        (surgical_test_time, "--methods", "--methods needs at least one value"),
        (surgical_test_time, "--methods blok", "unknown method 'blok'"),
        (surgical_test_time, "--norm eval", "unknown --norm 'eval'"),
        (surgical_test_time, "--choose last", "unknown --choose 'last'"),
        (surgical_test_time, "--mesh 2", "leave --mesh at 1"),
        (surgical_shifts, "--tries 0", "--tries must be a positive number, got 0"),
        (surgical_shifts, "--choose best", "unknown --choose 'best'"),
        (
            surgical_shifts,
            "--auto-learning-rates nan",
            "--auto-learning-rates must be a positive number, got nan",
        ),
        (
            surgical_shifts,
            "--auto-learning-rates",
            "--auto-learning-rates needs at least one value",
        ),
        (surgical_shifts, "--groups", "--groups needs --dataset: a folder"),
        (surgical_shifts, "--breeds living17", "--breeds and --hierarchy are given"),
        (
            surgical_shifts,
            "--dataset y --breeds x --hierarchy .",
            "unknown --breeds 'x'",
        ),
        (surgical_shifts, "--breeds-split x", "unknown --breeds-split 'x'"),
    ],
)
def test_bad_values_are_one_sentence(call, tmp_path, capsys, module, flags, message):
    assert call(module, flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


TORCH = (  # our path, the name and axes of a PyTorch file
    (r"stem/conv/kernel", "conv1.weight", (3, 2, 0, 1)),
    (r"block(\d)_(\d)/conv(\d)/kernel", r"layer\1.\2.conv\3.weight", (3, 2, 0, 1)),
    (r"block(\d)_(\d)/norm(\d)/scale", r"layer\1.\2.bn\3.weight", (0,)),
    (r"block(\d)_(\d)/norm(\d)/bias", r"layer\1.\2.bn\3.bias", (0,)),
    (r"pool/norm/scale", "bn.weight", (0,)),
    (r"pool/norm/bias", "bn.bias", (0,)),
    (r"head/kernel", "fc.weight", (1, 0)),
    (r"head/bias", "fc.bias", (0,)),
)


@pytest.fixture
def weights(tmp_path):
    """A folder with a network for 8 x 8 color pictures of two classes, not trained."""
    config = ResNetConfig(widths=(8, 8, 16), groups=4, num_classes=2)
    tensors = {}
    for path, leaf in tree.flatten(resnet(config, jax.random.key(0)).params).items():
        ((name, axes),) = [
            (re.sub(ours, theirs, path), axes)
            for ours, theirs, axes in TORCH
            if re.fullmatch(ours, path)
        ]
        tensors[name] = np.ascontiguousarray(np.asarray(leaf).transpose(axes))
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    described = {
        "norm": {"type": "group_norm", "num_groups": 4},
        "block": {"type": "pre-activation basic block"},
        "blocks_per_stage": config.blocks,
        "widths": config.widths,
        "input_size": (8, 8, 3),
        "num_classes": 2,
        "class_names": ["land", "sea"],
        "normalization": {"mean": config.mean, "std": config.std},
    }
    (folder / "config.json").write_text(json.dumps(described))
    return str(folder)


def paint(folder, count, rng):
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


def test_grouped_folders_are_balanced_and_the_worst_pair_counts(
    call, tmp_path, weights
):
    rng, birds = np.random.default_rng(0), tmp_path / "birds"
    for name, count in {
        "land/land": 30,
        "land/sea": 9,
        "sea/land": 8,
        "sea/sea": 40,
    }.items():
        paint(birds / name, count, rng)
    target = Target(
        dataset=str(birds),
        groups=True,
        train_examples=8,
        validation_examples=8,
        test_examples=12,
    )
    task = target.task(Common(weights=weights), "none", 0)
    assert np.bincount(task.train.y).tolist() == [4, 4]
    test = task.test._data
    logits = np.eye(2)[test.y]
    assert task.metrics["test"](logits, test.y) == 100
    pool = image_pool(target, Common(weights=weights), load_pretrained(weights))
    assert np.bincount(pool.pairs).tolist() == [30, 9, 8, 40]
    flags = f"--dataset {birds} --groups --weights {weights} --train-examples 8"
    flags += (
        " --validation-examples 8 --test-examples 12 --methods none last --epochs 1"
    )
    assert call(surgical_shifts, f"{flags} --seeds 1 --tries 1") == 0
    found = final(tmp_path / "out")
    assert {row["metric"] for row in found} == {"worst-group accuracy"}
    none = task.network(test.x)
    want = task.metrics["test"](np.asarray(none), test.y)
    assert found[0]["value"] == want


@pytest.mark.parametrize("classes", [("sea", "wood"), ("field", "sea", "wood")])
def test_a_head_of_other_classes_is_not_kept(call, tmp_path, weights, capsys, classes):
    rng = np.random.default_rng(0)
    for name in classes:
        paint(tmp_path / "places" / name, 20, rng)
    flags = f"--dataset {tmp_path / 'places'} --weights {weights} --train-examples 12"
    flags += " --validation-examples 12 --methods none last --seeds 1 --epochs 1"
    assert call(surgical_shifts, flags) == 2
    assert "the head of weights is of 2 classes (land, sea), and" in (
        error := capsys.readouterr().err
    )
    assert "give --new-head" in error and error.count("\n") == 1
    assert call(surgical_shifts, f"{flags} --new-head") == 0
    found = {row["method"]: row for row in final(tmp_path / "out")}
    assert found["last"]["trainable_params"] == 17 * len(classes)
    task = Target(
        dataset=str(tmp_path / "places"),
        new_head=True,
        train_examples=12,
        validation_examples=12,
    ).task(Common(weights=weights), "none", 0)
    body = {k: v for k, v in task.network.params.items() if k != "head"}
    base = {k: v for k, v in load_pretrained(weights).params.items() if k != "head"}
    chex.assert_trees_all_equal(body, base)  # the fresh head alone was trained
    assert np.any(task.network.params["head"]["kernel"] != 0)


def test_weights_without_names_of_classes_need_a_new_head(
    call, tmp_path, weights, capsys
):
    rng, config = np.random.default_rng(0), Path(weights) / "config.json"
    config.write_text(config.read_text().replace('"class_names"', '"unused"'))
    for name in ("land", "sea"):
        paint(tmp_path / "places" / name, 4, rng)
    assert (
        call(surgical_shifts, f"--dataset {tmp_path / 'places'} --weights {weights}")
        == 2
    )
    assert "is of classes without names" in capsys.readouterr().err


def test_groups_need_a_folder_that_has_them(call, tmp_path, weights, capsys):
    rng = np.random.default_rng(0)
    for name in ("land", "sea"):
        paint(tmp_path / "birds" / name, 4, rng)
    flags = f"--dataset {tmp_path / 'birds'} --groups --weights {weights}"
    assert call(surgical_shifts, flags) == 2
    assert "has no groups: expected CLASS/GROUP/FILE" in capsys.readouterr().err


def test_a_breeds_target_has_superclasses_of_target_subclasses(call, tmp_path, weights):
    rng, home = np.random.default_rng(0), tmp_path / "hierarchy"
    home.mkdir()
    (home / "class_hierarchy.txt").write_text(EDGES.strip())
    (home / "node_names.txt").write_text("cats\tcats\ndogs\tdogs\n")
    classes = [[i, name, name] for i, name in enumerate(LEAVES)]
    (home / "dataset_class_info.json").write_text(json.dumps(classes))
    for number in range(9):
        paint(tmp_path / "imagenet" / f"{number}", 6, rng)
    config = Path(weights) / "config.json"
    config.write_text(config.read_text().replace('"land", "sea"', '"cats", "dogs"'))
    flags = f"--dataset {tmp_path / 'imagenet'} --weights {weights} --breeds living17"
    flags += (
        f" --hierarchy {home} --train-examples 8 --validation-examples 4 --epochs 1"
    )
    assert (
        call(surgical_shifts, f"{flags} --methods none last --seeds 1 --tries 1") == 0
    )
    found = final(tmp_path / "out")
    assert {row["task"] for row in found} == {"living17"}
    # 2 superclasses of 2 target subclasses of 6 images, less 8 and 4
    task = Target(
        dataset=str(tmp_path / "imagenet"),
        breeds="living17",
        hierarchy=home,
        train_examples=8,
        validation_examples=4,
    ).task(Common(weights=weights), "none", 0)
    parts = (task.train, task.validation, task.test._data)
    assert [len(part.y) for part in parts] == [8, 4, 12]
    assert set(task.test._data.y.tolist()) == {0, 1}


def test_the_noise_of_a_block_is_of_its_own_in_every_leaf():
    network = toy.small_resnet("group")
    made = surgical_theory.perturbed(network, "block2", 0.5, 0)
    before, after = tree.flatten(network.params), tree.flatten(made.params)
    noise = {p: np.ravel(after[p] - before[p]) for p in before}
    moved = {path for path, values in noise.items() if values.any()}
    assert moved == {path for path in before if path.startswith("block2")}
    firsts = [round(float(noise[path][0]), 6) for path in moved]
    assert len(set(firsts)) == len(firsts)
    every = np.concatenate([noise[path] for path in sorted(moved)])
    assert every.std() == pytest.approx(0.5, rel=0.1)


def test_the_settings_of_memo_and_tent_are_those_of_their_sources():
    made = surgical_test_time.Settings()
    assert (made.copies, made.memo_learning_rates) == (32, (5e-3,))
    assert made.tent_learning_rates == (1e-3,)

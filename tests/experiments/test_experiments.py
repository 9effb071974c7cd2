"""Every experiment's smoke run, and what a mistake looks like to its user."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments import (
    prefix_speed,
    step_speed,
    surgical_shifts,
    surgical_test_time,
    surgical_theory,
)
from experiments.common import catalog
from experiments.common.flags import Common, resolved
from experiments.common.images import Target
from experiments.common.report import results
from experiments.common.study import job_of, main, older_of, run, task_name
from subtune_jax.data.shifts import shift
from subtune_jax.data.task import test_once
from subtune_jax.data.tfds import CIFAR10
from subtune_jax.deltas import Store, open_task
from subtune_jax.deltas.file import read_header
from subtune_jax.demo import digits
from subtune_jax.models.vit import ViTConfig, vit
from subtune_jax.training.predict import predict
from tests.models.test_vit import HUGGING_FACE, as_file

pytestmark = pytest.mark.slow

SMOKE = "--shift contrast subpopulation --methods none last block2 --train-examples 20"


def call(monkeypatch, *flags):
    """Runs the experiment as the command line does; returns the exit code (0 if none)."""
    monkeypatch.setattr(sys, "argv", ["surgical_shifts", *map(str, flags)])
    try:
        main(surgical_shifts.STUDY, surgical_shifts.__doc__)
    except SystemExit as stop:
        return stop.code
    return 0


REAL = "--dataset cifar10_corrupted/gaussian_noise_5"


@pytest.fixture
def real(real_data, monkeypatch):
    """Sets the data folder and returns the flags of a real run."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(real_data / "tfds"))
    return [*REAL.split(), "--weights", real_data / "weights" / "resnet26_gn_cifar10"]


def rows(out):
    return [
        json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("name", catalog.studies())
def test_every_study_has_a_claim_and_the_flags_of_all(name):
    module = catalog.studies()[name]
    assert module.STUDY.name == name
    assert catalog.claim_of(module).startswith("Claim")
    assert module.STUDY.settings().common == Common()
    assert f"python -m experiments.{name}" in module.__doc__


# These have a smoke test of their own.
OWN = {"surgical_shifts", "surgical_theory", "prefix_speed", "step_speed"}
OWN |= {"transformer_modules", "module_magnitudes", "storage", "delta_speed"}
OWN |= {"subtuning_profile"}


@pytest.mark.parametrize("name", sorted(catalog.studies().keys() - OWN))
def test_every_smoke_run_is_whole_and_not_repeated(call, tmp_path, name):
    module, out = catalog.studies()[name], tmp_path / "out"
    flags, pictures = SMOKES.get(name, ("", ()))
    keep = " --keep" * module.STUDY.keeps
    assert call(module, f"--smoke {flags}{keep}") == 0
    found = rows(out)
    tests = [row for row in found if row["split"] == "test"]
    assert {*WANTED.split()} <= set(tests[-1])
    assert all(row["experiment"] == name for row in found)
    assert "|---|" in (out / "summary.md").read_text()
    for picture in pictures:
        assert (out / f"{picture}.png").stat().st_size > 5000
    if keep:
        assert_deltas(out, module.STUDY)
    before = (out / "results.jsonl").read_bytes()
    assert call(module, f"--smoke {flags}") == 0
    assert (out / "results.jsonl").read_bytes() == before


def assert_deltas(out, study):
    """Asserts that every chosen network is there, with the score of its test row."""
    tuned = [r for r in rows(out) if r["split"] == "test" and r["learning_rate"]]
    scores = {
        task_name(job_of(study, row)): {row["metric"]: row["value"]} for row in tuned
    }
    store = Store(out / "deltas")
    assert list(store) == sorted(scores)
    for name, metrics in scores.items():
        assert read_header(store.file(name))["about"]["metrics"] == metrics


TWO = "--shift contrast --units block1_0 block3_0"
SMOKES = {  # fewer jobs than the defaults where they show the same; and the pictures
    "surgical_size": ("--shift contrast --methods none last", ("sizes",)),
    "surgical_test_time": ("--adaptations memo tent", ("stream",)),
    "surgical_scores": ("--shift label_flip", ("scores",)),
    "subtuning_greedy": (f"{TWO} --searches exhaustive LoRA --ranks 1", ("path",)),
    "subtuning_shift": (f"{TWO} --search cheap", ("chosen",)),
    "subtuning_data_size": (f"{TWO} --search shared --sizes 50 --ranks 1", ("sizes",)),
    "subtuning_variants": ("--shift contrast", ("variants",)),
    "fast_adaptation": ("--strategies fast torch", ("learning", "forgetting", "plane")),
    "fast_ablation": ("--ingredients zero-batch-1 torch-none-0", ("plane",)),
    "fast_texts": ("", ("plane",)),
    "fast_landscape": ("", ("landscape",)),
    "multitask_inference": ("--parts accuracy unit mixed", ("accuracy",)),
}
WANTED = """experiment method dataset seed metric split value trainable_params total_params
steps seconds commit"""


def test_smoke(monkeypatch, tmp_path, capsys):
    flags = [*SMOKE.split(), "--smoke", "--out", tmp_path]
    assert call(monkeypatch, *flags, "--keep") == 0
    tests = [r for r in rows(tmp_path) if r["split"] == "test"]
    assert [(r["shift"], r["method"]) for r in tests] == [
        (s, m)
        for s in ("contrast", "subpopulation")
        for m in ("none", "last", "block2")
    ]
    wanted = "experiment method dataset seed metric split value trainable_params"
    assert {*wanted.split(), "total_params", "steps", "seconds", "commit"} <= set(
        tests[0]
    )
    last = tests[1]
    assert (last["trainable_params"], last["total_params"], last["steps"]) == (
        650,
        75_002,
        1,
    )
    assert 0 <= last["value"] <= 100
    assert "| contrast |" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "accuracy.png").stat().st_size > 5000
    assert_deltas(tmp_path, surgical_shifts.STUDY)
    target = Target(shift=("contrast",), train_examples=20)
    target = resolved(surgical_shifts.Settings(target=target), embedded=True).target
    task = target.task(Common(smoke=True), "contrast", 0)
    file = Store(tmp_path / "deltas").file("contrast-0-block2")
    network = open_task(file, base=task.network)
    scores = test_once(partial(predict, network), task)
    assert scores["accuracy"] == tests[2]["value"]
    before = (tmp_path / "results.jsonl").read_bytes()
    assert call(monkeypatch, *flags) == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before, (
        "finished runs were repeated"
    )
    assert (
        call(monkeypatch, *flags, "--methods", "none", "last", "block2", "block1") == 0
    )
    assert len([r for r in rows(tmp_path) if r["split"] == "test"]) == 8


@pytest.mark.parametrize("network", ["resnet26", "minilm"])
def test_the_benchmark_prints_flops_and_times(monkeypatch, tmp_path, capsys, network):
    flags = f"--smoke --epochs 1 --network {network} --out {tmp_path}"
    flags += " --tokens 16" if network == "minilm" else ""
    monkeypatch.setattr(sys, "argv", ["x", *flags.split()])
    main(prefix_speed.STUDY, prefix_speed.__doc__)
    flops = {r["method"]: r["step_flops"] for r in rows(tmp_path)}
    assert flops["all"] > flops["last two blocks"] > flops["last two, cached"] > 0
    assert "| last two, cached |" in capsys.readouterr().out


def test_the_theory_has_a_row_for_every_claim(call, tmp_path):
    assert call(surgical_theory, "--smoke --keep") == 0
    assert list(Store(tmp_path / "out" / "deltas")) == [
        task_name(("noise in block1", 0, "block1"))
    ]
    claims = {r["claim"] for r in rows(tmp_path / "out")}
    wanted = {"theorem 1, end", "input shift", "output shift", "noise in block1"}
    assert wanted <= claims
    assert "| perturbed |" in (tmp_path / "out" / "summary.md").read_text()


def test_the_benchmark_of_steps_has_every_way(call, tmp_path):
    assert call(step_speed, "--smoke") == 0
    ways = {(r["method"], r["way"]): r["value"] for r in rows(tmp_path / "out")}
    pairs = {(n, w) for n in ("full", "head") for w in ("plain", "placed")}
    assert pairs <= set(ways) and all(value > 0 for value in ways.values())


def test_a_vision_transformer_on_real_images(monkeypatch, tmp_path, real):
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        intermediate_size=24,
        num_classes=10,
    )
    tensors = as_file(vit(config, jax.random.key(0)).params, "hugging_face")
    weights = tmp_path / "vit"
    weights.mkdir()
    save_file(tensors, weights / "model.safetensors")
    sizes = {"image_size": 32, "patch_size": 8, "id2label": dict(enumerate(CIFAR10))}
    (weights / "config.json").write_text(json.dumps(HUGGING_FACE | sizes))
    flags = f"{REAL} --weights {weights} --smoke --train-examples 40 --test-examples 50"
    out = tmp_path / "out"
    methods = "--methods none embedding last3".split()
    assert call(monkeypatch, *flags.split(), *methods, "--out", out) == 0
    tests = {r["method"]: r for r in rows(out) if r["split"] == "test"}
    assert list(tests) == ["none", "embedding", "last3"]
    assert tests["embedding"]["trainable_params"] == 8 * 8 * 3 * 16 + 16 + 16 + 17 * 16
    body = tests["none"]["total_params"]
    assert tests["last3"]["trainable_params"] < body


def test_a_real_network_on_real_corrupted_images(monkeypatch, tmp_path, real):
    flags = "--methods none last --epochs 2 --seeds 1 --train-examples 100 --test-examples 300"
    assert call(monkeypatch, *real, *flags.split(), "--out", tmp_path) == 0
    tests = {r["method"]: r for r in rows(tmp_path) if r["split"] == "test"}
    assert tests["none"]["task"] == "gaussian_noise_5"
    assert (tests["last"]["trainable_params"], tests["last"]["total_params"]) == (
        650,
        366_938,
    )
    assert 45 < tests["none"]["value"] < 62  # 52.35 on all 2,000 images (data's README)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_job_that_was_killed_goes_on_from_its_checkpoints(
    monkeypatch, tmp_path, real, capsys
):
    flags = "--methods last --epochs 2 --seeds 1 --train-examples 50 --test-examples 50"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call(monkeypatch, *real, *flags.split(), "--out", whole) == 0

    def die(*args):
        raise KeyboardInterrupt

    with (
        monkeypatch.context() as patched
    ):  # after all runs, before their rows are written
        patched.setattr("experiments.common.trials.test_once", die)
        patched.setattr("os._exit", sys.exit)  # which ends this process, too
        assert call(patched, *real, *flags.split(), "--out", killed) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert rows(killed) == []
    monkeypatch.setattr(
        "subtune_jax.training.loop.compiled_step", None
    )  # no step is run
    assert call(monkeypatch, *real, *flags.split(), "--out", killed) == 0
    timeless = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "commit")}
            for row in rows(out)
        ]
        for out in (whole, killed)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset cifar10_corrupted", "needs one of its configs"),
        ("--dataset mnist", "no prepared data set 'mnist'"),
        ("--dataset glue/rte --split validation", "glue/rte is not an image set"),
        (
            "--dataset cifar100",
            "the head of resnet26_gn_cifar10 is of 10 classes (airplane, automobile, "
            "bird, cat, deer, dog, frog, horse, ship, truck), and cifar100 has 100 "
            "classes (apple, aquarium_fish, baby, bear, beaver, bed, bee, beetle, "
            "bicycle, bottle and 90 more): give --new-head",
        ),
        ("--split train", "has no split 'train': expected one of test"),
        ("--weights nowhere", "there is no folder nowhere with weights"),
        ("--weights nobody/nothing", "could not be downloaded from the hub"),
        ("--shift subpopulation", "changes the source task: it is for digits only"),
        ("--data-dir /nowhere", "in /nowhere (there: nothing); prepare it with"),
        ("--train-examples 1950", "1950 train examples are more than there are"),
    ],
)
def test_bad_input_of_real_runs(monkeypatch, tmp_path, capsys, real, flags, message):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert call(monkeypatch, *real, *flags.split(), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error:") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_are_refused(
    monkeypatch, tmp_path, capsys, real, real_data
):
    folder = tmp_path / "weights"
    shutil.copytree(real[-1], folder)
    config = json.loads((folder / "config.json").read_text())
    config["input_size"] = [64, 64, 3]
    (folder / "config.json").write_text(json.dumps(config))
    assert call(monkeypatch, *real[:-1], folder, "--out", tmp_path / "out") == 2
    assert "(32, 32, 3) (height, width, channels): the network takes (64, 64, 3)" in (
        capsys.readouterr().err
    )


def test_sizes_that_classes_do_not_divide_are_drawn(real_data):
    target = Target(
        dataset="cifar10_corrupted/contrast_5", train_examples=105, test_examples=305
    )
    flags = Common(
        data_dir=real_data / "tfds",
        weights=str(real_data / "weights" / "resnet20_cifar10"),
    )
    for seed in range(3):
        task = target.task(flags, "none", seed)
        sizes = [len(task.train.y), len(task.validation.y), len(task.test)]
        assert sizes == [105, 100, 305]
        assert np.ptp(np.bincount(task.test._data.y)) <= 1


def test_another_base_is_refused_whatever_its_path(monkeypatch, tmp_path, capsys, real):
    flags = "--methods none --seeds 1 --train-examples 20 --test-examples 20"
    assert call(monkeypatch, *real, *flags.split(), "--out", tmp_path) == 0
    other = real[-1].parent / "resnet20_cifar10"
    assert call(monkeypatch, *real[:-1], other, *flags.split(), "--out", tmp_path) == 2
    assert "holds runs of another configuration: base" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_marks_its_run_and_the_others_go_on(
    monkeypatch, tmp_path
):
    flags = "--shift contrast --methods last block1 --seeds 1 --epochs 2"
    flags += " --learning-rates 1e-3 --head-learning-rates 1e38"
    assert call(monkeypatch, *flags.split(), "--out", tmp_path) == 0
    found = rows(tmp_path)
    lost = [
        r for r in found if r["status"] == "diverged" and r["split"] == "validation"
    ]
    assert [(r["method"], r["learning_rate"]) for r in lost] == [("last", 1e38)]
    assert all(r["steps"] >= 1 and r["value"] is None for r in lost)
    tests = {r["method"]: r for r in found if r["split"] == "test"}
    assert tests["last"]["status"] == "diverged" and tests["last"]["value"] is None
    assert (
        tests["block1"]["status"] == "ok" and tests["block1"]["learning_rate"] == 1e-3
    )


def test_the_choice_is_made_on_validation_data(monkeypatch, tmp_path):
    flags = "--shift contrast --methods block1 --seeds 1 --epochs 2"
    assert call(monkeypatch, *flags.split(), "--out", tmp_path) == 0
    *tried, test = rows(tmp_path)
    assert [r["learning_rate"] for r in tried] == [1e-2, 1e-3]
    best = max(tried, key=lambda r: r["value"])
    assert (test["learning_rate"], test["epoch"]) == (
        best["learning_rate"],
        best["epoch"],
    )


def test_cost_prints_every_method_beside_full_tuning(monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, "--cost", "--methods", "last", "--out", tmp_path) == 0
    table = capsys.readouterr().out
    assert (
        "| last | 650 |" in table
        and "| all | 75,002 |" in table
        and "| floor |" in table
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--methods last blok1",
            "unknown method 'blok1': expected one of none, all, last, block1",
        ),
        ("--methods block9_0", "unknown method 'block9_0'"),
        ("--shift contrasst", "unknown shift 'contrasst'"),
        ("--dataset digts", "data set 'digts' needs --weights: a folder or hub id"),
        ("--methods last block2_0/conv9", "nearest paths are block2_0/conv2/kernel"),
        ("--methods (", "selector '(' is not a regular expression"),
        ("--methods", "--methods needs at least one value"),
        ("--shift", "--shift needs at least one value"),
        ("--l2 -1", "--l2 must be a number from 0 up, got -1.0"),
        ("--l2 nan", "--l2 must be a number from 0 up, got nan"),
        (
            "--weights here",
            "digits are embedded: --weights and --data-dir name real data",
        ),
        (
            "--norm batch --network-norm batch --batch-size 200",
            "batch size 200 is more than",
        ),
        (
            "--norm eval",
            "unknown --norm 'eval': expected one of stored, tuned, batch",
        ),
        (
            "--network-norm layer",
            "unknown --network-norm 'layer': expected one of group, batch",
        ),
        ("--learning-rates 0", "--learning-rates must be a positive number, got 0.0"),
        (
            "--learning-rates 1e-3 nan",
            "--learning-rates must be a positive number, got nan",
        ),
        ("--epochs -1", "--epochs must be a positive number, got -1"),
        ("--seeds 0", "--seeds must be a positive number, got 0"),
        ("--batch-size 0", "--batch-size must be a positive number, got 0"),
        ("--train-examples 0", "--train-examples must be a positive number, got 0"),
        (
            "--train-examples 5000",
            "5000 train examples are more than there are: class 0 has",
        ),
        ("--mesh 3", "mesh asks for 3 devices: expected 1 to 1 here"),
        ("--epochs many", "many"),
        ("--epoch 3", "--epoch"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    monkeypatch, tmp_path, capsys, flags, message
):
    assert call(monkeypatch, *flags.split(), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    if error.startswith("error:"):
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_configuration_is_refused(monkeypatch, tmp_path, capsys):
    flags = [
        "--methods",
        "none",
        "--shift",
        "contrast",
        "--seeds",
        1,
        "--out",
        tmp_path,
    ]
    assert call(monkeypatch, *flags) == 0
    assert call(monkeypatch, *flags, "--epochs", 3) == 2
    assert (
        "another configuration: epochs 15 (now 3); choose another --out"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_folder_that_is_full_at_once_or_later_is_said_and_loses_nothing(
    tmp_path, blocks
):
    digits.digits_network(shift("contrast"))  # is in the cache from here on
    # A limit on file sizes is the one full disk that every machine has.
    study = (
        "from experiments import surgical_shifts as s; "
        "from experiments.common.study import main; "
        "from subtune_jax.demo import digits; "
        f"digits.STEPS = {digits.STEPS}; main(s.STUDY, s.__doc__)"
    )
    command = f"ulimit -f {blocks}; exec {sys.executable} -c '{study}'"
    flags = (
        f"--methods none last --shift contrast --seeds 3 --epochs 1 --out {tmp_path}"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command} {flags}"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 2, done.stderr
    last_line = done.stderr.splitlines()[-1]
    assert last_line == f"error: cannot write to {tmp_path}: File too large"
    assert "Traceback" not in done.stderr
    kept = results.read(tmp_path)
    assert [r["seed"] for r in kept[:5]] == ([] if blocks == 0 else [0] * 5)
    assert all(row["status"] == "ok" for row in kept)


def test_a_folder_that_cannot_be_written_is_said(monkeypatch, capsys):
    folder = "/proc/sys/subtune"  # not even root writes here
    if not os.path.isdir("/proc/sys"):
        pytest.skip("no /proc on this machine")
    assert call(monkeypatch, "--methods", "none", "--out", folder) == 2
    assert f"error: cannot write to {folder}: " in capsys.readouterr().err


# One of every kind: all of them take a task each, and those of a kind the same way.
FOLDERS = """prefix_speed step_speed surgical_cifar10/gaussian_noise_5
surgical_cifar10/label_flip surgical_methods/noise surgical_methods_digits
surgical_scores_cifar10/flip surgical_scores_digits surgical_shifts_digits
surgical_size_digits surgical_test_time/memo surgical_test_time/tent surgical_theory
transformer_modules/cola transformer_modules_docstrings"""


class NewJob(Exception):
    """A job that the folder does not have: more seeds were asked for than were run."""


@pytest.mark.parametrize("name", FOLDERS.split())
def test_a_committed_folder_is_continued_with_nothing_repeated(
    name, tmp_path, monkeypatch, request, capsys
):
    folder, out = Path("results") / name, tmp_path / "out"
    flags = json.loads((folder / "config.json").read_text()) | {"out": out}
    before = (folder / "results.jsonl").read_text()
    first = json.loads(before.split("\n")[0])
    study = catalog.studies()[first["experiment"]].STUDY
    flags = older_of(study.settings()) | dict(study.older) | flags
    if flags["weights"] is not None:
        home = request.getfixturevalue("real_data")
        flags["data_dir"] = home / "tfds"
        if flags["weights"] == "minilm":
            request.getfixturevalue("minilm")
        else:
            flags["weights"] = str(home / "weights" / flags["weights"])
    if "sizes" in flags:
        del flags["train_examples"]  # it follows the sizes

    def new_job(settings, task, job, context):
        raise NewJob(job)

    shutil.copytree(folder, out)
    with suppress(NewJob):
        run(study._replace(rows=new_job), with_flags(study.settings(), flags))
    assert (out / "results.jsonl").read_text() == before


def with_flags(group, flags):
    """Returns settings with the values of a folder's config.json."""
    values = {}
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = with_flags(value, flags)
        elif field.name in flags:
            new = flags[field.name]
            new = tuple(new) if isinstance(new, list) else new
            named = field.name in ("out", "profile", "data_dir", "hierarchy")
            values[field.name] = Path(new) if named and new is not None else new
    return dataclasses.replace(group, **values)


def test_a_delta_that_cannot_be_written_loses_no_row(monkeypatch, tmp_path, capsys):
    (tmp_path / "deltas").write_text("in the way")
    flags = "--shift contrast --methods last block2 --smoke --keep --out".split()
    assert call(monkeypatch, *flags, tmp_path) == 2
    assert "cannot write to" in capsys.readouterr().err
    assert [r["method"] for r in rows(tmp_path) if r["split"] == "test"] == ["last"]


def test_a_study_without_a_network_to_keep_says_so(call, capsys):
    assert call(surgical_test_time, "--smoke --keep") == 2
    assert "surgical_test_time chooses no network to keep: leave --keep out" in (
        capsys.readouterr().err
    )

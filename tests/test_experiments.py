"""Every experiment's smoke run, and what a mistake looks like to its user."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from experiments import surgical_shifts
from experiments.cli import main
from subtune_jax.reporting import results

SMOKE = {
    "surgical_shifts": "--shift contrast subpopulation --methods none last block2 "
    "--train-examples 20"
}


def call(monkeypatch, *flags):
    """Runs the experiment as the command line does; returns the exit code (0 if none)."""
    monkeypatch.setattr(sys, "argv", ["surgical_shifts", *map(str, flags)])
    try:
        main(surgical_shifts.run, surgical_shifts.Settings, surgical_shifts.__doc__)
    except SystemExit as stop:
        return stop.code
    return 0


def rows(out):
    return [
        json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()
    ]


def test_every_experiment_has_a_smoke_run():
    shared = {"__init__", "cli", "digits", "readme"}
    found = {p.stem for p in Path(experiments.__path__[0]).glob("*.py")} - shared
    assert found == set(SMOKE)


def test_smoke(monkeypatch, tmp_path, capsys):
    flags = [*SMOKE["surgical_shifts"].split(), "--smoke", "--out", tmp_path]
    assert call(monkeypatch, *flags) == 0
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
    before = (tmp_path / "results.jsonl").read_bytes()
    assert call(monkeypatch, *flags) == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before, (
        "finished runs were repeated"
    )
    assert (
        call(monkeypatch, *flags, "--methods", "none", "last", "block2", "block1") == 0
    )
    assert len([r for r in rows(tmp_path) if r["split"] == "test"]) == 8


def test_a_loss_that_is_not_finite_marks_its_run_and_the_others_go_on(
    monkeypatch, tmp_path
):
    flags = "--shift contrast --methods last block1 --seeds 1 --epochs 2"
    flags += " --rates 1e-3 --last-rates 1e38"
    assert call(monkeypatch, *flags.split(), "--out", tmp_path) == 0
    found = rows(tmp_path)
    lost = [
        r for r in found if r["status"] == "diverged" and r["split"] == "validation"
    ]
    assert [(r["method"], r["rate"]) for r in lost] == [("last", 1e38)]
    assert all(r["steps"] >= 1 and r["value"] is None for r in lost)
    tests = {r["method"]: r for r in found if r["split"] == "test"}
    assert tests["last"]["status"] == "diverged" and tests["last"]["value"] is None
    assert tests["block1"]["status"] == "ok" and tests["block1"]["rate"] == 1e-3


def test_the_choice_is_made_on_validation_data(monkeypatch, tmp_path):
    flags = "--shift contrast --methods block1 --seeds 1 --epochs 2"
    assert call(monkeypatch, *flags.split(), "--out", tmp_path) == 0
    *tried, test = rows(tmp_path)
    assert [r["rate"] for r in tried] == [1e-2, 1e-3]
    best = max(tried, key=lambda r: r["value"])
    assert (test["rate"], test["epoch"]) == (best["rate"], best["epoch"])


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
        ("--dataset digts", "unknown data set 'digts': expected one of digits"),
        (
            "--norm eval",
            "unknown norm mode 'eval': expected one of stored, tuned, batch",
        ),
        ("--network-norm layer", "unknown norm 'layer': expected one of group, batch"),
        ("--rates 0", "rate must be a positive number, got 0.0"),
        ("--rates 1e-3 nan", "rate must be a positive number, got nan"),
        ("--epochs -1", "epochs must be a positive number, got -1"),
        ("--seeds 0", "seeds must be a positive number, got 0"),
        ("--batch-size 0", "batch_size must be a positive number, got 0"),
        ("--train-examples 0", "train_examples must be a positive number, got 0"),
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
    # A limit on file sizes is the one full disk that every machine has.
    command = (
        f"ulimit -f {blocks}; exec {sys.executable} -m experiments.surgical_shifts"
    )
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

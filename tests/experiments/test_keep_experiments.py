"""The studies of what it takes to keep tasks: bytes, and seconds."""

import numpy as np
import pytest

from experiments import delta_speed, storage
from tests.experiments.test_experiments import rows

pytestmark = pytest.mark.slow


def test_bytes_of_tasks(call, tmp_path, capsys):
    assert call(storage, "--smoke") == 0
    found = {(r["method"], r["values"]): r for r in rows(tmp_path / "out")}
    assert len(found) == 6
    for row in found.values():
        # A file is its header and its ideal code, but for a hundredth of the places.
        beyond = row["value"] - row["header"] - row["bound"]
        assert 0 <= beyond < 0.01 * row["bound"]
    base = found["head", "exact"]
    assert base["trainable_params"] == base["selected_params"] == 196
    for method in ("head", "elements_5", "lora_8"):
        exact, rounded = found[method, "exact"], found[method, "bfloat16"]
        assert exact["bound"] - rounded["bound"] == 2 * exact["trainable_params"]
    assert (tmp_path / "out" / "storage.png").stat().st_size > 5000
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "| lora_8 | bfloat16 | 10,948 |" in text
    for method, said in {
        "elements_101": "elements_101 is no percentage above 0 and up to 100",
        "layer_nroms": "nearest units are layer_norms",
    }.items():
        assert call(storage, f"--methods {method}", tmp_path / method) == 2
        assert said in capsys.readouterr().err


def test_a_leaf_that_lies_transposed_is_changed_too():
    leaf = np.ones((4, 3), np.float32).T
    after = storage.moved(leaf, 0.5, np.random.default_rng(0))
    assert (after != leaf).sum() == 6 and (leaf == 1).all()


def test_seconds_of_operations(call, tmp_path, capsys):
    assert call(delta_speed, "--smoke") == 0
    assert [r["method"] for r in rows(tmp_path / "out")] == list(delta_speed.OPERATIONS)
    assert call(delta_speed, "--percent 101", tmp_path / "other") == 2
    assert "--percent must be at most 100, got 101" in capsys.readouterr().err

import errno
import json

import pytest

from experiments.common.report import results, tables
from experiments.common.report.plots import grouped_bars
from subtune_jax.errors import InputError

ROWS = [
    {"shift": "a", "method": "m", "value": 50.0},
    {"shift": "a", "method": "m", "value": 54.0},
    {"shift": "a", "method": "n", "value": 40.0},
    {"shift": "b", "method": "n", "value": None},
]


def test_the_table_is_mean_and_standard_error_with_the_best_in_bold():
    assert tables.markdown(tables.cells(ROWS, "shift", "method"), "shift") == (
        "| shift | m | n |\n|---|---|---|\n| a | **52.0 (2.0)** | 40.0 |\n"
        "| b |  | 1 of 1 diverged |"
    )


def test_runs_that_diverged_are_shown_beside_the_mean_of_the_others():
    rows = [
        {"shift": "a", "method": "m", "value": v}
        for v in (80.0, None, float("nan"), 82.0)
    ]
    found = tables.cells(rows, "shift", "method")
    assert found == {("a", "m"): (81.0, 1.0, 2, 4)}
    shown = tables.markdown(found, "shift")
    assert shown.endswith("| a | **81.0 (1.0), 2 of 4 diverged** |")
    lost = {("a", "m"): tables.Cell(float("nan"), float("nan"), 1, 1)}
    assert tables.average_rank(lost) == {}


def test_average_ranks_of_methods_over_targets():
    table = {
        ("a", "m"): (50.0, 0.0),
        ("a", "n"): (40.0, 0.0),
        ("a", "o"): (50.0, 0.0),
        ("b", "m"): (10.0, 0.0),
        ("b", "n"): (90.0, 0.0),
        ("b", "o"): (20.0, 0.0),
        ("b", "rare"): (99.0, 0.0),
    }
    assert tables.average_rank(table) == {"o": 1.75, "n": 2.0, "m": 2.25}


def test_a_folder_is_continued_and_a_cut_off_row_forgotten(tmp_path):
    out = tmp_path / "deep" / "out"
    assert results.open_folder(out, {"rate": 1, "seeds": 1}) == []
    results.append(out, ROWS[:2])
    with (out / "results.jsonl").open("a") as file:
        file.write('{"shift": "a", "val')
    assert results.open_folder(out, {"rate": 1, "seeds": 3}, free=["seeds"]) == ROWS[:2]
    results.append(out, ROWS[2:])
    assert results.read(out) == ROWS
    assert json.loads((out / "config.json").read_text()) == {"rate": 1, "seeds": 3}
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "results.jsonl"]


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    results.open_folder(tmp_path, {"rate": 1, "seeds": 1})
    with pytest.raises(InputError, match=r"another configuration: rate 1 \(now 2\)"):
        results.open_folder(tmp_path, {"rate": 2, "seeds": 3}, free=["seeds"])


def test_a_folder_is_one_processs_at_a_time(tmp_path):
    with results.lock(tmp_path):
        with pytest.raises(InputError, match="another process is writing to"):
            with results.lock(tmp_path):
                pass
    with results.lock(tmp_path):
        pass


def test_a_damaged_config_is_said(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is damaged"):
        results.open_folder(tmp_path, {})


def test_bars_are_a_png(tmp_path):
    grouped_bars({"p": {"m": (50.0, 1.0), "n": (40.0, 0.0)}}, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"


def test_rows_that_cannot_be_written_whole_leave_none_of_theirs(tmp_path, monkeypatch):
    results.open_folder(tmp_path, {})
    results.append(tmp_path, ROWS[:2])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        results.append(tmp_path, ROWS[2:])
    assert results.read(tmp_path) == ROWS[:2]

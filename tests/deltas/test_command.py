"""`python -m subtune_jax.deltas`."""

import sys

import numpy as np
import pytest

from subtune_jax import deltas
from subtune_jax.deltas.__main__ import main
from tests.deltas.test_file import a_delta


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["deltas", *map(str, words)])
        try:
            main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return run


def test_tasks_are_listed_inspected_verified_and_compared(run, tmp_path):
    store = deltas.Store(tmp_path)
    one, two = a_delta(0), a_delta(1)
    store.add("cola", deltas.to_bytes(one))
    store.add("sst2", deltas.to_bytes(two))
    code, text = run("tasks", tmp_path)
    assert code == 0 and [line.split()[0] for line in text.splitlines()] == [
        "cola",
        "sst2",
    ]
    size = store.file("cola").stat().st_size
    assert text.splitlines()[0] == f"cola  {size:,} bytes  accuracy 91.25"
    code, text = run("inspect", store.file("cola"))
    assert "params/two/kernel: 40 of [15, 20] (13.33 %)" in text
    assert "params/head/kernel: all of [4, 2] float16" in text
    assert "base: not named, fingerprint abababababab" in text
    assert "classes: ['cat', 'dog']" in text and "metrics: accuracy 91.25" in text
    assert run("verify", store.file("cola")) == (
        0,
        f"{store.file('cola')}: {one}, whole\n",
    )
    code, text = run("compare", store.file("cola"), store.file("sst2"))
    places = [d.elements["params/two/kernel"].places for d in (one, two)]
    both = len(np.intersect1d(*places))
    assert f"params/two/kernel  40  40  {both}\n" in text
    assert text.startswith("the same base; changed numbers:")


def test_what_is_not_there_or_damaged_is_one_sentence(run, tmp_path):
    assert run("tasks", tmp_path / "none") == (
        2,
        f"error: there is no folder {tmp_path / 'none'}\n",
    )
    damaged = tmp_path / "one.delta"
    damaged.write_bytes(deltas.to_bytes(a_delta())[:-1])
    deltas.Store(tmp_path).add("two", deltas.to_bytes(a_delta()))
    code, text = run("tasks", tmp_path)
    assert code == 0 and text.splitlines()[1].endswith(
        "accuracy 91.25"
    )  # the whole one
    (tmp_path / "one.delta").write_bytes(b"no header")
    code, text = run("tasks", tmp_path)
    assert code == 0 and "one.delta is damaged, or is not the file of" in text
    assert text.splitlines()[1].endswith("accuracy 91.25")
    damaged.write_bytes(deltas.to_bytes(a_delta())[:-1])
    code, text = run("verify", damaged)
    assert code == 2 and text == f"error: {damaged} is damaged: it cannot be read\n"

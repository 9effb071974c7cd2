"""`python -m subtune_jax.deltas`."""

import sys

import numpy as np
import pytest

from subtune_jax import deltas
from subtune_jax.deltas.__main__ import main
from subtune_jax.models.load import load_pretrained
from tests.deltas.test_file import a_delta
from tests.deltas.test_merge import bytes_of, tuned
from tests.models.test_reference import CASES, loaded


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
    code, text = run("list", tmp_path)
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
    assert text.startswith(f"the same base; files of {size:,} and ")


def test_what_is_not_there_or_damaged_is_one_sentence(run, tmp_path):
    assert run("list", tmp_path / "none") == (
        2,
        f"error: there is no folder {tmp_path / 'none'}\n",
    )
    (tmp_path / "my task.delta").write_bytes(b"no name of a task")
    damaged = tmp_path / "one.delta"
    damaged.write_bytes(deltas.to_bytes(a_delta())[:-1])
    deltas.Store(tmp_path).add("two", deltas.to_bytes(a_delta()))
    code, text = run("list", tmp_path)
    assert code == 0 and text.splitlines()[1].endswith(
        "accuracy 91.25"
    )  # the whole one
    (tmp_path / "one.delta").write_bytes(b"no header")
    code, text = run("list", tmp_path)
    assert code == 0 and "one.delta is damaged, or is not the file of" in text
    assert text.splitlines()[1].endswith("accuracy 91.25")
    damaged.write_bytes(deltas.to_bytes(a_delta())[:-1])
    code, text = run("verify", damaged)
    assert code == 2 and text == f"error: {damaged} is damaged: it cannot be read\n"


def test_a_task_becomes_a_full_checkpoint_and_goes_again(run, tmp_path):
    source, merged, back = (tmp_path / name for name in ("source", "merged", "back"))
    source.mkdir()
    base = loaded(CASES["bert, gelu"], source)
    file = tmp_path / "task.delta"
    deltas.save(deltas.extract(base, tuned(base, "layer_0/norm/scale")), file)
    assert run("merge", file, merged) == (
        0,
        f"{merged}: 2 tensors differ from the base's\n",
    )
    assert run("undo", merged, back) == (0, f"{back}: the base again\n")
    assert bytes_of(back) == bytes_of(source) != bytes_of(merged)
    pooled = load_pretrained(source, num_classes=4, pooling="mean")
    deltas.save(deltas.extract(pooled, tuned(pooled, "layer_0/norm/scale")), file)
    code, text = run("merge", file, tmp_path / "pooled")
    assert (
        code == 0 and "the head is in" in text and "head.safetensors, as weight" in text
    )
    code, text = run("merge", file, merged)
    assert code == 2 and text == f"error: {merged} exists: give a new folder\n"

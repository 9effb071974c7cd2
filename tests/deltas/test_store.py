"""A folder of tasks: nothing is lost, and nothing is half there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from subtune_jax.deltas import Store
from subtune_jax.errors import InputError

# Imported once, and forked: what is killed is in the middle of adding.
ADD = """
import os, signal, sys, time, warnings
from subtune_jax.deltas.store import Store

warnings.simplefilter("ignore")  # no device was started, so that a fork is safe
store = Store(sys.argv[1])
said = os.open(sys.argv[1] + ".said", os.O_CREAT | os.O_APPEND | os.O_WRONLY)


def adding(begin, count, size):
    child = os.fork()
    if child == 0:
        for i in range(begin, begin + count):
            store.add(f"task{i}", bytes([i % 256]) * size)
            os.write(said, f"task{i}\\n".encode())  # the add has returned
        os._exit(0)
    return child
"""
TWICE = (
    ADD
    + """
children = [adding(0, 200, 10), adding(200, 200, 10)]
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""
)
KILLED = (
    ADD
    + """
for number in range(50):
    child = adding(1000 * number, 1000, 300_000)
    time.sleep(0.001 + 0.0007 * number)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""
)


def run(code, folder):
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_add_list_get_remove(tmp_path):
    store = Store(tmp_path / "tasks")
    assert list(store) == []
    with pytest.raises(InputError, match="there is no folder .*tasks"):
        store.get("cola")
    store.folder.mkdir()
    with pytest.raises(InputError, match="tasks has no tasks"):
        store.get("cola")
    store.add("sst2", b"two")
    store.add("cola", b"one")
    assert list(store) == ["cola", "sst2"]
    assert store.get("cola") == b"one"
    with pytest.raises(
        InputError, match="has a task 'cola': give another name, or repl"
    ):
        store.add("cola", b"other")
    assert store.get("cola") == b"one"
    store.add("cola", b"other", replace=True)
    assert store.get("cola") == b"other"
    with pytest.raises(InputError, match="unknown task 'kola': .* did you mean 'cola'"):
        store.get("kola")
    store.remove("cola")
    assert list(store) == ["sst2"]
    with pytest.raises(InputError, match="unknown task 'cola'"):
        store.remove("cola")
    for name in ("../up", "", ".hidden", "a/b"):
        with pytest.raises(InputError, match="cannot name a task: expected letters"):
            store.add(name, b"")
    with pytest.raises(
        InputError, match=r"a store keeps bytes, got dict: give to_bytes\("
    ):
        store.add("one", {})
    store.file("folder").mkdir()
    with pytest.raises(InputError, match="cannot read .*folder.delta: Is a directory"):
        store.get("folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to .*file"):
        Store(tmp_path / "file").add("one", b"")


def operations(monkeypatch, store, name):
    """Returns the calls of the file system that an add takes."""
    calls = []
    for function in ("mkdir", "open", "link", "replace", "unlink", "scandir", "fsync"):
        own = getattr(os, function)

        def counted(*args, _own=own, _name=function, **settings):
            calls.append(_name)
            return _own(*args, **settings)

        monkeypatch.setattr(os, function, counted)
    store.add(name, b"x")
    monkeypatch.undo()
    return calls


def test_the_thousandth_add_is_the_first(tmp_path, monkeypatch):
    store = Store(tmp_path / "tasks")
    store.add("zero", b"")
    first = operations(monkeypatch, store, "one")
    for i in range(997):
        store.add(f"task{i}", b"x")
    assert operations(monkeypatch, store, "last") == first
    assert "scandir" not in first and "fsync" in first
    assert len(list(store)) == 1000


def test_listing_and_getting_read_no_other_task(tmp_path):
    store = Store(tmp_path)
    store.add("one", b"1")
    store.add("two", b"2")
    store.file("two").chmod(0)
    store.file("two").unlink()
    os.mkfifo(store.file("two"))  # whoever reads it would wait for ever
    assert list(store) == ["one", "two"]
    assert store.get("one") == b"1"


@pytest.mark.slow
def test_two_processes_add_at_once_and_nothing_is_lost(tmp_path):
    run(TWICE, tmp_path)
    store = Store(tmp_path)
    assert len(list(store)) == 400
    assert all(store.get(name) == bytes([int(name[4:]) % 256]) * 10 for name in store)


@pytest.mark.slow
def test_killed_at_fifty_moments_no_task_is_lost_or_half_there(tmp_path):
    run(KILLED, tmp_path)
    store = Store(tmp_path)
    names = list(store)
    said = Path(f"{tmp_path}.said").read_text().split()
    assert len(said) > 50  # a child added some before it was killed
    assert set(said) <= set(names)
    for name in names:
        assert store.get(name) == bytes([int(name[4:]) % 256]) * 300_000

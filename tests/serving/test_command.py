"""`python -m subtune_jax.serving`, in a new process and in this one."""

import io
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from subtune_jax.deltas.extract import extract
from subtune_jax.deltas.file import to_bytes
from subtune_jax.deltas.store import Store
from subtune_jax.head import replace_head
from subtune_jax.models.load import load_pretrained
from subtune_jax.serving.__main__ import main
from subtune_jax.training.predict import predict
from tests.serving import tasks

NORMAL = jax.nn.initializers.normal(0.1)


def run(monkeypatch, capsys, *arguments, lines=""):
    """Returns the exit code and what was printed; lines: standard input."""
    monkeypatch.setattr(sys, "argv", ["serving", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    with pytest.raises(SystemExit) as exit_:
        main()
    out, err = capsys.readouterr()
    return exit_.value.code, out.splitlines(), err.splitlines()


@pytest.fixture(scope="module")
def images(real_data, tmp_path_factory):
    """A folder with a store of two tasks on a ResNet, and three images."""
    folder = tmp_path_factory.mktemp("images")
    network = load_pretrained(real_data / "weights/resnet20_cifar10")
    tuned = tasks.changed(network, ["block3_2"], 0.5)
    tuned = replace_head(tuned, 2, jax.random.key(0), init=NORMAL)
    store = Store(folder / "store")
    store.add("source", to_bytes(extract(network, network)))
    store.add("tuned", to_bytes(extract(network, tuned, classes=["cat", "dog"])))
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for i, image in enumerate(x):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder, tuned, x


def test_images_are_answered_by_their_files(images):
    folder, tuned, x = images
    command = [sys.executable, "-m", "subtune_jax.serving", "--store", "store"]
    files = ["0.png", "1.png", "2.png"]
    done = subprocess.run(
        [*command, "--task", "tuned", *files],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    logits = predict(tuned, x)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = [
        f"{['cat', 'dog'][y.argmax()]}\t{y.max():.3f}\ttuned\t{file}"
        for y, file in zip(shares, files, strict=True)
    ]
    assert done.stdout.splitlines() == expected


def test_several_tasks_and_what_is_wrong(images, monkeypatch, capsys):
    folder, _, _ = images
    both = ["--store", folder / "store", "--task", "tuned", "--task", "source"]
    code, out, err = run(monkeypatch, capsys, *both, folder / "0.png")
    assert (code, err) == (0, [])
    assert [line.split("\t")[2] for line in out] == ["tuned", "source"]
    (folder / "note.png").write_text("none")
    names = [folder / "note.png", folder / "1.png"]
    code, out, err = run(monkeypatch, capsys, *both[:4], *names)
    assert code == 1 and len(out) == 1 and out[0].endswith("1.png")
    assert len(err) == 1 and "is not a readable image" in err[0]
    unknown = ["--store", folder / "store", "--task", "tuend"]
    sentence = (
        "unknown task 'tuend': expected one of source, tuned; did you mean 'tuned'?"
    )
    code, out, err = run(monkeypatch, capsys, *unknown, folder / "0.png")
    assert (code, out, err) == (2, [], [f"error: {sentence}"])
    more = [*unknown, "--task", "tuned"]
    code, out, err = run(monkeypatch, capsys, *more, folder / "0.png")
    assert code == 1 and len(out) == 1
    assert err == [f"error: tuend: {folder / '0.png'}: {sentence}"]
    code, out, err = run(monkeypatch, capsys, "--store", folder / "no", "--task", "a")
    assert code == 2 and err == [f"error: there is no folder {folder / 'no'}"]


@pytest.mark.slow
def test_lines_of_text_are_answered_from_files_and_standard_input(
    minilm, tmp_path, monkeypatch, capsys
):
    network = load_pretrained("minilm", num_classes=2, key=jax.random.key(0))
    store = Store(tmp_path)
    store.add("mood", to_bytes(extract(network, network, classes=["good", "bad"])))
    given = ["--store", tmp_path, "--task", "mood"]
    lines = "A fine film.\n\nNot a fine film.\n"
    code, out, err = run(monkeypatch, capsys, *given, lines=lines)
    assert (code, err) == (0, [])
    parts = [line.split("\t") for line in out]
    assert [part[3] for part in parts] == ["A fine film.", "Not a fine film."]
    assert all(
        part[0] in ("good", "bad") and 0.5 <= float(part[1]) <= 1 for part in parts
    )
    file = tmp_path / "texts.txt"
    file.write_text(lines)
    assert run(monkeypatch, capsys, *given, file) == (0, out, [])
    code, _, err = run(monkeypatch, capsys, *given, tmp_path / "none.txt")
    assert code == 2 and err[0].startswith(
        f"error: cannot read {tmp_path / 'none.txt'}"
    )

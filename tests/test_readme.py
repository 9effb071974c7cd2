"""The README is true: its tables are the rows', its code runs, its paths exist."""

import importlib
import re
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest

from experiments.common import documents
from experiments.common.study import main
from subtune_jax.errors import InputError

ROOT = Path(__file__).parent.parent
PAGES = documents.pages(ROOT)
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_made_from_the_rows(page):
    text = page.read_text()
    assert documents.with_tables(text, ROOT / "results") == text


def test_summaries_are_made_from_the_rows():
    for file, text in documents.summaries(ROOT / "results"):
        assert file.read_text() == text, f"{file} is stale"


def test_every_folder_of_results_is_shown():
    shown = re.findall(
        r"results/(\w+)|<!-- table: (\w+)", " ".join(map(Path.read_text, PAGES))
    )
    names = {name for pair in shown for name in pair}
    assert {path.name for path in (ROOT / "results").iterdir()} <= names


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in documents.code_blocks(page):
        exec(compile(block, page.name, "exec", dont_inherit=True), module("page"))


def module(name):
    """Returns the namespace of a new module, which dataclasses and nnx look up."""
    sys.modules[name] = types.ModuleType(name)
    return vars(sys.modules[name])


@pytest.mark.slow
def test_the_new_study_of_extending_is_whole(tmp_path, monkeypatch, capsys):
    """As a user would: one file of under 70 lines of code, and nothing else edited."""
    (source,) = [
        block
        for block in documents.code_blocks(ROOT / "docs" / "extending.md")
        if "STUDY = Study(" in block
    ]
    code = [line for line in source.splitlines() if line.strip()]
    assert len(code) < 70
    (tmp_path / "my_profile.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    study = importlib.import_module("my_profile")
    out = tmp_path / "out"

    def call(*flags):
        argv = ["x", *map(str, flags), "--smoke", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) if "--table" in flags else nullcontext() as stop:
            main(study.STUDY, study.__doc__)
        return stop.value.code if stop else 0

    assert call("--shift", "label_flip", "--table", "fin") == 2
    assert "unknown unit table 'fin'" in capsys.readouterr().err
    assert call("--shift", "label_flip") == 0
    before = (out / "results.jsonl").read_bytes()
    assert call("--shift", "label_flip") == 0
    assert (out / "results.jsonl").read_bytes() == before
    assert (out / "profile.png").stat().st_size > 5000
    assert "| label_flip |" in (out / "summary.md").read_text()


def test_the_library_in_fifteen_lines_is_no_longer():
    first = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 15


def test_paths_exist():
    places = r"`((?:subtune_jax|experiments|tests|results|docs)/[\w/.]*)`"
    for page in PAGES:
        text = page.read_text()
        linked = re.findall(r"\]\(([^)#]+)\)", text)
        for name in [name for name in linked if "://" not in name]:
            assert (page.parent / name).exists(), f"{page.name}: {name}"
        for name in re.findall(places, text):
            known = (ROOT / name).exists() or "my_profile" in name
            assert known, f"{page.name}: {name}"


def test_a_table_without_rows_or_of_another_name_is_an_error(tmp_path):
    with pytest.raises(InputError, match="prefix_speed has no rows to make a table"):
        documents.with_tables("<!-- table: prefix_speed -->\n<!-- end -->", tmp_path)
    name = "<!-- table: prefix_speed by_stream -->\n<!-- end -->"
    with pytest.raises(InputError, match="unknown table of prefix_speed 'by_stream'"):
        documents.with_tables(name, ROOT / "results")
    with pytest.raises(InputError, match="unknown study 'prefix_sped'.*'prefix_speed'"):
        documents.study_of("prefix_sped")

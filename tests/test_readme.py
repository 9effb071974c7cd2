"""The README is true: its tables are the rows', its code runs, its paths exist."""

import re
from pathlib import Path

import pytest

from experiments.readme import TABLES, with_tables
from subtune_jax.errors import InputError

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_tables_are_made_from_the_rows():
    assert with_tables(TEXT, ROOT / "results") == TEXT


def test_every_table_that_can_be_made_is_there():
    shown = re.findall(r"<!-- table: (\w+) -->", TEXT)
    assert sorted(shown) == sorted(TABLES)


@pytest.mark.slow
def test_the_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_library_in_fifteen_lines_is_no_longer():
    first = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 15


def test_paths_exist():
    linked = re.findall(r"\]\(([^)#]+)\)", TEXT)
    named = re.findall(r"`((?:subtune_jax|experiments|tests|results)/[\w/.]*)`", TEXT)
    for name in [n for n in linked if "://" not in n] + named:
        assert (ROOT / name).exists(), name


def test_a_table_without_rows_is_an_error(tmp_path):
    with pytest.raises(InputError, match="prefix_speed has no rows to make a table"):
        with_tables("<!-- table: prefix_speed -->\n<!-- end -->", tmp_path)

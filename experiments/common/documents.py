"""Makes the tables of the documentation and the summaries of results/ again from rows.

python -m experiments.common.documents

A table stands between `<!-- table: FOLDER NAME -->` and `<!-- end -->`: FOLDER in
results/, NAME one of the tables of the study that wrote its rows (without it, the study's
summary); `glance` is the README's table of results. The rows of a folder are those of its
own and of the folders in it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from experiments.common import catalog
from experiments.common.glance import glance
from experiments.common.report import results
from experiments.common.study import Study, summary
from subtune_jax.errors import InputError, unknown

ROOT = catalog.HOME.parent


def pages(root: Path = ROOT) -> list[Path]:
    """Returns the README and all pages of docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]


def code_blocks(page: Path) -> list[str]:
    """Returns the blocks of Python of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)


def with_tables(text: str, home: Path) -> str:
    """Returns a page with every table made from the rows in `home`."""

    def table(match: re.Match) -> str:
        folder, _, name = match[1].partition(" ")
        text = glance(home) if folder == "glance" else table_of(home / folder, name)
        return f"<!-- table: {match[1]} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- table: (.+?) -->\n.*?<!-- end -->", table, text, flags=re.S)


def table_of(folder: Path, name: str = "") -> str:
    """Returns a table of a folder's rows; raises `InputError` for a folder without rows,
    or a name that its study has no table of."""
    rows = results.read_all(folder)
    if not rows:
        raise InputError(f"{folder} has no rows to make a table from")
    study = study_of(rows[0]["experiment"])
    if name and name not in study.tables:
        raise unknown(f"table of {study.name}", name, study.tables)
    table = study.tables[name or next(iter(study.tables))]
    return table(rows, config_of(folder))


def config_of(folder: Path) -> dict:
    """Returns the flags of the first run of a folder, and the folder itself.

    Where several of its runs name profiles, the folder that holds these is the profile.
    """
    homes = run_folders(folder)
    configs = [json.loads((home / "config.json").read_text()) for home in homes]
    profiles = [Path(c["profile"]) for c in configs if c.get("profile")]
    if len(profiles) > 1:
        configs[0]["profile"] = str(profiles[0].parent)
    return configs[0] | {"folder": str(folder)}


def run_folders(folder: Path) -> list[Path]:
    """Returns the folder and those in it that hold rows, in order of their names."""
    return sorted(file.parent for file in folder.glob("**/results.jsonl"))


def study_of(name: str) -> Study:
    """Returns a study by its name; raises `InputError` for an unknown one."""
    modules = catalog.studies()
    if name not in modules:
        raise unknown("study", name, modules)
    return modules[name].STUDY


def summaries(home: Path) -> Iterator[tuple[Path, str]]:
    """Yields (file, text) of the summary of every folder of runs."""
    for folder in run_folders(home):
        rows = results.read(folder)
        config = json.loads((folder / "config.json").read_text())
        study = study_of(rows[0]["experiment"])
        yield folder / "summary.md", f"{summary(study, rows, config)}\n"


def main() -> None:
    """Writes every page and every summary whose text has changed."""
    texts = [(p, with_tables(p.read_text(), ROOT / "results")) for p in pages()]
    for file, text in [*texts, *summaries(ROOT / "results")]:
        if not file.exists() or file.read_text() != text:
            results.write(file, text)
            print(f"{file.relative_to(ROOT)} is new")


if __name__ == "__main__":
    main()

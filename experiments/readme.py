"""Makes the README's tables again from the rows in results/.

python -m experiments.readme

A table stands between `<!-- table: FOLDER -->` and `<!-- end -->`.
"""

import json
import re
from pathlib import Path

from experiments.prefix_speed import speed_table
from experiments.surgical import derived
from subtune_jax.reporting import results, tables


def surgical(folder: Path) -> str:
    """Returns our accuracy by target and method, above the reference's if there is one."""
    rows = results.read(folder)
    tests = [r for r in rows if r["split"] == "test"]
    ours = tables.cells([*tests, *derived(rows)], "task", "method")
    reference = folder / "reference.json"
    if not reference.exists():
        return tables.markdown(ours, "target")
    known = json.loads(reference.read_text())["cells"]
    both: tables.Cells = {}
    for task in dict.fromkeys(task for task, _ in ours):
        both |= {(f"{t}, ours", m): cell for (t, m), cell in ours.items() if t == task}
        for method, cell in known[task].items():
            both[f"{task}, PyTorch reference", method] = tuple(cell)
    return tables.markdown(both, "target")


def prefix_speed(folder: Path) -> str:
    """Returns the table of the benchmark of cached prefixes."""
    return speed_table(results.read(folder))


def with_tables(text: str, home: Path) -> str:
    """Returns the README's text with every table made from `home/NAME/results.jsonl`."""

    def made(match: re.Match) -> str:
        name = match[1]
        make = prefix_speed if name == "prefix_speed" else surgical
        return f"<!-- table: {name} -->\n{make(home / name)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", made, text, flags=re.S)


if __name__ == "__main__":
    readme = Path("README.md")
    results.write(readme, with_tables(readme.read_text(), Path("results")))

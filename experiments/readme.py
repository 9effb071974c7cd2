"""Makes the README's tables again from the rows in results/.

python -m experiments.readme

A table stands between `<!-- table: FOLDER -->` and `<!-- end -->`.
"""

import re
from pathlib import Path

from subtune_jax.reporting import results, tables


def with_tables(text: str, folder: Path) -> str:
    """Returns the README's text with every table made from `folder/NAME/results.jsonl`."""

    def made(match: re.Match) -> str:
        tests = [r for r in results.read(folder / match[1]) if r["split"] == "test"]
        table = tables.pivot(tests, "task", "method")
        return f"<!-- table: {match[1]} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", made, text, flags=re.S)


if __name__ == "__main__":
    readme = Path("README.md")
    results.write(readme, with_tables(readme.read_text(), Path("results")))

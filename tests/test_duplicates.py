"""No six lines stand twice in the repository's code."""

import re
from collections import defaultdict
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
LINES = 6


def lines_of(file):
    """Numbers and texts of the lines that say something: not blank, not punctuation alone,
    no comment and no import."""
    code = re.sub(
        r"^(from|import) [^\n(]*(\([^)]*\))?",
        lambda found: "\n" * found[0].count("\n"),
        file.read_text(),
        flags=re.M,
    )
    every = ((i, " ".join(line.split())) for i, line in enumerate(code.split("\n"), 1))
    return [(i, line) for i, line in every if re.match(r"[^#]*\w", line)]


def test_no_six_lines_stand_twice():
    places = defaultdict(list)
    for folder in ("subtune_jax", "experiments", "tests"):
        for file in sorted((HOME / folder).rglob("*.py")):
            lines = lines_of(file)
            for begin in range(len(lines) - LINES + 1):
                part = lines[begin : begin + LINES]
                place = f"{file.relative_to(HOME)}:{part[0][0]}"
                places[tuple(text for _, text in part)].append(place)
    assert [found for found in places.values() if len(found) > 1] == []

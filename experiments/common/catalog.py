"""All studies: every file that stands directly in experiments/."""

import importlib
import re
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).parent.parent


def studies() -> dict[str, ModuleType]:
    """Returns `{name: module}` of all studies; each has a `STUDY` of that name."""
    names = sorted(p.stem for p in HOME.glob("*.py") if not p.stem.startswith("_"))
    return {name: importlib.import_module(f"experiments.{name}") for name in names}


def claim_of(module: ModuleType) -> str:
    """Returns the claim in a study's docstring, in one line."""
    paragraph = re.search(r"^Claims?\b.*?(?=\n\n)", module.__doc__, re.M | re.S)
    return " ".join(paragraph[0].split())

"""Imports go one way, and importing the package starts nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import subtune_jax

PACKAGE = Path(subtune_jax.__file__).parent
RANKS = [
    {"errors", "tree", "flops", "memory"},
    {"network", "function_identity", "losses", "metrics"},
    {"labels", "head"},
    {"models", "data", "selection", "tuning"},
    {"training", "deltas"},
    {"serving", "cost"},
]


def rank(part: str) -> int:
    (found,) = [i for i, parts in enumerate(RANKS) if part in parts]
    return found


def test_every_part_has_a_rank():
    parts = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in MODULES}
    assert parts <= set().union(*RANKS)


def imports(source: str) -> set[str]:
    """Returns the parts of subtune_jax (and `experiments`) that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {f"{module}.{alias.name}" for alias in node.names}
    parts = {tuple(name.split(".")) for name in found}
    assert not any(p[0] == "" for p in parts), "imports are absolute"
    inner = {p[1] for p in parts if p[0] == "subtune_jax" and len(p) > 1}
    return inner | {p[0] for p in parts if p[0] == "experiments"}


def violations(part: str, source: str) -> list[str]:
    """Returns what a module of `part` imports from its own rank or above."""
    return [
        name
        for name in sorted(imports(source))
        if name != part and (name == "experiments" or rank(name) >= rank(part))
    ]


MODULES = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_imports_upward(file):
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert violations(part, file.read_text()) == []


@pytest.mark.parametrize(
    ("part", "line", "found"),
    [
        ("tree", "from subtune_jax.network import Network", ["network"]),
        ("selection", "from subtune_jax.models import resnet", ["models"]),
        ("tuning", "def f():\n import subtune_jax.training.loop", ["training"]),
        ("training", "from subtune_jax import cost", ["cost"]),
        ("cost", "from experiments import cli", ["experiments"]),
        ("training", "from subtune_jax.data.batches import Dataset", []),
    ],
)
def test_an_upward_import_is_found(part, line, found):
    assert violations(part, line) == found


def test_models_alone_import_flax():
    users = {
        file.relative_to(PACKAGE).parts[0]
        for file in MODULES
        if "flax" in file.read_text().split("import", 1)[-1]
        and any(
            isinstance(n, ast.ImportFrom | ast.Import) and "flax" in ast.unparse(n)
            for n in ast.walk(ast.parse(file.read_text()))
        )
    }
    assert users == {"models"}


def test_importing_the_package_starts_no_device():
    code = (
        "import subtune_jax, sys; from jax._src import xla_bridge;"
        "assert not xla_bridge.backends_are_initialized();"
        "assert not {'sklearn', 'matplotlib', 'tensorflow', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_documented():
    for name in subtune_jax.__all__:
        assert getattr(subtune_jax, name).__doc__ or name == "subset", name

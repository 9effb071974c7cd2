"""Imports go one way, and importing the package starts nothing."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import subtune_jax
from experiments.common import documents

PACKAGE = Path(subtune_jax.__file__).parent
RANKS = [
    {"errors", "tree", "flops"},
    {"canonical"},
    {"programs", "host_functions"},
    {"network", "losses", "metrics", "memory"},
    {"labels", "head", "dry_run"},
    {"models", "data", "selection", "tuning", "stage_flops"},
    {"training", "deltas"},
    {"serving", "cost", "evaluation", "recipes"},
    {"demo", "__main__"},
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
        ("cost", "from experiments import surgical_shifts", ["experiments"]),
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


def public(module):
    """Returns the public names of a module or package."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
    return {name: getattr(module, name) for name in names}


@pytest.mark.parametrize("name", ["", *subtune_jax.NAMESPACES])
def test_every_public_name_is_there_and_documented(name):
    module = getattr(subtune_jax, name) if name else subtune_jax
    assert module.__doc__
    for key, value in public(module).items():
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, f"{name}.{key}"


@pytest.mark.parametrize("name", ["", *subtune_jax.NAMESPACES])
def test_every_public_function_has_types(name):
    module = getattr(subtune_jax, name) if name else subtune_jax
    for key, value in public(module).items():
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            types = [p.annotation for p in signature.parameters.values()]
            types.append(signature.return_annotation)
            assert inspect.Signature.empty not in types, f"{name}.{key}"


def studies_and_pages():
    """Yields (name, source) of every study, and of every block of code in the pages."""
    for file in sorted((PACKAGE.parent / "experiments").glob("*.py")):
        yield file.name, file.read_text()
    for page in documents.pages():
        for number, block in enumerate(documents.code_blocks(page)):
            yield f"{page.name} {number}", block


@pytest.mark.parametrize(
    ("name", "source"), [*studies_and_pages()], ids=lambda value: value[:24]
)
def test_studies_and_pages_use_public_names_alone(name, source):
    """Three floors: a study, what studies share, the library by its namespaces."""
    spaces = {"subtune_jax", *(f"subtune_jax.{n}" for n in subtune_jax.NAMESPACES)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                inner = alias.name.startswith("subtune_jax")
                assert not inner or alias.name == "subtune_jax", alias.name
        if isinstance(node, ast.ImportFrom) and node.module.startswith("subtune_jax"):
            assert node.module in spaces, node.module
            space = importlib.import_module(node.module)
            for alias in node.names:
                assert alias.name in public(space), f"{node.module}.{alias.name}"
        if isinstance(node, ast.ImportFrom) and node.module.startswith("experiments"):
            assert node.module.startswith("experiments.common"), node.module
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "st":
            assert hasattr(subtune_jax, node.attr), node.attr

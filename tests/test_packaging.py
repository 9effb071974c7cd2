"""What is imported is declared, what is declared is used, and importing is light."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from subtune_jax.errors import InputError, require_package

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = {  # a distribution by the module it brings, where the two differ
    "PIL": "pillow",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}
OPTIONAL = {
    "torch",
    "transformers",
    "peft",
}  # timed beside ours, where they are installed


def names(requirements):
    return {r.split(">")[0].split("[")[0] for r in requirements}


def imported(folder):
    """Returns the distributions that the modules of a folder import."""
    found = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "require_package"
            ):
                found.add(node.args[0].value.split(".")[0])
    own = {"subtune_jax", "experiments", "tests"} | sys.stdlib_module_names | OPTIONAL
    return {NAMES.get(name, name) for name in found - own}


CORE = names(PROJECT["dependencies"])
EXTRA = names(PROJECT["optional-dependencies"]["experiments"])
IN_FUNCTIONS = {"scikit-learn", "flatbuffers"}  # of the library, that ask for them


def test_the_library_imports_what_it_declares():
    assert imported("subtune_jax") - IN_FUNCTIONS == CORE


def test_studies_import_what_the_extra_declares():
    assert imported("experiments") - CORE == EXTRA - IN_FUNCTIONS
    assert imported("subtune_jax") >= IN_FUNCTIONS


def test_requirements_are_all_of_it():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    declared = {*PROJECT["dependencies"]}
    declared |= {*PROJECT["optional-dependencies"]["experiments"]}
    assert listed == declared | {"chex>=0.1.92"}


def test_importing_the_library_is_light_and_starts_no_device():
    code = (
        "import sys, subtune_jax as st; from jax._src import xla_bridge;"
        "assert not xla_bridge.backends_are_initialized();"
        "heavy = {'sklearn', 'matplotlib', 'tensorflow', 'torch', 'orbax', 'grain',"
        " 'tensorflow_datasets', 'tokenizers', 'huggingface_hub', 'tyro'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert st.demo.digits_task and st.scores.top and 'recipes' in dir(st)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_package_of_the_extra_is_asked_for_in_a_sentence():
    with pytest.raises(InputError, match="F1 needs no_such: pip install 'subtune-jax"):
        require_package("no_such.metrics", "F1")


def test_the_package_says_its_version_its_devices_and_where_to_start():
    command = [sys.executable, "-m", "subtune_jax"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"subtune_jax {version('subtune-jax')}, jax ")
    assert "devices: cpu:0" in done.stdout and "st.demo.digits_task" in done.stdout
    assert "python -m experiments" in done.stdout


def test_all_studies_are_listed_with_their_claims():
    command = [sys.executable, "-m", "experiments"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    studies = {p.stem for p in (ROOT / "experiments").glob("*.py")} - {
        "__init__",
        "__main__",
    }
    for name in studies:
        assert f"python -m experiments.{name}\n    Claim" in done.stdout

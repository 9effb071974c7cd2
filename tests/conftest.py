"""Strictness for all tests, and the real data's place."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The embedded network is pretrained once per session, never taken from the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real test data; absent outside CI is a skip, in CI a failure."""
    folder = Path(os.environ.get("SUBTUNE_TEST_DATA", "../shared/data"))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"no test data in {folder}: set SUBTUNE_TEST_DATA")
        pytest.skip(f"no test data in {folder}: set SUBTUNE_TEST_DATA")
    return folder

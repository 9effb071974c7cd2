"""Freed memory that stays with the process."""

import subprocess
import sys

import pytest

from subtune_jax.memory import keep_freed_memory

FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from subtune_jax.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
x = jnp.ones((4_000, 4_000))
f = jax.jit(jnp.sin)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(20):
    before = faults()
    f(x).block_until_ready()
    counts.append(faults() - before)
print(min(counts))
"""


def faults(way: str) -> int:
    command = [sys.executable, "-c", FAULTS, way]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_step_does_not_ask_the_kernel_for_the_same_pages_again():
    """An array of 64 MB has 15,625 pages of 4 KiB; the heap may still grow in the first
    steps, so the step with the fewest faults is asked."""
    pages = 4_000 * 4_000 * 4 // 4096
    assert faults("leave") > pages // 2
    assert faults("keep") < pages // 10


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()

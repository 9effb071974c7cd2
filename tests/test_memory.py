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


CROWD = """
import jax, numpy as np
import subtune_jax as st
from subtune_jax import memory
from tests import toy

def maps():
    return open("/proc/self/maps").read().count("\\n")

network, counts = toy.mlp(), []
limit = maps() + 200
memory.crowded = lambda: maps() > limit
for n in range(12):  # masks of other counts: each is a program of its own
    indices = {"two/kernel": np.arange(n + 1)}
    labels = st.select(network, {"g": ["two/kernel"], "head": ["head"]})
    phase = st.Phase(labels, st.adam(1e-2), 2, st.tuning.fixed_mask(indices))
    st.fit(network, phase, toy.points(), key=jax.random.key(0))
    counts.append(maps())
print(max(counts) - counts[0], counts[-1] - counts[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="regions are counted by /proc")
def test_programs_make_room_before_the_process_has_no_region_left():
    """Twelve masks of 150 regions each; 200 are allowed, and what comes next."""
    command = [sys.executable, "-c", CROWD]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    most, last = map(int, run.stdout.split())
    assert last <= most < 500

"""Freed memory that stays with the process, or goes back; programs that make room."""

import subprocess
import sys

import pytest

from subtune_jax.memory import keep_freed_memory, return_freed_memory
from tests.processes import QUICK

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


FREED = """
import numpy as np
from subtune_jax import memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def blocks(count):  # below glibc's threshold, so that they lie in its heap
    return [np.ones(100_000, np.uint8) for _ in range(count)]

before = resident()
freed, pinned = blocks(2_000), blocks(1)  # the end of the heap stays in use
freed.clear()
kept = resident() - before
memory.forget_programs()
print(kept, resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_the_memory_of_dropped_programs_goes_back_to_the_kernel():
    """200 MB are freed below a block that is in use; glibc keeps them until it is asked."""
    command = [sys.executable, "-c", FREED]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, left = map(int, run.stdout.split())
    assert kept > 150e6
    assert left < 20e6


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory() and not return_freed_memory()


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
    run = subprocess.run(command, env=QUICK, capture_output=True, text=True, check=True)
    most, last = map(int, run.stdout.split())
    assert last <= most < 500

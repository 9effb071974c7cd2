"""Memory of the process on a CPU: what a step has freed, the next step gets back, and
programs make room for others."""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from subtune_jax import programs

# Options of glibc's mallopt, by their numbers in malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets the process keep the memory that it frees; returns whether it does.

    XLA takes one block for the temporary arrays of a step, and glibc hands it back to the
    kernel afterwards: 107,000 page faults, 0.34 s of a step of 1.3 s (6 layers of width
    384, 16 x 128 tokens, two cores). Call it before the first computation: the process
    stays as large as it ever was until programs are dropped, and compiles up to a tenth
    slower. Does nothing without glibc.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    # One arena, as blocks of this size never fit another one; none of it by mmap, and
    # no trimming of its end: only so does a block come back without new pages.
    options = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: -1}
    return all([mallopt(option, value) for option, value in options.items()])


def return_freed_memory() -> bool:
    """Hands the memory that the process has freed back to the kernel; returns whether any
    went. Does nothing without glibc."""
    # glibc keeps the pages between blocks that are in use. A compilation leaves many.
    trim = _glibc("malloc_trim")
    return bool(trim and trim(0))


def _glibc(name: str) -> Callable | None:
    """Returns a function of the C library, or `None` where it has no such function."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def make_room() -> None:
    """Drops all compiled programs if they crowd the process. Called where a phase begins:
    its shapes are new."""
    # The number of programs is no bound: XLA maps each kernel of an executable apart, 800
    # regions for a step of a 6-layer encoder and every length of text.
    if crowded():
        forget_programs()


def forget_programs() -> None:
    """Drops all compiled programs of the process, those of other code under `jax.jit` among
    them, and hands their memory back: what is still needed is compiled again.

    JAX itself keeps 0.03 MB and 12 objects of every program dropped (jax 0.10, CPU).
    """
    programs.forget()
    jax.clear_caches()  # traced functions, and operations outside of a program
    gc.collect()
    return_freed_memory()


def crowded(share: float = 0.5) -> bool:
    """Returns whether the process has more than this share of the memory regions that Linux
    lets it map. At all of them XLA can compile nothing more, and the process dies."""
    limit, maps = Path("/proc/sys/vm/max_map_count"), Path("/proc/self/maps")
    try:
        return maps.read_bytes().count(b"\n") > share * int(limit.read_text())
    except OSError:  # not on Linux
        return False

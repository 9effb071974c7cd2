"""Memory of the process on a CPU: what a step has freed, the next step gets back."""

import ctypes
import sys

# Options of glibc's mallopt, by their numbers in malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets the process keep the memory that it frees; returns whether it does.

    XLA takes one block for all temporary arrays of a step and frees it afterwards. glibc
    hands large blocks back to the kernel, and the next step pays for each of their pages:
    107,000 page faults, 0.34 s of a step of 1.3 s (6 layers of width 384, 16 x 128 tokens,
    two cores). Call it once, before the first computation, where steps are large and
    many: it holds for the whole process, which stays as large as it ever was, and with
    one arena for all threads programs compile up to a tenth slower. Does nothing where
    the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One arena, as blocks of this size never fit another one; none of it by mmap, and
    # no trimming of its end: only so does a block come back without new pages.
    options = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: -1}
    return all([mallopt(option, value) for option, value in options.items()])

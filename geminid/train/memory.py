"""What a step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import platform

# names of mallopt(3)
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8


def keep_memory() -> None:
    """Tells the C library to keep freed memory, in this process, where that library is glibc.

    A step's buffers are otherwise mapped anew each time, and the kernel clears every page of them: a sixth of the
    processor time of a step of 5 million parameters (docs/log.md, 2026-11-26). To be called before JAX starts threads.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for name, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 1 << 26), (ARENA_MAX, 1)):
        library.mallopt(name, value)

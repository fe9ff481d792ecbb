"""glibc settings for returning memory to the system."""

import ctypes
from contextlib import suppress

# malloc.h
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8

LARGE = 256 * 1024  # Bytes. With each large buffer that is freed, glibc raises its own limit, up to 32 MiB.
ARENAS = 2  # Instead of eight for each core; threads are few here and mostly wait.


def return_large_buffers() -> None:
    """Let glibc return freed large buffers to the system. Does nothing without glibc."""
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_ARENA_MAX, ARENAS)

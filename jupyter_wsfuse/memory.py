"""How a process that moves megabytes all day gets its memory from the operating system."""

from __future__ import annotations

import ctypes
from typing import Final

# <malloc.h>: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX.
_SETTINGS: Final = {-1: 64 << 20, -3: 32 << 20, -8: 1}


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, where it is glibc's.

    Otherwise every megabyte that is read or written is mapped, faulted in page by page and unmapped again, which costs
    more than moving it. At most 64 MiB are kept.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        for option, value in _SETTINGS.items():
            libc.mallopt(option, value)

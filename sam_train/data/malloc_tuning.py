"""What a sample gives back, kept for the next one.

By its defaults glibc hands freed megabytes back to the system, page by page, and fetches them again for the next picture:
hundreds of page faults for each image, which took a tenth to a fifth of a loader's time.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_FROM, _KEEP = 32 << 20, 256 << 20
"""Bytes. The first is the most that glibc takes; larger blocks are mapped one by one and given back, as ever."""


def tune_malloc() -> bool:
    """Let this process keep up to 256 MB that it freed, where its C library is glibc. Whether it does."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM) and mallopt(_M_TRIM_THRESHOLD, _KEEP))

"""glibc malloc settings by which a process reuses the memory of a sample for the next one.

By default glibc returns freed megabytes to the system, page by page, and requests them again for the next image: hundreds of
page faults for each image, which took a tenth to a fifth of a loader's time.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_BYTES, _TRIM_BYTES = 32 << 20, 256 << 20
"""Thresholds. 32 MB is the most that glibc accepts for mmap; larger blocks are still mapped and returned one by one."""


def tune_malloc() -> bool:
    """Let this process keep up to 256 MB of freed memory. Return whether it does, which needs glibc."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))

"""glibc's allocator, told to keep what training frees.

By default it gives every freed tensor of some size back to the kernel, which hands out zeroed pages for the next one:
on a CPU a sixth to a third of a training step. Kept memory is used again at once. What this costs: the process does
not shrink while it runs. Measured in LOG.md (2026-11-25).
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_STEP = 64 * 2**20
"""The heap grows by so many bytes at a time."""


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the rest of the process; False where it is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _STEP))
    return all(mallopt(name, value) == 1 for name, value in settings)

"""Fewer page faults on Linux CPUs: freed tensors stay with the process instead of going back to the kernel each time.

Large logits are allocated and freed in every step; by default glibc maps and unmaps them, which cost a third of the
training time on the machine this was measured on (58.7 s against 43.1 s for one epoch of the demo).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and not to shrink it; False where that cannot be said."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(option, value) == 1
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 * 2**20))
    )

"""Have the C library keep the memory that tensors give back.

A tensor of tens of megabytes is otherwise mapped afresh each time, and the system clears its pages one by one as they
are touched: in a training step that takes longer than all that is done with them.
"""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER, _BELOW = 0, 2**31 - 1


def keep_memory() -> bool:
    """Keep freed memory for the next tensors, from now on; whether that is possible here.

    The process then holds what it needed at the most, but for more than 2 GiB at the end of the heap. Only glibc can.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    malloc = ctypes.CDLL(None).mallopt
    return bool(malloc(_MMAP_MAX, _NEVER)) and bool(malloc(_TRIM_THRESHOLD, _BELOW))

"""Large temporaries from the heap instead of fresh pages, on glibc.

A training step allocates and frees arrays of tens of MB. By default glibc maps each anew and the
kernel clears every page at first touch: on Gowalla at d 128 that costs more than the arithmetic.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's names for them, in glibc's malloc.h
_GLIBC_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)
_INT_MAX = 2**31 - 1


@contextmanager
def heap_for_large_arrays() -> Iterator[bool]:
    """Within it, freed large arrays stay with the process and are used again.

    Yields whether that was arranged. Nothing changes, and it yields False, where the C library is
    not glibc, or where the environment already says how (MALLOC_MMAP_MAX_=0 with
    MALLOC_TRIM_THRESHOLD_=17179869184 do the same for a whole process). On leaving, glibc's default
    values return and free memory goes back to the system.
    """
    libc = None if any(name in os.environ for name in _VARIABLES) else _glibc()
    if libc is None:
        yield False
        return
    arranged = bool(libc.mallopt(_MMAP_MAX, 0)) and bool(libc.mallopt(_TRIM_THRESHOLD, _INT_MAX))
    try:
        yield arranged
    finally:
        for option, value in _GLIBC_DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt.argtypes, libc.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
        libc.malloc_trim.argtypes, libc.malloc_trim.restype = (ctypes.c_size_t,), ctypes.c_int
    except (OSError, AttributeError):
        return None
    return libc

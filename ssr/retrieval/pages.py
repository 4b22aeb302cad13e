"""Memory in large pages: a pass over all of it then waits less for where its pages are."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys

HUGEPAGE, COLLAPSE = 14, 25  # of madvise(2) in Linux, the latter since 6.1


def use_large_pages(array):
    """Moves the memory of an array into pages of 2 MB, where the system can; elsewhere nothing
    happens. Numpy asks for such pages for its own arrays, other libraries do not."""
    if sys.platform != "linux":  # elsewhere these numbers mean something else
        return
    page = mmap.PAGESIZE
    begin = -(-array.ctypes.data // page) * page
    length = (array.ctypes.data + array.nbytes) // page * page - begin
    with contextlib.suppress(AttributeError, OSError):  # a system without madvise
        madvise = ctypes.CDLL(None).madvise
        for advice in (HUGEPAGE, COLLAPSE) if length > 0 else ():
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice)

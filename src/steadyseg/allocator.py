"""How the C library hands out memory: a choice for the whole process, so only programs make it."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Numbers of glibc's mallopt."""

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Torch's variable for large tensors in huge pages; processes that this one starts inherit it."""


def is_set_outside() -> bool:
    """Say whether the environment says what to do with freed memory."""
    return bool({"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys())


def keep_freed_memory() -> None:
    """Let the process keep memory that it frees, in huge pages; to be called before the first large tensor.

    By default glibc gives every large block back to the system when it is freed, and the system clears it page by page
    when the next tensor asks for it, a good part of the time of a network on the CPU. Blocks that are kept are used
    again, so the peak stays that of the largest working set.

    All threads share one arena. With arenas of their own, none of which gives memory back, the process would grow to
    the sum of the largest that each thread ever needed, and as stages of a pipeline seldom all need most at once, it
    would reach that late in a video.

    An environment that sets one of glibc's or torch's own variables for this is left alone, and so is another C
    library.
    """
    if sys.platform != "linux" or is_set_outside():
        return
    os.environ.setdefault(HUGE_PAGES, "1")  # read by torch at its first large tensor
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_TRIM_THRESHOLD, -1)  # nothing goes back
        library.mallopt(_MMAP_MAX, 0)  # no block is mapped by itself; before 2.35 the threshold stops at 32 MiB
        if "MALLOC_ARENA_MAX" not in os.environ:
            library.mallopt(_ARENA_MAX, 1)

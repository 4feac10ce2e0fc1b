"""Kernels for the CPU, each beside its PyTorch forms in ops/: loops that Numba compiles when they are first called.

That takes some seconds once; the machine code is kept beside the source file, or in the user's folder of caches. Each
kernel gives what the PyTorch form gives, or its file says how far off it is. They run where Numba is installed and the
environment variable STEADYSEG_KERNELS is not "reference", on as many threads as torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


def are_chosen() -> bool:
    """Say whether operations on CPU tensors run as kernels."""
    from steadyseg.ops import kernels  # here, as this file ends the longest chain of imports
    from steadyseg.ops.sample import is_exporting

    if is_exporting() or torch.jit.is_tracing() or torch.compiler.is_compiling() or kernels.are_counted():
        return False
    return (os.environ.get("STEADYSEG_KERNELS") or "auto") == "auto" and find_spec("numba") is not None


def compiled(function: Callable[..., Any]) -> Any:
    """Have Numba compile a function at its first call, without Python's lock while it runs.

    Indices must be unsigned: Numba lets negative ones count from the end, which keeps loops from being vectorised.
    """
    import numba  # half a second, and only where a kernel runs

    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no folder to keep machine code in
        return numba.njit(nogil=True, error_model="numpy")(function)


def in_parts(run: Callable[[int, int], Any], count: int, least: int) -> list[Any]:
    """Run `run(first, end)` over 0 to `count`, in torch's number of threads, and return all results in order.

    Args:
        run: computes the items from `first` up to but without `end`, without Python's lock.
        count: of all items.
        least: items that are worth a part; there are up to four parts a thread, as some take longer than others.
    """
    threads = torch.get_num_threads()
    parts = min(4 * threads, max(count // least, 1)) if threads > 1 else 1
    cuts = [count * part // parts for part in range(parts + 1)]
    if parts == 1:
        return [run(0, count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, cuts[:-1], cuts[1:]))

"""Kernels for the CPU, each beside its PyTorch forms in ops/: loops that Numba compiles when they are first called.

That takes some seconds once; the machine code is kept beside the source file, or in the user's folder of caches. Each
kernel gives what the PyTorch form gives, or its file says how far off it is. They run where Numba is installed and the
environment variable STEADYSEG_KERNELS is not "reference", on as many threads as torch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def are_chosen(*tensors: Tensor) -> bool:
    """Say whether an operation on these tensors, without gradients, runs as a kernel."""
    from steadyseg.ops import kernels  # here, as this file ends the longest chain of imports
    from steadyseg.ops.sample import is_exporting

    if is_exporting() or torch.jit.is_tracing() or torch.compiler.is_compiling() or kernels.are_counted():
        return False
    if torch.is_grad_enabled() or any(t.device.type != "cpu" or t.dtype not in _DTYPES for t in tensors):
        return False
    return (os.environ.get("STEADYSEG_KERNELS") or "auto") == "auto" and find_spec("numba") is not None


def to_array(x: Tensor) -> Array:
    """Return a tensor's numbers as a contiguous float32 array, the same memory where it is that already."""
    return x.detach().float().contiguous().numpy()


def compiled(function: Callable[..., Any] | None = None, *, fastmath: set[str] | None = None) -> Any:
    """Have Numba compile a function at its first call, without Python's lock while it runs.

    Indices must be unsigned: Numba lets negative ones count from the end, which keeps loops from being vectorised.

    Args:
        function: what to compile; None makes a decorator.
        fastmath: what the compiler may do with sums, by LLVM's names; None keeps each as it is written.
    """
    import numba  # half a second, and only where a kernel runs

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath or False}

    def compile_later(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to keep machine code in
            return numba.njit(**options)(function)

    return compile_later if function is None else compile_later(function)


def in_parts(run: Callable[[int, int], Any], count: int, least: int) -> list[Any]:
    """Run `run(first, end)` over 0 to `count`, in torch's number of threads, and return all results in order.

    The calling thread takes part. Threads of torch or of another runtime may still be busy waiting for work on all
    cores, and then the others come late.

    Args:
        run: computes the items from `first` up to but without `end`, without Python's lock.
        count: of all items.
        least: items that are worth a part; there are up to four parts a thread, as some take longer than others.
    """
    threads = torch.get_num_threads()
    parts = min(4 * threads, max(count // least, 1)) if threads > 1 else 1
    cuts = [count * part // parts for part in range(parts + 1)]
    left, results = deque(range(parts)), [None] * parts

    def work() -> None:
        while left:
            try:
                part = left.popleft()
            except IndexError:  # another thread was faster
                return
            results[part] = run(cuts[part], cuts[part + 1])

    helpers = [_pool().submit(work) for _ in range(min(threads, parts) - 1)]
    try:
        work()
    finally:
        left.clear()
        for helper in helpers:
            if not helper.cancel():
                helper.result()  # waits, and raises what was raised there
    return results


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="steadyseg-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked process

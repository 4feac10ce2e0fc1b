"""Kernels for the CPU, each beside its PyTorch forms in ops/: loops that Numba compiles when they are first called.

That takes some seconds once; the machine code is kept beside the source file, or in the user's folder of caches. Each
kernel gives what the PyTorch form gives, or its file says how far off it is. They run on as many threads as torch, in
inference, where Numba can be imported and the environment variable STEADYSEG_KERNELS is "auto" or not set; not in what
is compiled by torch, traced or exported.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]
_logger = logging.getLogger(__name__)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def are_chosen(*tensors: Tensor) -> bool:
    """Say whether an operation on these tensors, without gradients, runs as a kernel."""
    from steadyseg.ops import kernels  # here, as this file ends the longest chain of imports
    from steadyseg.ops.sample import is_exporting

    if is_exporting() or torch.jit.is_tracing() or torch.compiler.is_compiling() or kernels.are_counted():
        return False
    if torch.is_grad_enabled() or (os.environ.get("STEADYSEG_KERNELS") or "auto") != "auto":
        return False
    return all(map(_is_plain, tensors)) and _is_numba_there()


def _is_plain(x: Tensor) -> bool:
    """Say whether a tensor has numbers in memory; those of subclasses, such as fake tensors, may have none."""
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype in _DTYPES


@cache
def _is_numba_there() -> bool:
    if find_spec("numba") is None:
        return False
    try:
        import_module("numba")
    except ImportError as error:  # as for a version of NumPy that it does not know
        _logger.warning("numba cannot be imported (%s): labels and attention are computed by torch, slower", error)
        return False
    return True


def to_array(x: Tensor) -> Array:
    """Return a tensor's numbers as a contiguous float32 array, the same memory where it is that already."""
    return x.detach().float().contiguous().numpy()


def compiled(
    function: Callable[..., Any] | None = None, *, is_entry: bool = False, fastmath: set[str] | None = None
) -> Any:
    """Have Numba compile a function at its first call, without Python's lock while it runs.

    Indices must be unsigned: Numba lets negative ones count from the end, which keeps loops from being vectorised.

    Args:
        function: what to compile; None makes a decorator.
        is_entry: whether Python calls it: its machine code is then kept, with that of all it calls. It must take
            arrays, numbers, and tuples of them only: Numba finds what it kept by types, while its file is unchanged.
        fastmath: what the compiler may do with sums, by LLVM's names; None keeps each as it is written.
    """
    import numba  # half a second, and only where a kernel runs

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath or False}

    def compile_later(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=is_entry, **options)(function)
        except RuntimeError:  # no folder to keep machine code in
            return numba.njit(**options)(function)

    return compile_later if function is None else compile_later(function)


def in_threads(run: Callable[[int, int], Any], count: int, least: int) -> list[Any]:
    """Run `run(first, end)` over 0 to `count`, in torch's number of threads.

    The calling thread takes part. Threads of torch or of another runtime may still be busy waiting for work on all
    cores, and then the others come late.

    Args:
        run: computes the items from `first` up to but without `end`, without Python's lock.
        count: of all items.
        least: items that are worth a part; there are up to four parts a thread, as some take longer than others.

    Returns:
        All results, in order.

    Raises:
        BaseException: the first that was raised in a thread, after all have ended.
    """
    threads = torch.get_num_threads()
    parts = min(4 * threads, max(count // least, 1)) if threads > 1 else 1
    cuts = [count * part // parts for part in range(parts + 1)]
    left, results = deque(range(parts)), [None] * parts
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            try:
                part = left.popleft()
            except IndexError:  # all are taken
                return
            try:
                results[part] = run(cuts[part], cuts[part + 1])
            except BaseException as error:
                errors.append(error)

    helpers: list[Future[None]] = []
    try:
        helpers += (_pool().submit(work) for _ in range(min(threads, parts) - 1))
        work()
    except BaseException as error:
        errors.append(error)
    running = [helper for helper in helpers if not helper.cancel()]
    while running:  # none may go on: it would write into memory that is given back
        try:
            running = list(wait(running).not_done)
        except KeyboardInterrupt as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="steadyseg-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked process

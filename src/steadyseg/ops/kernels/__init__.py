"""Triton kernels, each beside its plain PyTorch reference in ops/, and the one place that chooses between the two.

On a GPU the kernels run by themselves. The environment variable STEADYSEG_KERNELS changes that:

| value | CUDA tensors | CPU tensors |
| --- | --- | --- |
| auto, or not set | kernels, if Triton, a C compiler and a card since Ampere are there | reference |
| triton | kernels, or an error that says what is missing | kernels, if TRITON_INTERPRET=1 is set |
| reference | reference | reference |

Where a cell says "if", the reference runs otherwise. With "auto", some operations on CPU tensors have a kernel of
their own, see ops/cpu_kernels. What is compiled without gradients calls the kernels as whole operations. What is
compiled with gradients, or exported, takes the reference; so do other types than float32, bfloat16 and float16, and
training under ``torch.use_deterministic_algorithms``: gradients of what several points read are added up in any order.
TRITON_INTERPRET must be set before anything imports Triton.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from steadyseg.ops.sample import is_exporting
from steadyseg.types import ConfigError

_CHOICES = ("auto", "triton", "reference")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OFF = ContextVar("off", default=False)


@contextmanager
def references_only() -> Iterator[None]:
    """Within this context no kernel is chosen: what counts operations by their names must see them."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


@torch.compiler.assume_constant_result
def are_counted() -> bool:
    """Say whether the context `references_only` is on: operations then take forms that a counter knows."""
    return _OFF.get()


def are_chosen(*tensors: Tensor) -> bool:
    """Say whether an operation on these tensors, all on one device, runs as a kernel.

    Raises:
        ConfigError: if STEADYSEG_KERNELS has an unknown value, or asks for kernels that cannot run here.
    """
    if is_exporting() or torch.jit.is_tracing() or are_counted():
        return False
    if torch.is_grad_enabled() and torch.compiler.is_compiling():
        return False
    if any(tensor.dtype not in _DTYPES for tensor in tensors):
        return False
    is_training = torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled()
    return not is_training and _are_wanted(tensors[0].device)


@torch.compiler.assume_constant_result
def _are_wanted(device: torch.device) -> bool:
    """Say whether the environment and the device want kernels, and have them."""
    wish = os.environ.get("STEADYSEG_KERNELS") or "auto"
    if wish not in _CHOICES:
        raise ConfigError(f"STEADYSEG_KERNELS is '{wish}'; expected auto, triton or reference")
    if wish == "reference":
        return False
    interpreted = device.type == "cpu" and wish == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return False
    missing = _missing(device)
    if missing and wish == "triton":
        raise ConfigError(f"STEADYSEG_KERNELS is triton, but {missing}; set it to auto or reference")
    return not missing


@lru_cache
def _missing(device: torch.device) -> str:
    """Say what keeps kernels from running on a device; nothing if they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cuda":
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "there is no C compiler, which triton needs (install gcc, or name one in CC)"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "the card is older than Ampere (compute capability 8.0)"
    return ""

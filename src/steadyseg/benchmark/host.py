"""The machine: what it is, how fast it multiplies, how much memory is in use, and a fresh process on it."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from steadyseg.allocator import keep_freed_memory
from steadyseg.backends import LIBRARIES
from steadyseg.benchmark.clock import clocked
from steadyseg.benchmark.process import EndedError, Process, at_once
from steadyseg.benchmark.setting import Setting, autocast, ended
from steadyseg.benchmark.turns import Turn

SIDES = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product gives the peak."""


def apart(
    function: Callable[..., dict[str, Any]], name: str, setting: Setting, *, turn: Turn | None = None
) -> dict[str, Any]:
    """Call `measure` or another of this package in a fresh process, which hands out memory as the command line does.

    Args:
        function: what is called.
        name: its first input.
        setting: its second.
        turn: of this measurement, where others run at the same time.

    Raises:
        EndedError: if the process ends without a result, or torch or a driver fails there, as when the memory of a GPU
            does not suffice; the rest of what was asked for may still be measured.
    """
    message = ended(f"{name}: the process", setting)
    with Process(message, first=keep_freed_memory, permit=turn or at_once) as process:
        if turn is not None:
            turn.holds(process)
        try:
            return process(function, name, setting)
        except torch.OutOfMemoryError as error:
            raise EndedError(f"{message}, or a smaller --together" if turn else message) from error
        except RuntimeError as error:
            raise EndedError(f"{name} failed: {' '.join(str(error).split())}") from error


def machine(setting: Setting, *others: Setting) -> dict[str, Any]:
    """Describe where, when and with what measurements were made.

    Args:
        setting: of a measurement.
        others: of more of them, on the same device with as many threads; "setting" then holds what all have in common.
    """
    every = (setting, *others)
    libraries = [name for each in every for name in LIBRARIES.get(each.backend, ())]
    if any(each.precision == "int8" for each in every):
        libraries += LIBRARIES["onnxruntime"]  # it quantises
    wanted = dict.fromkeys(("steadyseg", "torch", "numba", "transformers", *libraries))
    common = {key: value for key, value in asdict(setting).items() if all(getattr(o, key) == value for o in others)}
    versions = {name: metadata.version(name) for name in wanted if find_spec(name)}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": setting.threads or torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if setting.device == "cuda" else None,
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **versions},
        "setting": common,
    }


def peak_gflops(setting: Setting, *, seconds: float = 0.5) -> float:
    """Return the speed of a large matrix product in the setting's precision, in 10^9 operations a second.

    A multiplication and an addition are two operations. The fastest of several products counts.

    Args:
        setting: device, precision and threads.
        seconds: how long products are repeated, at least three times.
    """
    side = SIDES[setting.device]
    left, right = torch.rand(2, side, side, device=setting.device)
    fastest, begun, done = float("inf"), time.perf_counter(), 0
    with torch.inference_mode(), autocast(setting):
        torch.mm(left[:, :64], right[:64])  # starts the library
        while done < 3 or time.perf_counter() - begun < seconds:
            spent, _ = clocked(torch.mm, left, right, is_cuda=setting.device == "cuda")
            fastest, done = min(fastest, spent), done + 1
    return 2 * side**3 / fastest / 1e9


def peak_memory(setting: Setting) -> float:
    """Return the peak memory so far in MiB: of the device's allocator on cuda, else of the process."""
    if setting.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":
        return _status("VmHWM")  # getrusage may tell that of the process which started this one
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def memory_in_use(setting: Setting) -> float | None:
    """Return what is in use now in MiB, as `peak_memory`; None where the system does not tell."""
    if setting.device == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    return _status("VmRSS") if sys.platform == "linux" else None


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 2**10


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())

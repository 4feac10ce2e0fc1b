"""CUDA graphs: the kernels of one graph of a method, recorded once and started by one call afterwards.

A small network spends more time starting kernels than running them. A recording reads its inputs from buffers that
never move and writes to tensors that never move, so a call copies the inputs, replays, and hands out copies: what it
returned before stays as it is, as `step` promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steadyseg.models.base import Graph
from steadyseg.types import ConfigError, ShapeError

Function = Callable[..., tuple[Tensor, ...]]

WARM_UP = 3
"""Runs before the recording: compiling kernels, choosing algorithms and merging weights cannot be recorded."""


class Recording:
    """One function on tensors of one size, recorded.

    The weights it reads are found where they were: after training, moving or loading them, record again. What it
    computes may not depend on values in a way that the host must know, such as the number of selected pixels.
    """

    def __init__(self, function: Function, tensors: Sequence[Tensor], *, pool: Any = None) -> None:
        """Record a function, under the autocast of the caller.

        Args:
            function: tensors in, tensors out, as in `Graph`.
            tensors: example inputs; their sizes and types are those of every call.
            pool: memory that recordings share which never run at the same time, from ``torch.cuda.graph_pool_handle``.

        Raises:
            ConfigError: if the tensors are not on a GPU.
        """
        places = sorted({str(tensor.device) for tensor in tensors})
        if len(places) != 1 or not places[0].startswith("cuda"):
            raise ConfigError(f"CUDA graphs need tensors on one GPU; these are on {', '.join(places)}: move the model")
        self.buffers = buffers_like(tensors)
        self.graph = torch.cuda.CUDAGraph()
        fill(self.buffers, tensors)
        with torch.cuda.device(tensors[0].device), torch.no_grad(), no_weight_cache():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    function(*self.buffers)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self.graph, pool=pool):
                self.results = function(*self.buffers)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run it.

        Args:
            tensors: of the sizes and types of the examples.

        Returns:
            As the function does, in tensors of the caller's own.

        Raises:
            ShapeError: if a tensor is not like its example.
        """
        fill(self.buffers, tensors)
        self.graph.replay()
        return hand_out(self.results, self.buffers, tensors)


class CudaGraphs:
    """Recordings by name, made when they are first needed; those whose inputs change in size are made anew."""

    def __init__(self) -> None:
        self.recordings: dict[str, tuple[tuple[object, ...], Recording]] = {}
        self.pool: Any = None

    def __call__(self, name: str, function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the graph `name`, which is `function`.

        Raises:
            ConfigError: if the tensors are not on a GPU.
        """
        like = signature(tensors)
        known = self.recordings.get(name)
        if known is None or known[0] != like:
            known = None
            self.recordings.pop(name, None)  # gone, so that its memory may serve the new one
            if self.pool is None and torch.cuda.is_available():
                self.pool = torch.cuda.graph_pool_handle()
            known = like, Recording(function, tensors, pool=self.pool)
            self.recordings[name] = known
        return known[1](*tensors)


def record(graph: Graph) -> Recording:
    """Record one of a method's `graphs()`, at the size of its example inputs.

    Raises:
        ConfigError: if they are not on a GPU.
    """
    return Recording(graph.function, tuple(graph.inputs.values()))


def signature(tensors: Sequence[Tensor]) -> tuple[object, ...]:
    """Say what a recording depends on: sizes, types and devices of its inputs, and autocast."""
    like = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
    kind = tensors[0].device.type
    return (*like, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind))


def buffers_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Make tensors of the same sizes, types and layouts, which may be written to with or without inference mode."""
    with torch.inference_mode(False):
        return [torch.empty_like(tensor) for tensor in tensors]


def fill(buffers: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy tensors into the buffers made for their like.

    Raises:
        ShapeError: if a tensor is not like its buffer.
    """
    if len(tensors) != len(buffers):
        raise ShapeError(f"got {len(tensors)} tensors; the recording has {len(buffers)} inputs")
    for number, (buffer, tensor) in enumerate(zip(buffers, tensors, strict=True)):
        if (buffer.shape, buffer.dtype, buffer.device) != (tensor.shape, tensor.dtype, tensor.device):
            raise ShapeError(
                f"input {number} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; it was recorded with "
                f"{buffer.dtype} {list(buffer.shape)} on {buffer.device}: record again"
            )
    with torch.no_grad():
        torch._foreach_copy_(list(buffers), list(tensors))


def hand_out(results: Sequence[Tensor], buffers: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copy results out of a recording; an input that it returns as it is comes back as the caller's own tensor."""
    own = {id(buffer): tensor for buffer, tensor in zip(buffers, tensors, strict=True)}
    return tuple(own[id(result)] if id(result) in own else result.clone() for result in results)


@contextmanager
def no_weight_cache() -> Iterator[None]:
    """Have autocast convert weights inside the recording: those that it keeps are gone when autocast ends."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)

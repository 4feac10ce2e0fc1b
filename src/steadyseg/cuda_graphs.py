"""CUDA graphs: the kernels of one graph of a method, recorded once and started by one call afterwards.

A small network spends more time starting kernels than running them. A recording reads its inputs from buffers that
never move and writes to tensors that never move, so a call copies the inputs, replays, and hands out copies: what it
returned before stays as it is, as `step` promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steadyseg.models.base import Graph, fixed_sizes
from steadyseg.types import ConfigError, ShapeError

Function = Callable[..., tuple[Tensor, ...]]

MOST = 4
"""Recordings of one name, such as for videos of several sizes in turn."""
WARM_UP = 3
"""Runs before the recording: compiling kernels, choosing algorithms and merging weights cannot be recorded."""


class Recording:
    """One function on tensors of one size, recorded.

    The weights it reads are found where they were: after training, moving or loading them, record again. What it
    computes may not depend on values in a way that the host must know, such as the number of selected pixels.
    """

    def __init__(
        self, function: Function, tensors: Sequence[Tensor], *, pool: Any = None, keeps_casts: bool = True
    ) -> None:
        """Record a function, under the autocast of the caller.

        Args:
            function: tensors in, tensors out, as in `Graph`.
            tensors: example inputs; their sizes and types are those of every call.
            pool: memory that recordings share which never run at the same time, from ``torch.cuda.graph_pool_handle``.
            keeps_casts: whether weights are converted for autocast beforehand; a compiled function has its own way.

        Raises:
            ConfigError: if the tensors are not on a GPU.
        """
        places = sorted({str(tensor.device) for tensor in tensors})
        if len(places) != 1 or not places[0].startswith("cuda"):
            raise ConfigError(f"CUDA graphs need tensors on one GPU; these are on {', '.join(places)}: move the model")
        self.buffers = buffers_like(tensors)
        self.graph = torch.cuda.CUDAGraph()
        fill(self.buffers, tensors)
        self.function = function  # with what it reads
        self.casts = KeptCasts(self.buffers) if keeps_casts else None
        run = function if self.casts is None else partial(self.casts.run, function)
        with torch.cuda.device(tensors[0].device), plain_mode(), no_weight_cache(), fixed_sizes():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    run(*self.buffers)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self.graph, pool=pool):
                results = run(*self.buffers)
        self.results = results if isinstance(results, tuple) else (results,)

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
    """Recordings by name and sizes, made when they are first needed: the last `MOST` of a name are kept."""

    takes_whole_steps = True

    def __init__(self, *, keeps_casts: bool = True) -> None:
        self.recordings: dict[tuple[str, tuple[object, ...]], Recording] = {}
        self.pool: Any = None
        self.keeps_casts = keeps_casts

    def __call__(self, name: str, function: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the graph `name`, which is `function`.

        Raises:
            ConfigError: if the tensors are not on a GPU.
        """
        key = name, signature(tensors)
        recording = self.recordings.pop(key, None)
        if recording is None:
            same = [other for other in self.recordings if other[0] == name]
            for oldest in same[: max(len(same) + 1 - MOST, 0)]:
                del self.recordings[oldest]  # so that its memory may serve the new one
            if self.pool is None and torch.cuda.is_available():
                self.pool = torch.cuda.graph_pool_handle()
            recording = Recording(function, tensors, pool=self.pool, keeps_casts=self.keeps_casts)
        self.recordings[key] = recording  # the last one used is the last
        return recording(*tensors)


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


class KeptCasts(TorchDispatchMode):
    """Runs a function, and from its second run on converts what is the same tensor in every run only once.

    These are the weights, which autocast converts at every call. The converted ones live as long as this object, and so
    does all that the function reads and has not made: merged weights too, which a model may compute anew elsewhere.

    Args:
        changing: the function's inputs, which are the same tensors with other values each time.
    """

    def __init__(self, changing: Sequence[Tensor]) -> None:
        super().__init__()
        self._changing = {id(tensor) for tensor in changing}
        self._seen: dict[int, Tensor] | None = None
        """What the first run converted, kept until the second has ended, so that no other tensor has its id."""
        self._now: dict[int, Tensor] = {}
        self._kept: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        """The tensor, which keeps its id, and what it was converted to."""
        self._made: set[int] = set()
        """Ids of what this run has made. What is older and still there has another id."""
        self.read: dict[int, Tensor] = {}
        """What runs read and had not made, by its id."""

    def run(self, function: Function, *tensors: Tensor) -> Any:
        """Run the function, without gradients and outside inference mode."""
        self._made.clear()
        with self:
            results = function(*tensors)
        if self._seen is None:
            self._seen, self._now = self._now, {}
        else:
            self._seen = {}
        return results

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See TorchDispatchMode."""
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and id(tensor) not in self._made:
                self.read[id(tensor)] = tensor
        results = self._converted(operation, args, kwargs)
        self._made.update(id(tensor) for tensor in tree_leaves(results) if id(tensor) not in self.read)
        return results

    def _converted(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, or find what it converted before."""
        if operation is torch.ops.aten._to_copy.default and set(kwargs) == {"dtype"}:
            kind = kwargs["dtype"]
        elif operation is torch.ops.aten.to.dtype and len(args) == 2 and not kwargs:  # of what inference mode made
            kind = args[1]
        else:
            return operation(*args, **kwargs)
        source, key = args[0], (id(args[0]), kind)
        if key in self._kept:
            return self._kept[key][1]
        converted = operation(*args, **kwargs)
        if self._seen is None:
            self._now[id(source)] = source
        elif id(source) in self._seen and id(source) not in self._changing:
            self._kept[key] = source, converted
        return converted


@contextmanager
def plain_mode() -> Iterator[None]:
    """Neither gradients nor inference mode, in which whole operations would reach a dispatch mode undivided."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def no_weight_cache() -> Iterator[None]:
    """Have autocast convert weights inside the recording: those that it keeps are gone when autocast ends."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)

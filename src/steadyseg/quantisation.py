"""Graphs in 8-bit integers: what flows through them on real frames sets the range of every activation.

A product with weights (convolution or linear map) reads uint8 activations, with a scale and a zero for the tensor, and
int8 weights, with a scale for every output channel. Everything else stays in float: the two products inside attention,
soft-max, norms, GELU, samplers and sums. What results is ONNX with pairs of QuantizeLinear and DequantizeLinear, which
ONNX Runtime and OpenVINO both run in integers.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steadyseg.backends import Name, Session, check, needs, open_onnxruntime, open_openvino, quiet, trace
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError, DataError

PRODUCTS = ["Conv", "Gemm", "MatMul"]
"""ONNX's operators that may multiply by weights."""
FLOAT_OUTPUT = ["Gemm", "MatMul"]
"""Those whose sums stay in float; ONNX Runtime has a convolution in integers only where its result is one, too."""


class Calls(NamedTuple):
    """What a graph was called with while frames were streamed."""

    function: Callable[..., Any]
    """What the graph is in torch."""
    inputs: list[tuple[Tensor, ...]]
    """Of every call."""


@torch.inference_mode()
def record(model: VideoSegmenter, frames: Sequence[Tensor]) -> dict[str, Calls]:
    """Stream frames through a model in torch, and keep what its graphs are called with, so also what is remembered.

    A method that can read later frames then does so, too: it may have graphs for that.

    Args:
        model: in evaluation mode.
        frames: of one video, each uint8 [B, 3, H, W].

    Returns:
        The calls of each graph that ran, by name.
    """
    calls: dict[str, Calls] = {}

    def keep(name: str, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        calls.setdefault(name, Calls(function, [])).inputs.append(tensors)
        results = function(*tensors)
        return results if isinstance(results, tuple) else (results,)

    previous, state = model.backend, None
    model.backend = keep
    try:
        for frame in frames:
            _, state = model.step(frame, state)
        if type(model).segment is not VideoSegmenter.segment:
            deque(model.segment(frames), maxlen=0)
    finally:
        model.backend = previous
    return calls


def quantise(graph: Any, samples: Sequence[tuple[Tensor, ...]]) -> Any:
    """Turn a graph's products with weights into those of 8-bit integers.

    Args:
        graph: ONNX, in fp32.
        samples: inputs of at least one call, in order; the values between them and the outputs give the ranges.

    Returns:
        ONNX with the same inputs and outputs; `graph` itself where nothing multiplies by weights.
    """
    onnx, onnxruntime = needs("onnx"), needs("onnxruntime")
    library = import_module("onnxruntime.quantization")
    names = [entry.name for entry in graph.graph.input]
    feeds: Iterator[dict[str, Any]] = (
        {name: tensor.numpy() for name, tensor in zip(names, sample, strict=True)} for sample in samples
    )

    class Samples(library.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        merged, written = Path(folder) / "merged.onnx", Path(folder) / "int8.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(merged)  # weights that are computed become constants
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        network = onnx.load(merged)
        products = _products(network)
        if not products:
            return graph
        onnx.save(network, merged)
        library.quantize_static(
            merged,
            written,
            Samples(),
            op_types_to_quantize=PRODUCTS,
            nodes_to_quantize=products,
            per_channel=True,
            activation_type=library.QuantType.QUInt8,
            weight_type=library.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": FLOAT_OUTPUT},
        )
        return onnx.load(written)


def _products(network: Any) -> list[str]:
    """List the products with weights by name, giving names where there are none. Those of attention have no weights."""
    weights = {entry.name for entry in network.graph.initializer}
    found = []
    for number, node in enumerate(network.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        if node.op_type in PRODUCTS and node.input[1] in weights:
            found.append(node.name)
    return found


def check_int8(name: Name, device: str) -> None:
    """Refuse a backend that has no 8-bit integers.

    Raises:
        ConfigError: if it has none, runs elsewhere than on `device`, or a library is missing.
    """
    if name not in ("openvino", "onnxruntime"):
        raise ConfigError(f"backend {name} has no int8: take --backend openvino or onnxruntime")
    check(name, device)
    needs("onnxruntime")  # it finds the ranges


def attach_int8(model: VideoSegmenter, name: Name, frames: Sequence[Tensor]) -> VideoSegmenter:
    """Have the graphs of a model run in 8-bit integers by a backend, from its next `step` on.

    Args:
        model: in evaluation mode, on the CPU.
        name: of the backend, openvino or onnxruntime.
        frames: of one video, each uint8 [B, 3, H, W]; they set the ranges, and the only size that can be run.

    Returns:
        The same model.

    Raises:
        ConfigError: if a library is missing, or the backend has no integers. A graph that is called later, but did not
            run on these frames, raises DataError then.
    """
    check_int8(name, model.class_weights.device.type)
    start: Callable[[bytes], Session] = open_openvino if name == "openvino" else open_onnxruntime
    sessions = {}
    for graph, calls in record(model, frames).items():
        inputs = {f"input{number}": tensor for number, tensor in enumerate(calls.inputs[-1])}
        traced = trace(model, calls.function, inputs).model_proto
        sessions[graph] = start(quantise(traced, calls.inputs).SerializeToString())

    def run(name: str, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        if name not in sessions:
            raise DataError(
                f"the graph '{name}' did not run on the {len(frames)} frames that set the ranges: give more"
            )
        return sessions[name](*tensors)

    model.backend = run
    return model

"""Static quantisation: graphs in 8-bit integers, with scales from what flows through them on calibration frames.

A product with weights (convolution or linear map) reads uint8 activations, with a scale and a zero point for the
tensor, and int8 weights, with a scale for every output channel. A convolution's result is rounded to uint8 as well. In
float stay the two products inside attention, soft-max, norms, GELU, samplers and sums; the product that ends a graph,
as scores of a convolution would have 256 levels, and OpenVINO fails on a linear map without bias there where the batch
is free; and, from 64 classes on, every classifier, as `layers.classify` puts the weights first. What results is ONNX in
QDQ form, pairs of QuantizeLinear and DequantizeLinear, which ONNX Runtime and OpenVINO both run in integers.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steadyseg.backends import Name, Session, check, needs, open_onnxruntime, open_openvino, quiet, trace
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError, DataError, ShapeError

LINEAR_OPS = ["Conv", "Gemm", "MatMul"]
"""ONNX's operators that may multiply by weights."""
FLOAT_OUTPUT = ["Gemm", "MatMul"]
"""Those whose sums stay in float; ONNX Runtime has a convolution in integers only where its result is one, too."""

AFTER_SCORES = {"Reshape", "Transpose", "Identity", "Div"}
"""What may follow the product that ends a graph."""


class Calls(NamedTuple):
    """What a graph was called with while frames were streamed."""

    function: Callable[..., Any]
    """What the graph is in torch."""
    inputs: list[tuple[Tensor, ...]]
    """Of every call, in the graph's order: frames uint8 [B, 3, H, W], maps float32 [B, C, h, w]."""


@torch.inference_mode()
def record(model: VideoSegmenter, frames: Sequence[Tensor]) -> dict[str, Calls]:
    """Stream frames through a model in torch, and keep what its graphs are called with, state included.

    A method that can read later frames then does so, too: it may have graphs for that.

    Args:
        model: in evaluation mode.
        frames: the beginning of a video, each uint8 [B, 3, H, W].

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
        samples: inputs of at least one call, each a tensor of the graph's dtype and shape, in the graph's order. The
            least and the largest value of an activation in all of them give its scale and zero point.

    Returns:
        ONNX with the same inputs and outputs; `graph` itself where nothing multiplies by weights.

    Raises:
        DataError: if the graph works on points that it chooses, and chooses none in any sample.
    """
    onnx, onnxruntime = needs("onnx"), needs("onnxruntime")
    library = import_module("onnxruntime.quantization")
    names = [entry.name for entry in graph.graph.input]
    feeds = [{name: tensor.numpy() for name, tensor in zip(names, sample, strict=True)} for sample in samples]
    waiting = iter(feeds)

    class Samples(library.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(waiting, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        merged, written = Path(folder) / "merged.onnx", Path(folder) / "int8.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(merged)  # weights that are computed become constants
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        network = onnx.load(merged)
        nodes = _linear_nodes(network)
        if not nodes:
            return graph
        _check_chosen(network, feeds)
        onnx.save(network, merged)
        library.quantize_static(
            merged,
            written,
            Samples(),
            op_types_to_quantize=LINEAR_OPS,
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=library.QuantType.QUInt8,
            weight_type=library.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": FLOAT_OUTPUT},
        )
        return _without_unused_sets(onnx.load(written))


def _linear_nodes(network: Any) -> list[str]:
    """List by name what is quantised, giving names where there are none; see the top of this file."""
    weights = {entry.name for entry in network.graph.initializer}
    makers = {name: node for node in network.graph.node for name in node.output}
    last = network.graph.output[0].name  # scores, where a graph has any, are its first output
    while last in makers and makers[last].op_type in AFTER_SCORES:
        last = makers[last].input[0]
    found = []
    for number, node in enumerate(network.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        if node.op_type in LINEAR_OPS and node.input[1] in weights and node.output[0] != last:
            found.append(node.name)
    return found


def _check_chosen(network: Any, feeds: Sequence[dict[str, Any]]) -> None:
    """Refuse samples in which a graph that chooses points never chooses one: nothing would give scales to what follows.

    Raises:
        DataError: if so.
    """
    onnx, onnxruntime = needs("onnx"), needs("onnxruntime")
    chosen = [node.output[0] for node in network.graph.node if node.op_type == "NonZero"]
    if not chosen:
        return
    watched = onnx.ModelProto()
    watched.CopyFrom(network)
    kind = onnx.TensorProto.INT64
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in chosen)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    empty = [True] * len(chosen)
    for feed in feeds:
        points = session.run(chosen, feed)
        empty = [was and found.size == 0 for was, found in zip(empty, points, strict=True)]
    if any(empty):
        raise DataError(
            f"no point is refined in any of the {len(feeds)} calls of a graph on the calibration frames, so nothing "
            "gives scales to its integers: calibrate on frames with more motion"
        )


def _without_unused_sets(network: Any) -> Any:
    """Take the operator sets that no node is of out of a file's list; a runtime may know some of them not."""
    used = {node.domain for node in network.graph.node}
    kept = [entry for entry in network.opset_import if entry.domain in used]
    del network.opset_import[:]
    network.opset_import.extend(kept)
    return network


def check_int8(name: Name, device: str) -> None:
    """Refuse a backend that has no 8-bit integers.

    Raises:
        ConfigError: if it has none, runs elsewhere than on `device`, or a library is missing.
    """
    if name not in ("openvino", "onnxruntime"):
        raise ConfigError(f"backend {name} has no int8: take --backend openvino or onnxruntime")
    check(name, device)
    needs("onnxruntime")  # it quantises


def attach_int8(model: VideoSegmenter, name: Name, frames: Sequence[Tensor]) -> VideoSegmenter:
    """Have the graphs of a model run in 8-bit integers by a backend, from its next `step` on.

    Args:
        model: in evaluation mode, on the CPU.
        name: of the backend, openvino or onnxruntime.
        frames: calibration frames, of one video, each uint8 [B, 3, H, W]; other sizes and batches cannot be run then.

    Returns:
        The same model. Its next steps raise DataError for a graph that did not run on these frames, and ShapeError for
        frames of another size or batch.

    Raises:
        ConfigError: if a library is missing, or the backend has no integers.
        DataError: as `quantise`.
    """
    check_int8(name, model.class_weights.device.type)
    open_session: Callable[[bytes], Session] = open_openvino if name == "openvino" else open_onnxruntime
    sessions: dict[str, tuple[list[list[int]], Session]] = {}
    for graph, calls in record(model, frames).items():
        inputs = {f"input{number}": tensor for number, tensor in enumerate(calls.inputs[-1])}
        traced = trace(model, calls.function, inputs).model_proto
        session = open_session(quantise(traced, calls.inputs).SerializeToString())
        sessions[graph] = [list(tensor.shape) for tensor in inputs.values()], session

    def run(name: str, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        if name not in sessions:
            raise DataError(
                f"the graph '{name}' did not run on the {len(frames)} calibration frames, so it has no int8: calibrate "
                "on frames that need it, or take another precision"
            )
        shapes, session = sessions[name]
        given = [list(tensor.shape) for tensor in tensors]
        if given != shapes:
            raise ShapeError(
                f"the int8 graph '{name}' takes inputs of shapes {shapes}; given {given}: calibrate on frames of this "
                "size and batch"
            )
        return session(*tensors)

    model.backend = run
    return model

"""One graph run by torch, torch.compile, OpenVINO or ONNX Runtime: the same tensors in, the same tensors out.

A backend takes the place of torch in `VideoSegmenter.compute`, so `step`, streams, evaluation and prediction do not
change. Graphs are compiled when they are first called, for the sizes of that call.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from steadyseg import graph_cache
from steadyseg.models.base import Backend, VideoSegmenter, fingerprint
from steadyseg.ops import deformable_attention, selective_attention  # noqa: F401 (functions for NODES)
from steadyseg.ops.sample import ARGUMENTS, DOMAIN, NODES, kept_nodes
from steadyseg.types import ConfigError

Name = Literal["torch", "cuda_graphs", "compile", "openvino", "onnxruntime"]
Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
OPSET = 20
"""Of the ONNX files: the first with GELU, and with samplers as they are now."""
LIBRARIES = {"onnx": ("onnx", "onnxscript"), "onnxruntime": ("onnxruntime",), "openvino": ("openvino",)}
"""What writing ONNX and running it needs, by name for people."""

Session = Callable[..., tuple[Tensor, ...]]
"""One graph, ready to run: tensors in, tensors out."""


def attach(model: VideoSegmenter, name: Name, *, precision: Precision = "fp32") -> VideoSegmenter:
    """Have the graphs of a model run by a backend, from its next `step` on.

    Weights that are changed later do not reach a graph that is compiled already: attach again.

    Args:
        model: in evaluation mode, on the device to use.
        name: of the backend; torch is the plain way.
        precision: of OpenVINO's arithmetic; torch and torch.compile follow autocast, ONNX Runtime has fp32 only.

    Returns:
        The same model.

    Raises:
        ConfigError: if a library or a compiler is missing, or the backend lacks the device or the precision.
    """
    check(name, model.class_weights.device.type, precision)
    backend: Backend | None = None
    if name in ("cuda_graphs", "compile") and model.class_weights.device.type == "cuda":
        from steadyseg.cuda_graphs import CudaGraphs  # here, as everything that runs a model imports this file

        backend = CudaGraphs(keeps_casts=name == "cuda_graphs")
    if name == "compile":
        backend = Compiled(model, backend)
    elif name == "openvino":
        backend = OpenVINO(model, precision)
    elif name == "onnxruntime":
        backend = OnnxRuntime(model)
    model.backend = backend
    return model


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Have what runs in torch, in this thread, compute in bf16 or fp16; any other precision changes nothing."""
    return torch.autocast(device, DTYPES[precision]) if precision in DTYPES else nullcontext()


def check(name: Name, device: str, precision: Precision = "fp32") -> None:
    """Refuse what a backend cannot do; arguments as of `attach`, with the model's device by name.

    Raises:
        ConfigError: if a library or a compiler is missing, or the backend lacks the device or the precision.
    """
    if name in ("openvino", "onnxruntime") and device != "cpu":
        raise ConfigError(f"backend {name} runs on the CPU, and the model is on {device}: take --device cpu")
    if name == "cuda_graphs" and device != "cuda":
        raise ConfigError(f"backend cuda_graphs runs on an NVIDIA GPU, and the model is on {device}: take another")
    if name == "compile":
        compiler = os.environ.get("CXX", "g++")
        if device == "cpu" and shutil.which(compiler) is None:
            raise ConfigError(
                f"backend compile needs a C++ compiler, and there is no {compiler}: install one, or set CXX"
            )
    if name == "openvino" and precision == "fp16":
        raise ConfigError("backend openvino has no fp16 on a CPU; take --precision fp32 or bf16")
    if name == "onnxruntime" and precision != "fp32":
        raise ConfigError(f"backend onnxruntime runs in fp32, not in {precision}: take --precision fp32")
    if name in ("openvino", "onnxruntime"):
        needs("onnx")
        needs(name)


def needs(library: str) -> Any:
    """Import a library of LIBRARIES, and return its first module.

    Raises:
        ConfigError: saying how to install it.
    """
    if library == "openvino":  # whose import would else report to its makers over the network, from a forked process
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    modules = []
    for name in LIBRARIES[library]:
        try:
            modules.append(import_module(name))
        except ImportError:
            raise ConfigError(f"{library} needs the package {name}: pip install 'steadyseg[export]'") from None
    return modules[0]


# ---- backends ----------------------------------------------------------------------------------------------------


class Compiled:
    """torch.compile, a graph at a time; on a GPU with weights as constants, and recorded as one CUDA graph."""

    def __init__(self, model: VideoSegmenter, recorded: Backend | None) -> None:
        self.model = model
        self.functions: dict[str, Callable[..., Any]] = {}
        self.recorded = recorded
        self.merged: list[Any] = []
        """Merged weights that compiled functions read; torch forgets a function when what it read is gone."""
        self.takes_whole_steps = recorded is not None

    def __call__(self, name: str, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run a graph; see models.base.Backend."""
        if name not in self.functions:
            function(*tensors)  # merges the weights, which the compiled function then takes as they are
            self.merged += [getattr(module, "_folded", None) for module in self.model.modules()]
            compiled = torch.compile(function, dynamic=None if self.recorded is None else False)
            if self.recorded is not None:  # weights as constants, which torch does not look for among its options
                compiled = torch._inductor.config.patch(freezing=True)(compiled)
            self.functions[name] = compiled
        if self.recorded is not None:
            return self.recorded(name, self.functions[name], *tensors)
        results = self.functions[name](*tensors)
        return results if isinstance(results, tuple) else (results,)


class Traced(ABC):
    """A backend that runs ONNX. Each graph is traced at its first call, and again when sizes change.

    What was traced once, for the same model and sizes, is found in the cache of graphs.
    """

    keeps_nodes = False
    """Whether the runtime has torch run the functions in `ops.sample.NODES`, and simplifies graphs by itself."""

    def __init__(self, model: VideoSegmenter) -> None:
        self.model = model
        self.sessions: dict[str, tuple[list[torch.Size], Session]] = {}

    def __call__(self, name: str, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run a graph; see models.base.Backend."""
        sizes = [tensor.shape for tensor in tensors]
        known = self.sessions.get(name)
        if known is None or known[0] != sizes:
            known = sizes, self._session(name, function, tensors)
            self.sessions[name] = known
        return known[1](*tensors)

    def _session(self, name: str, function: Callable[..., Any], tensors: Sequence[Tensor]) -> Session:
        """Find a graph in the cache, or trace it; -> the graph ready to run."""
        key = self._key(name, tensors)
        known = None if key is None else graph_cache.read(key)
        if known is not None:
            try:
                return self.open(known)
            except MemoryError:
                raise
            except Exception as error:  # each runtime has its own, of no common kind
                text = "the graph %s in %s cannot be opened (%s): it is traced again"
                logging.getLogger(__name__).warning(text, key, graph_cache.folder(), error)
        inputs = {f"input{number}": tensor for number, tensor in enumerate(tensors)}
        with kept_nodes() if self.keeps_nodes else nullcontext():
            program = trace(self.model, function, inputs, optimize=not self.keeps_nodes)
        graph = program.model_proto.SerializeToString()
        session = self.open(graph)
        if key is not None:
            graph_cache.write(key, graph)
        return session

    def _key(self, name: str, tensors: Sequence[Tensor]) -> str | None:
        """Return a graph's name in the cache; None where it has code of others, which the cache does not know."""
        kinds = {type(module).__module__.partition(".")[0] for module in self.model.modules()}
        if not kinds <= {"steadyseg", "torch"}:
            return None
        kind = type(self.model)
        shapes = [[str(tensor.dtype), *tensor.shape] for tensor in tensors]
        saved = self.model.state_dict().keys()
        constants = {name: value.tolist() for name, value in self.model.named_buffers() if name not in saved}
        of_model = kind.__module__, kind.__qualname__, repr(self.model.config), fingerprint(self.model), constants
        return graph_cache.key(*of_model, name, shapes, self.keeps_nodes)

    @abstractmethod
    def open(self, graph: bytes) -> Session:
        """Make an ONNX file ready to run."""


class OnnxRuntime(Traced):
    """ONNX Runtime on the CPU, with as many threads as torch."""

    def open(self, graph: bytes) -> Session:
        """See Traced."""
        return open_onnxruntime(graph)


class OpenVINO(Traced):
    """OpenVINO on the CPU, with as many threads as torch; it has torch read at fractional points."""

    keeps_nodes = True

    def __init__(self, model: VideoSegmenter, precision: Precision = "fp32") -> None:
        super().__init__(model)
        self.precision = precision

    def open(self, graph: bytes) -> Session:
        """See Traced."""
        return open_openvino(graph, self.precision)


def open_onnxruntime(graph: bytes | str) -> Session:
    """Make an ONNX graph, or a file of one, ready to run in ONNX Runtime."""
    onnxruntime = needs("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = session.run(None, dict(zip(names, _arrays(tensors), strict=True)))
        return tuple(map(torch.from_numpy, results))

    return run


def open_openvino(graph: bytes | str, precision: Precision = "fp32") -> Session:
    """Make an ONNX graph, or a file of ONNX or OpenVINO's own format, ready to run in OpenVINO."""
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],  # its own choice may be less than fp32
        "ENABLE_CPU_PINNING": False,  # torch's threads would inherit the one core of the thread that calls back
    }
    core = openvino_core()
    nodes = _Nodes()
    token = _NODES_OF.set(nodes)
    try:
        request = core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()
    except Exception:  # OpenVINO's own, of several kinds
        if nodes.error is not None:
            raise nodes.error from None
        raise
    finally:
        _NODES_OF.reset(token)
    nodes.is_open = True
    return _OpenVINOSession(request, nodes)


class _Nodes:
    """The nodes of a session that call back to torch, which OpenVINO itself does not keep."""

    def __init__(self) -> None:
        self.is_open = False
        self.kept: list[Any] = []
        self.passing: deque[Any] = deque(maxlen=64)
        """Where sizes are free, OpenVINO copies nodes at every call, to ask for the shapes of their results."""
        self.error: BaseException | None = None
        """What the last call back raised."""

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what is raised in a call back, such as by Ctrl-C: OpenVINO turns it into an error of its own."""
        try:
            yield
        except BaseException as error:
            self.error = self.error or error  # what follows from the first says less
            raise

    def add(self, node: Any) -> None:
        """Keep a node."""
        (self.passing if self.is_open else self.kept).append(node)


_NODES_OF: ContextVar[_Nodes] = ContextVar("nodes_of")
"""The session that is being opened."""


class _OpenVINOSession:
    """A graph in OpenVINO."""

    def __init__(self, request: Any, nodes: _Nodes) -> None:
        self.request = request
        self.nodes = nodes

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        try:
            results = self.request.infer(_arrays(tensors), share_inputs=True)
        except RuntimeError:  # OpenVINO's own, perhaps as a call back gave it no result
            if self.nodes.error is None:
                raise
        error, self.nodes.error = self.nodes.error, None
        if error is not None:
            raise error
        return tuple(torch.from_numpy(results[number]) for number in range(len(results)))

    def __del__(self) -> None:
        del self.request  # before its nodes


@cache
def openvino_core() -> Any:
    """Return the process' one OpenVINO core.

    Each core sets a stack for signal handlers and puts back the one before when it ends. Of two cores that end in the
    order in which they began, the second puts back what the first has freed, and the next signal kills the process.
    """
    core = needs("openvino").Core()
    extension = import_module("openvino.frontend.onnx").ConversionExtension
    for name in NODES:
        core.add_extension(extension(name, DOMAIN, partial(_call_node, name)))
    return core


def _call_node(name: str, context: Any) -> Any:
    """Make a node of `ops.sample.NODES` one of OpenVINO's, which calls back."""
    nodes = _NODES_OF.get()
    with nodes.noting():
        inputs = [context.get_input(number) for number in range(context.get_input_size())]
        return _node_class()(nodes, name, context.get_attribute(ARGUMENTS), inputs).outputs()


@cache
def _node_class() -> Any:
    """Return OpenVINO's operation that has torch run a node; a class of its kind needs the library."""
    openvino = needs("openvino")

    class Called(openvino.Op):  # type: ignore[name-defined, misc]
        """One node."""

        def __init__(self, nodes: _Nodes, name: str, arguments: str, inputs: Any) -> None:
            self.nodes = weakref.ref(nodes)  # which hold this, and Python finds no circle through C++
            self.called, self.arguments = name, arguments
            nodes.add(self)
            super().__init__(weakref.proxy(self), inputs)  # each would else keep the other, and the weights, for good

        @property
        def session_nodes(self) -> _Nodes:
            nodes = self.nodes()
            assert nodes is not None, "a session ends after its request"
            return nodes

        def validate_and_infer_types(self) -> None:
            with self.session_nodes.noting():
                shapes = [self.get_input_partial_shape(number) for number in range(self.get_input_size())]
                shape = openvino.PartialShape(list(NODES[self.called].shape(*shapes)))
                self.set_output_type(0, self.get_input_element_type(0), shape)

        def clone_with_new_inputs(self, inputs: Any) -> Any:
            with self.session_nodes.noting():
                return Called(self.session_nodes, self.called, self.arguments, inputs)

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: Any, inputs: Any) -> bool:
            nodes = self.session_nodes
            if nodes.error is not None:  # the inputs are what a node before this one left undone
                return True
            try:
                with torch.inference_mode(), torch.autocast("cpu", enabled=False):
                    tensors = [torch.from_numpy(entry.data) for entry in inputs]
                    result = NODES[self.called].function(*tensors, *json.loads(self.arguments))
                outputs[0].shape = list(result.shape)
                np.copyto(outputs[0].data, result.numpy())
            except BaseException as error:  # in OpenVINO's threads it would be lost, or end the process
                nodes.error = error
            return True

    return Called


def _arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    return [np.ascontiguousarray(tensor.detach().numpy()) for tensor in tensors]


# ---- from a function to ONNX -------------------------------------------------------------------------------------


class _Graph(nn.Module):
    """A function beside the model whose weights it reads."""

    def __init__(self, model: VideoSegmenter, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the function."""
        results = self.function(*tensors)
        return results if isinstance(results, tuple) else (results,)


def trace(
    model: VideoSegmenter,
    function: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    *,
    outputs: Sequence[str] | None = None,
    dynamic: Sequence[Mapping[int, Any]] | None = None,
    optimize: bool = True,
) -> Any:
    """Write a function as ONNX.

    Args:
        model: in evaluation mode; its weights are in the graph, merged where the model merges them.
        function: tensors in, a tensor or several out.
        inputs: example inputs, by name.
        outputs: names of the results; None numbers them.
        dynamic: for every input, which axes may have any size; see torch.export. None fixes all.
        optimize: merge what can be merged in the graph, which takes about a third of the time.

    Returns:
        torch's ONNXProgram.
    """
    needs("onnx")
    with torch.inference_mode(False), torch.no_grad(), quiet():
        examples = tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs.values())
        with torch.autocast(model.class_weights.device.type, enabled=False):
            function(*examples)  # refuses what does not fit, and merges the weights, which become constants
            return torch.onnx.export(
                _Graph(model, function).eval(),
                examples,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=None if outputs is None else list(outputs),
                optimize=optimize,
                dynamic_shapes=None if dynamic is None else (tuple(dict(axes) for axes in dynamic),),
                verbose=False,
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the notes of the libraries that write ONNX from the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # without any handler, a library's first note installs one for good

    def is_error(record: logging.LogRecord) -> bool:  # asked for what is logged on the root itself, as some of them do
        return record.levelno >= logging.ERROR

    root.addFilter(is_error)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(is_error)
        root.removeHandler(silent)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""A folder of exported graphs, run by a backend in place of torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steadyseg.backends import Name, Precision, Session, check, needs, open_onnxruntime, open_openvino
from steadyseg.config import options_to_dict
from steadyseg.models.base import VideoSegmenter, fingerprint
from steadyseg.types import ConfigError, DataError, ShapeError

ABOUT = "steadyseg.json"
"""The file that says what the others are."""
OUTSIDE = {"start", "interval", "dropout", "drop_path"}
"""Options that change no graph, in any method: of the schedule, and of training."""


class GraphFile(NamedTuple):
    """One graph of a folder."""

    file: str
    """Its name in the folder."""
    inputs: tuple[tuple[str, tuple[int | None, ...]], ...]
    """Name and shape of each input, in order; an axis of None takes any size."""


class About(NamedTuple):
    """What a folder says of its graphs."""

    identity: dict[str, Any]
    """Of the exported model, see `identity`."""
    precision: str
    """fp32 or int8."""
    graphs: dict[str, GraphFile]
    """By name."""


def identity(model: VideoSegmenter) -> dict[str, Any]:
    """What makes the graphs of two models the same, as JSON has it: method, options, classes and weights."""
    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                "method": type(model).__module__.rpartition(".")[2],
                "config": options_to_dict(model.config),
                "classes": model.classes,
                "weights": fingerprint(model),
            }
        )
    )
    return plain


def attach_folder(model: VideoSegmenter, folder: Path, name: Name, *, precision: Precision = "fp32") -> VideoSegmenter:
    """Have the graphs in a folder run by a backend, from the model's next `step` on.

    Args:
        model: what was exported, in evaluation mode, on the CPU.
        folder: what `export` wrote.
        name: of the backend, openvino or onnxruntime.
        precision: of what the graphs compute in float, see `backends.attach`.

    Returns:
        The same model.

    Raises:
        ConfigError: if a library is missing, the backend lacks the precision or cannot read the files, or they are of
            another model.
        DataError: if the folder is no such folder, or a file cannot be read.
    """
    if name not in ("openvino", "onnxruntime"):
        raise ConfigError(f"backend {name} runs no exported graphs: take --backend openvino or onnxruntime")
    check(name, model.class_weights.device.type, precision)
    about = read_about(folder)
    _check_same(about.identity, identity(model), folder)
    model.backend = ExportedGraphs(folder, about.graphs, name, precision)
    return model


def read_about(folder: Path) -> About:
    """Read what a folder says of its graphs.

    Raises:
        DataError: if it is no folder that `export` wrote.
    """
    path = folder / ABOUT
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        same = {key: plain[key] for key in ("method", "config", "classes", "weights")}
        graphs = {name: _graph_file(entry) for name, entry in plain["graphs"].items()}
        return About({**same, "config": dict(same["config"])}, str(plain["precision"]), graphs)
    except FileNotFoundError:
        raise DataError(f"{folder} holds no {ABOUT}; expected a folder that steadyseg export wrote") from None
    except KeyError as error:
        raise DataError(f"{path} does not say {error.args[0]}: export again with this version") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): export again with this version") from None


def _graph_file(entry: Mapping[str, Any]) -> GraphFile:
    inputs = ((str(tensor["name"]), tuple(tensor["shape"])) for tensor in entry["inputs"])
    return GraphFile(str(entry["file"]), tuple(inputs))


def _check_same(theirs: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> None:
    """Refuse graphs of another model, naming the first thing that differs.

    Args:
        theirs: `identity` of the model that was exported.
        own: that of the model at hand.
        folder: for the message.

    Raises:
        ConfigError: if method, options that are in the graphs, classes or weights are not the same.
    """
    if theirs["method"] != own["method"]:
        raise ConfigError(f"{folder} holds graphs of {theirs['method']}; the model is {own['method']}: export it")
    for key in sorted((own["config"].keys() | theirs["config"].keys()) - OUTSIDE):
        there, here = theirs["config"].get(key), own["config"].get(key)
        if there != here:
            raise ConfigError(
                f"{folder} holds graphs with {key} {there}; the model has {key} {here}: export it with these options"
            )
    for key in ("classes", "weights"):
        if theirs[key] != own[key]:
            raise ConfigError(f"{folder} holds graphs of a model with other {key}: export this one, or name that one")


class UnreadableError(DataError):
    """A runtime cannot read a graph; the cause is its own error."""


class ExportedGraphs:
    """A backend that runs the graphs of a folder."""

    def __init__(
        self, folder: Path, graphs: Mapping[str, GraphFile], name: Name, precision: Precision = "fp32"
    ) -> None:
        """Open every graph.

        Args:
            folder: where the files are.
            graphs: what they are, as `read_about` says.
            name: of the runtime.
            precision: of what the graphs compute in float.

        Raises:
            ConfigError: if the runtime is missing or cannot read such files.
            DataError: if a file is missing or cannot be read.
        """
        needs(name)
        self.folder = folder
        self.graphs = graphs
        self.sessions: dict[str, Session] = {}
        for graph, entry in graphs.items():
            file = folder / entry.file
            if name == "onnxruntime" and file.suffix != ".onnx":
                raise ConfigError(
                    f"{folder} holds OpenVINO's files, which onnxruntime cannot read: take --backend openvino"
                )
            if not file.is_file():
                raise DataError(f"{folder} lacks {file.name}: export again")
            try:
                self.sessions[graph] = (
                    open_openvino(str(file), precision) if name == "openvino" else open_onnxruntime(str(file))
                )
            except MemoryError:
                raise
            except Exception as error:  # each runtime has its own, of no common kind
                raise UnreadableError(
                    f"{file} cannot be read by {name} ({reason_of(error)}): export again, or install the version that "
                    "wrote it"
                ) from error

    def __call__(self, name: str, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run a graph; see models.base.Backend.

        Raises:
            DataError: if the folder, of another version, has no such graph.
            ShapeError: if a tensor does not have the shape for which the graph was exported.
        """
        inputs = self.graphs[name].inputs if name in self.graphs else None
        if inputs is None or len(inputs) != len(tensors):
            count = len(tensors)
            raise DataError(f"{self.folder} has no graph '{name}' of {count} inputs: export again with this version")
        for tensor, (entry, shape) in zip(tensors, inputs, strict=True):
            pairs = zip(shape, tensor.shape, strict=False)
            if len(shape) != tensor.ndim or any(axis not in (None, size) for axis, size in pairs):
                shown = ", ".join("any" if axis is None else str(axis) for axis in shape)
                given = list(tensor.shape)
                raise ShapeError(
                    f"{self.folder} has {name} for {entry} [{shown}]; given {given}: {_cure(tensor, shape)}"
                )
        return self.sessions[name](*tensors)


def reason_of(error: BaseException) -> str:
    """The first line of a runtime's error that says something: OpenVINO begins with places in its sources."""
    lines = (line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from"))
    return next(lines, type(error).__name__).strip()


def _cure(tensor: Tensor, shape: tuple[int | None, ...]) -> str:
    """Say what to do about a tensor that does not have the shape for which a graph was exported."""
    if tensor.dtype != torch.uint8 or tensor.ndim != 4 or len(shape) != 4:  # no frame
        return "export again with this version"
    _, _, height, width = tensor.shape
    if shape[2:] in ((height, width), (None, None)):
        return f"run {shape[0]} at a time (--streams)"
    return f"export with --size {height}x{width}, or with --size dynamic"

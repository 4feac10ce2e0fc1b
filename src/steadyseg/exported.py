"""A folder of exported graphs, run by a backend in place of torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steadyseg.backends import Name, Precision, Session, needs, open_onnxruntime, open_openvino
from steadyseg.config import options_to_dict
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError, DataError, ShapeError

ABOUT = "steadyseg.json"
"""The file that says what the others are."""


def identity(model: VideoSegmenter) -> dict[str, Any]:
    """What makes the graphs of two models the same, as JSON has it: method, options, classes and weights."""
    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                "method": type(model).__module__.rpartition(".")[2],
                "config": options_to_dict(model.config),
                "classes": model.classes,
                "weights": _fingerprint(model),
            }
        )
    )
    return plain


def _fingerprint(model: VideoSegmenter) -> str:
    """SHA-256 of all parameters and statistics, by name."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
        ConfigError: if a library is missing, the backend cannot read the files, or they are of another model.
        DataError: if the folder is no such folder, or damaged.
    """
    if name not in ("openvino", "onnxruntime"):
        raise ConfigError(f"backend {name} runs no exported graphs: take --backend openvino or onnxruntime")
    if model.class_weights.device.type != "cpu":
        raise ConfigError(f"backend {name} runs on the CPU, and the model is on another device: take --device cpu")
    if name == "onnxruntime" and precision != "fp32":
        raise ConfigError(f"backend onnxruntime computes floats in fp32, not in {precision}: take --precision fp32")
    about = read_about(folder)
    _check_same(about, identity(model), folder)
    model.backend = Files(folder, about["graphs"], name, precision)
    return model


def read_about(folder: Path) -> dict[str, Any]:
    """Read what a folder says of its graphs.

    Raises:
        DataError: if it is no folder that `export` wrote.
    """
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        missing = {"method", "config", "classes", "weights", "graphs"} - about.keys()
    except FileNotFoundError:
        raise DataError(f"{folder} holds no {ABOUT}; expected a folder that steadyseg export wrote") from None
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / ABOUT} cannot be read ({error}): export again") from None
    if missing:
        raise DataError(f"{folder / ABOUT} does not say {', '.join(sorted(missing))}: export again with this version")
    return about


def _check_same(about: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> None:
    """Refuse graphs of another model, naming the first thing that differs.

    Raises:
        ConfigError: if method, options, classes or weights are not the same.
    """
    if about["method"] != own["method"]:
        raise ConfigError(f"{folder} holds graphs of {about['method']}; the model is {own['method']}: export it")
    for key in sorted(own["config"].keys() | about["config"].keys()):
        theirs, ours = about["config"].get(key), own["config"].get(key)
        if theirs != ours:
            raise ConfigError(
                f"{folder} holds graphs with {key} {theirs}; the model has {key} {ours}: export it with these options"
            )
    for key in ("classes", "weights"):
        if about[key] != own[key]:
            raise ConfigError(f"{folder} holds graphs of a model with other {key}: export this one, or name that one")


class Files:
    """A backend that runs the graphs of a folder."""

    def __init__(
        self, folder: Path, graphs: Mapping[str, Mapping[str, Any]], name: Name, precision: Precision = "fp32"
    ) -> None:
        """Open every graph.

        Args:
            folder: where the files are.
            graphs: what they are, as in steadyseg.json.
            name: of the runtime.
            precision: of what the graphs compute in float.

        Raises:
            ConfigError: if the runtime is missing or cannot read such files.
            DataError: if a file is missing or damaged.
        """
        needs(name)
        self.folder = folder
        self.graphs = graphs
        self.sessions: dict[str, Session] = {}
        for graph, entry in graphs.items():
            file = folder / entry["file"]
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
            except Exception as error:  # each runtime has its own, of no common kind
                raise DataError(f"{file} is damaged, {name} cannot read it: export again") from error

    def __call__(self, name: str, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run a graph; see models.base.Backend.

        Raises:
            ShapeError: if a tensor does not have the shape for which the graph was exported.
        """
        for tensor, entry in zip(tensors, self.graphs[name]["inputs"], strict=True):
            wanted = entry["shape"]
            if any(axis not in (None, size) for axis, size in zip(wanted, tensor.shape, strict=True)):
                shown = ["any" if axis is None else axis for axis in wanted]
                raise ShapeError(
                    f"{self.folder} has {name} for {entry['name']} [{', '.join(map(str, shown))}]; given "
                    f"{list(tensor.shape)}: export with this --size, or with --size dynamic"
                )
        return self.sessions[name](*tensors)

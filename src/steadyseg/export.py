"""The graphs of a model as files for other runtimes, one a graph, and a check that they compute the same."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim
from torch.onnx import OnnxExporterError

import steadyseg
from steadyseg.backends import Name, needs, openvino_core, trace
from steadyseg.engine.stream import to_labels
from steadyseg.exported import ABOUT, ExportedGraphs, UnreadableError, identity, read_about, reason_of
from steadyseg.models.base import Backend, Graph, VideoSegmenter
from steadyseg.quantisation import Calls, quantise, record
from steadyseg.types import ConfigError, DataError
from steadyseg.video import probe, read
from steadyseg.video.output import Output, naming

Format = Literal["onnx", "openvino"]
SUFFIXES = {"onnx": (".onnx",), "openvino": (".xml", ".bin")}
TOLERANCE = 1e-4
"""Largest difference of a score in fp32, relative to the largest score of its frame."""
AGREEMENT = 0.5
"""Smallest part of the labels that graphs in 8-bit integers have in common with torch."""
SAMPLES = 24
"""Calibration frames, about; more where a method needs more to run all of its graphs."""
LEAST_SAMPLES = 16
"""Fewer are refused."""
ADAPTIVE = 12
"""Least number of neighbouring calibration frames where the video decides on key frames."""
EXAMPLE = (96, 160)
"""Size of the frames with which a graph of any size is traced."""
CHECKED = (101, 150)
"""Size of the frames with which it is checked."""
RANDOM_FRAMES, VIDEO_FRAMES = 9, 30
"""Frames of noise, and of a video if it has as many, that the check streams; more if key frames are further apart."""


class Difference(NamedTuple):
    """How a stream through exported graphs differs from torch."""

    runtime: str
    frames: str
    """"random", or the video."""
    length: int
    """Frames."""
    scores: float
    """Largest difference of a score, relative to the largest score of its frame."""
    labels: int
    """Pixels of all frames with another label."""
    pixels: int
    """Of all frames."""


class Report(NamedTuple):
    """What was written."""

    files: tuple[str, ...]
    batch: int | None
    """Frames that a call takes; None for any number."""
    differences: tuple[Difference, ...]


def export(
    model: VideoSegmenter,
    out: Path,
    *,
    format: Format = "onnx",
    size: tuple[int, int] | None,
    video: str | Path | None = None,
    calibration: str | Path | None = None,
    overwrite: bool = False,
    on_graph: Callable[[], None] | None = None,
) -> Report:
    """Write a model's graphs into a folder, which appears whole or not at all, and only if they compute the same.

    Args:
        model: in evaluation mode, on the CPU.
        out: the folder.
        format: ONNX, or OpenVINO's own.
        size: height and width of a frame; None for any.
        video: whose first frames the check streams, beside random ones.
        calibration: a video that gives the scales of 8-bit integers, in which the graphs then compute; the check
            streams its first frames in place of random ones. None for fp32.
        overwrite: whether an existing folder of exported graphs may be replaced.
        on_graph: called after every graph, for progress.

    Returns:
        What was written, and how it differs from torch.

    Raises:
        ConfigError: if a library is missing, the output cannot be written, the method has no graph of any size, or the
            key interval is 1, so that a graph never runs in the calibration.
        DataError: if the graphs do not compute the same (in 8-bit integers: if most labels differ), a video cannot be
            read, or it is too short or too still for the calibration.
        ShapeError: if frames of this size are too small for the model.
    """
    needs("onnx")
    needs("openvino" if format == "openvino" else "onnxruntime")
    if calibration is not None:
        needs("onnxruntime")  # it quantises
    output = Output(out, overwrite=overwrite)
    output.open_folder(*SUFFIXES[format], ".json")
    try:
        calls, frames = ({}, None) if calibration is None else _calibrate(model, size, calibration)
        batch, graphs = _free_batch(model, size, on_graph)
        about = _about(model, size, batch)
        about |= {"precision": "int8" if calls else "fp32", "calibration_frames": frames}
        if calls:
            graphs = {name: quantise(graph, calls[name].inputs) for name, graph in graphs.items()}
        files = _write(graphs, about, output.part, format)
        with naming(output.path):
            text = json.dumps({**about, "graphs": files}, indent=1)
            (output.part / ABOUT).write_text(f"{text}\n", encoding="utf-8")
        videos = _videos(model, size, batch, [entry for entry in (calibration, video) if entry is not None])
        if calls:
            del videos["random"]  # noise is far from what the scales are for
        differences = tuple(_differences(model, output.part, videos))
        for difference in differences:
            _check(difference, out, is_exact=not calls)
        output.commit()
    finally:
        output.discard()
    return Report((*(entry["file"] for entry in files.values()), ABOUT), batch, differences)


# ---- graphs to files ---------------------------------------------------------------------------------------------


def _free_batch(
    model: VideoSegmenter, size: tuple[int, int] | None, on_graph: Callable[[], None] | None
) -> tuple[int | None, dict[str, Any]]:
    """Trace every graph, with a free batch if all of them allow it; -> the batch, None where it is free, and graphs.

    Raises:
        ConfigError: if a graph depends on the size of its frames.
    """
    if model.is_periodic:  # else the method follows one video
        try:
            return None, _trace_all(model, size, None, on_graph)
        except OnnxExporterError:
            pass
    try:
        return 1, _trace_all(model, size, 1, on_graph)
    except OnnxExporterError as error:
        if size is None:
            name = type(model).__name__
            raise ConfigError(
                f"{name} with these options has no graph for any size; give one: --size 480x853"
            ) from error
        raise


def _calibrate(model: VideoSegmenter, size: tuple[int, int] | None, video: str | Path) -> tuple[dict[str, Calls], int]:
    """Stream stretches of a video in torch, each anew; -> what every graph is called with, and how many frames ran.

    Raises:
        ConfigError: if the key interval is 1, so that a graph never runs.
        DataError: if the video cannot be read, or is too short or too still to run all graphs.
    """
    length = max(1 - min(model.offsets), model.period) + model.period
    length = length if model.is_periodic else max(length, ADAPTIVE)
    calls: dict[str, Calls] = {}
    count = 0
    for images in _stretches(video, length):
        count += len(images)
        frames = [_resized(image[None], size) for image in images]  # each [1, 3, H, W]
        for name, found in record(model, frames).items():
            calls.setdefault(name, Calls(found.function, [])).inputs.extend(found.inputs)
    for name in _graphs(model, size or EXAMPLE, 1):
        if name not in calls and model.is_periodic and model.period == 1:
            raise ConfigError(f"with interval 1 the graph '{name}' never runs: take --interval 2 or more")
        if name not in calls:
            raise DataError(f"the graph '{name}' never runs on {count} frames of {video}: give --int8 another video")
    return calls, count


def _stretches(video: str | Path, length: int) -> Iterator[list[Tensor]]:
    """Yield stretches of neighbouring frames, each uint8 [3, H, W], spread over all of a video.

    Raises:
        DataError: at the end, if they hold fewer than LEAST_SAMPLES frames.
    """
    count = probe(video).frames or sum(1 for _ in read(video, on_error="skip"))
    length = min(length, count)
    number = max(2, SAMPLES // length)
    starts = {(count - length) * index // (number - 1) for index in range(number)}
    recent: deque[Tensor] = deque(maxlen=length)
    taken: set[int] = set()
    for last, frame in enumerate(read(video, on_error="skip")):
        recent.append(frame.image)
        first = last + 1 - length
        if first in starts:
            taken.update(range(first, last + 1))
            yield list(recent)
    if len(taken) < LEAST_SAMPLES:
        raise DataError(f"{video} has {len(taken)} frames for --int8; expected at least {LEAST_SAMPLES}: give more")


def _trace_all(
    model: VideoSegmenter, size: tuple[int, int] | None, batch: int | None, on_graph: Callable[[], None] | None
) -> dict[str, Any]:
    """Trace every graph, for any batch where `batch` is None and for frames of any size where `size` is None.

    Raises:
        OnnxExporterError: torch's own, if a graph depends on what should be free.
    """
    frames = batch or 2  # an example of one would count as a constant
    graphs = _graphs(model, size or EXAMPLE, frames)
    traced = {}
    for name, graph in graphs.items():
        axes: dict[int, Any] = {} if batch else {0: Dim("batch")}
        if size is None:
            axes = dict.fromkeys((*axes, 2, 3), Dim.DYNAMIC)
        dynamic = [axes] * len(graph.inputs) if axes else None
        traced[name] = trace(model, graph.function, graph.inputs, outputs=graph.outputs, dynamic=dynamic).model_proto
        if on_graph is not None:
            on_graph()
    return traced


def _graphs(model: VideoSegmenter, size: tuple[int, int], batch: int) -> dict[str, Graph]:
    with torch.no_grad():
        return model.graphs(_random(1, (batch, 3, *size))[0])


def _write(graphs: dict[str, Any], about: dict[str, Any], folder: Path, format: Format) -> dict[str, dict[str, Any]]:
    """Write the graphs, each ONNX file with what is known of the model; -> what each of them is."""
    files = {}
    for name, proto in graphs.items():
        file = name + SUFFIXES[format][0]
        files[name] = {
            "file": file,
            "inputs": [_describe(entry) for entry in proto.graph.input],
            "outputs": [_describe(entry) for entry in proto.graph.output],
        }
        with naming(folder / file):
            if format == "onnx":
                needs("onnx").helper.set_model_props(proto, {"steadyseg": json.dumps({**about, "graph": name})})
                (folder / file).write_bytes(proto.SerializeToString())
            else:
                network = openvino_core().read_model(proto.SerializeToString())
                needs("openvino").save_model(network, folder / file, compress_to_fp16=False)
    return files


def _describe(entry: Any) -> dict[str, Any]:
    """Name, dtype and shape of an input or output of ONNX; a free axis is null."""
    kind = entry.type.tensor_type
    shape = [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
    dtype = str(needs("onnx").helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return {"name": entry.name, "dtype": dtype, "shape": shape}


def _about(model: VideoSegmenter, size: tuple[int, int] | None, batch: int | None) -> dict[str, Any]:
    """What a program needs to know to run the graphs as `step` does."""
    return {
        "version": steadyseg.__version__,
        **identity(model),
        "palette": model.palette,
        "size": size,
        "batch": batch,
        "input": "uint8 RGB [batch, 3, height, width]; normalised inside the graphs",
        "state": _layout(_settled(model, size or EXAMPLE)),
    }


def _settled(model: VideoSegmenter, size: tuple[int, int]) -> Any:
    """A state of the model that holds all it ever will."""
    state = None
    with torch.inference_mode():
        for frame in _random(1 - min(model.offsets) + model.period, (1, 3, *size)):
            _, state = model.step(frame, state)
    return state


def _layout(value: Any) -> Any:
    """Fields of a state by name: a tensor by dtype and shape, a number as "int"."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if hasattr(value, "_asdict"):
        return {name: _layout(entry) for name, entry in value._asdict().items()}
    return [_layout(entry) for entry in value] if isinstance(value, tuple) else type(value).__name__


# ---- the check ---------------------------------------------------------------------------------------------------


def _videos(
    model: VideoSegmenter, size: tuple[int, int] | None, batch: int | None, sources: Iterable[str | Path]
) -> dict[str, Tensor]:
    """What is streamed in the check: random frames and the first ones of videos, each uint8 [T, B, 3, H, W].

    Videos keep their own size where graphs take any.
    """
    least = 2 * model.period + 1
    videos = {"random": _random(max(RANDOM_FRAMES, least), (batch or 2, 3, *(size or CHECKED)))}
    for source in sources:
        frames = islice(read(source, on_error="skip"), max(VIDEO_FRAMES, least))
        real = torch.cat([_resized(frame.image[None], size) for frame in frames])  # [T, 3, H, W]
        videos[str(source)] = real[:, None].repeat(1, batch or 1, 1, 1, 1)  # [T, B, 3, H, W]
    return videos


def _resized(frames: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Average uint8 [T, 3, H, W] to a size; None keeps theirs."""
    if size in (None, tuple(frames.shape[2:])):
        return frames
    return F.interpolate(frames.float(), size=size, mode="area").round().to(torch.uint8)


def _differences(model: VideoSegmenter, folder: Path, videos: dict[str, Tensor]) -> Iterator[Difference]:
    """Stream through the files of a folder and through torch, in every runtime that reads them and is installed."""
    graphs = read_about(folder).graphs
    is_onnx = all(entry.file.endswith(".onnx") for entry in graphs.values())
    others: list[Name] = ["openvino"] if not is_onnx or find_spec("openvino") else []
    firsts: list[Name] = ["onnxruntime"] if is_onnx else []
    for runtime in (*firsts, *others):
        try:
            backend = ExportedGraphs(folder, graphs, runtime)
        except UnreadableError as error:
            reason = reason_of(error.__cause__ or error)
            raise DataError(
                f"{runtime} cannot read what was made ({reason}), so nothing is written: try other --options, another "
                "--format, or without --int8"
            ) from error
        for name, frames in videos.items():
            yield Difference(runtime, name, len(frames), *_compare(model, backend, frames))


def _check(difference: Difference, out: Path, *, is_exact: bool) -> None:
    """Refuse graphs that do not compute what torch does.

    Raises:
        DataError: if scores differ, or, where they need not be exact, most labels.
    """
    if is_exact and not difference.scores <= TOLERANCE:
        raise DataError(
            f"in {difference.runtime} the exported graphs differ from torch by {difference.scores:.1e} of the "
            f"largest score ({difference.frames} frames); expected at most {TOLERANCE:.0e}, so {out} is not "
            "written: try another --size or --format"
        )
    if math.isnan(difference.scores):
        raise DataError(
            f"in {difference.runtime} scores of the exported graphs are no numbers ({difference.frames}), so {out} is "
            "not written: try another --int8 or --format"
        )
    agreement = 1 - difference.labels / difference.pixels
    if agreement < AGREEMENT:
        raise DataError(
            f"in {difference.runtime} the exported graphs give {100 * agreement:.1f} % of torch's labels "
            f"({difference.frames}); expected at least {100 * AGREEMENT:.0f} %, so {out} is not written: give --int8 a "
            "video like those to be segmented"
        )


@torch.inference_mode()
def _compare(model: VideoSegmenter, backend: Backend, frames: Tensor) -> tuple[float, int, int]:
    """Stream frames uint8 [T, B, 3, H, W] through torch and a backend; -> `scores`, `labels`, `pixels`."""
    size = (frames.shape[3], frames.shape[4])
    scores, labels = [], 0
    states: list[Any] = [None, None]
    previous = model.backend
    try:
        for frame in frames:
            logits = []
            for side, runner in enumerate((None, backend)):
                model.backend = runner
                found, states[side] = model.step(frame, states[side])
                logits.append(found)
            plain, ours = logits  # [B, K, h, w]
            scores.append((ours - plain).abs().max() / plain.abs().max())
            labels += int((to_labels(ours, size) != to_labels(plain, size)).sum())
    finally:
        model.backend = previous
    return float(torch.stack(scores).max()), labels, frames[:, :, 0].numel()  # NaN if one of them is


def _random(count: int, shape: tuple[int, ...]) -> Tensor:
    """uint8 [count, *shape], the same at every call."""
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

"""What a method costs: parameters, multiply-adds, latency, throughput and memory, on this machine.

The time of a frame runs from a uint8 frame tensor to a uint8 label map of the frame's size, through `Stream`, once
the stream has settled. One frame at a time; the device is synchronised before and after.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.backbones.mit import VARIANTS
from steadyseg.backends import LIBRARIES, attach
from steadyseg.backends import Name as Backend
from steadyseg.config import options_from_dict
from steadyseg.costs import check_periodic, costs, pingpong
from steadyseg.data.streets import StreetsSource
from steadyseg.engine.checkpoint import load_model
from steadyseg.engine.stream import Stream, to_labels
from steadyseg.models import method
from steadyseg.models.base import MEAN, STD, VideoSegmenter
from steadyseg.quantisation import attach_int8
from steadyseg.types import ConfigError, Frame
from steadyseg.video import Overlay, Writer, probe, read

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Against = Literal["transformers", "clip"]
"""The transformers library's SegFormer of the same backbone, or the method itself with nothing remembered."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured, and how."""

    backbone: str = "mit_b0"
    """Backbone by name."""
    size: tuple[int, int] = (480, 853)
    """Height and width of a frame."""
    classes: int = 124
    """K."""
    precision: Precision = "fp32"
    """bf16 and fp16 run under autocast; int8 takes a backend with integers, their ranges from the frames."""
    device: str = "cpu"
    """cpu or cuda."""
    backend: Backend = "torch"
    """What runs the method, see steadyseg.backends; what it is compared with always runs in torch."""
    frames: int = 200
    """Timed frames."""
    warmup: int = 20
    """Frames before the first timed one."""
    threads: int | None = None
    """CPU threads; None leaves the choice to torch."""
    seed: int = 0
    """Of the random weights."""
    against: Against = "transformers"
    """What `compare` compares with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the method's default options, as in a config's model section."""


# ---- time and memory ---------------------------------------------------------------------------------------------


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """Measure one method; call it in a fresh process, or the peak memory is that of everything before it.

    Args:
        name: a method, such as sdcpc.
        setting: what is measured, and how.

    Returns:
        Plain numbers: parameters, multiply-adds, milliseconds a frame, frames per second, MiB.

    Raises:
        ConfigError: for an unknown method, backbone or device.
    """
    _prepare(setting)
    frames = _frames(setting)
    model = _attach(_build(name, setting, frames[0]), setting, frames)
    run = _stream(model, setting)
    for frame in pingpong(frames, setting.warmup):
        run(frame)
    count = -(-setting.frames // model.period) * model.period  # key frames and those between in their true shares
    times = [_timed(run, frame)[0] for frame in pingpong(frames, count)]
    memory = _peak_memory(setting)
    model.backend = None  # what is counted is torch's
    return {
        "method": name,
        "backbone": setting.backbone,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": {
            what: {form: cost._asdict() for form, cost in forms.items()}
            for what, forms in costs(model, [frame[None] for frame in frames]).items()
        },
        **_summary(times),
        "peak_memory_mib": memory,
    }


def compare(name: str, setting: Setting) -> dict[str, Any]:
    """Time a method against something else, frame by frame in turn.

    Both begin with the uint8 frame and end with the full-size label map. transformers' SegFormer resizes the logits and
    takes the arg-max; for the method segformer both have the same weights, and the labels are compared. A method that
    remembers nothing runs its whole clip for every frame, and the labels are compared too.

    Args:
        name: a method.
        setting: what is measured, and how.

    Returns:
        Summaries of "ours" and "theirs", "speedup" (ratio of the mean times) and, where labels are compared, "pixels",
        how many, "differing", how many of them have another label, and for segformer "gap": by how much the scores of
        the two labels differ there at most, relative to the largest score; rounding alone gives about 1e-6.
    """
    _prepare(setting)
    frames = _frames(setting)
    if setting.against == "clip":
        ours = _build(name, setting, frames[0])
        theirs = _forgetful(deepcopy(ours), setting)
    else:
        theirs, saved = _transformers(setting, frames[0])
        with saved as folder:
            ours = load_model(folder, setting.device) if name == "segformer" else _build(name, setting, frames[0])
    ours = _attach(ours, setting, frames)
    runs = {"ours": _stream(ours, setting), "theirs": theirs}
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    pixels, differing, gap = 0, 0, 0.0
    count = -(-setting.frames // ours.period) * ours.period
    for index, frame in enumerate(pingpong(frames, setting.warmup + count)):
        labels = {}
        for side in ("ours", "theirs") if index % 2 else ("theirs", "ours"):
            spent, labels[side] = _timed(runs[side], frame)
            if index >= setting.warmup:
                times[side].append(spent)
        pixels += frame[0].numel()
        wrong = int((labels["ours"] != labels["theirs"]).sum())
        differing += wrong
        if wrong and name == "segformer":
            gap = max(gap, _gap(ours, frame, labels))
    result: dict[str, Any] = {"method": name, "backbone": setting.backbone, "against": setting.against}
    result |= {side: _summary(spent) for side, spent in times.items()}
    result["speedup"] = statistics.mean(times["theirs"]) / statistics.mean(times["ours"])
    same_weights = name == "segformer" or setting.against == "clip"
    return result | ({"pixels": pixels, "differing": differing, "gap": gap} if same_weights else {})


@torch.inference_mode()
def _gap(model: VideoSegmenter, frame: Tensor, labels: dict[str, Tensor]) -> float:
    logits = model.step(frame[None])[0].float()
    full = F.interpolate(logits, frame.shape[1:], mode="bilinear", align_corners=False)[0]  # [K, H, W]
    ours, theirs = (full.gather(0, labels[side].long()[None]) for side in ("ours", "theirs"))
    return float((ours - theirs).abs().max() / full.abs().max())


# ---- the stages of predict ---------------------------------------------------------------------------------------

BLOCK = 16
"""Frames that go through one stage before the next stage has its turn."""
THREADS = {"decode": ("decode",), "model": ("copy", "model", "labels"), "draw": ("draw",), "encode": ("encode",)}
"""The stages that run at the same time, and which of those measured are in each."""


def stages(name: str, setting: Setting, *, video: str | Path) -> dict[str, Any]:
    """Time every stage of `predict` on a video alone, then `predict` as a whole, in which they overlap.

    Stages take turns in blocks of BLOCK frames, so that hardly any runs beside another. Encoding contains the
    conversion of colours, and the time to finish the file, shared out among the frames. The median and the 95th
    percentile of predict are those of the times between two frames that the model hands over.

    Args:
        name: weights, as `load_model` takes them.
        setting: device, precision, frames, warmup, threads and options; size, classes and backbone are not read.
        video: a video, an image, a folder of images or a glob.

    Returns:
        Summaries of each of the "stages" and of "predict", whose mean is that of its whole run; "one_by_one_ms", the
        sum of the stages' means; "slowest", the thread that takes longest; and "against_slowest", the mean time of
        predict by that of this thread.

    Raises:
        ConfigError: if the video has no frame after the warm-up, or as in `predict`.
        DataError: if the video cannot be read.
    """
    _prepare(setting)
    first = [frame.image for frame in islice(read(video), BLOCK)]
    model = _attach(load_model(name, setting.device, options=dict(setting.options)), setting, first)
    with tempfile.TemporaryDirectory() as folder, _autocast(setting):
        times = _stage_times(model, setting, video, Path(folder) / "stages.mp4")
        whole = _predict_times(model, setting, video, Path(folder) / "predict.mp4")
    means = {stage: 1e3 * statistics.mean(spent) for stage, spent in times.items()}
    threads = {thread: sum(means[stage] for stage in parts) for thread, parts in THREADS.items()}
    slowest = max(threads, key=lambda thread: threads[thread])
    info = probe(video)
    return {
        "model": name,
        "video": {"name": info.path.name, "height": info.height, "width": info.width, "frames": len(times["model"])},
        "stages": {stage: _summary(spent) for stage, spent in times.items()},
        "predict": whole,
        "one_by_one_ms": sum(means.values()),
        "slowest": slowest,
        "against_slowest": whole["latency_ms"]["mean"] / threads[slowest],
    }


@torch.inference_mode()
def _stage_times(model: VideoSegmenter, setting: Setting, video: str | Path, out: Path) -> dict[str, list[float]]:
    """Return the seconds of every frame after the warm-up, by stage."""
    times: dict[str, list[float]] = {stage: [] for parts in THREADS.values() for stage in parts}
    info, draw, state = probe(video), Overlay(model.classes, model.palette), None

    def label(logits: Tensor) -> Tensor:
        return to_labels(logits, (info.height, info.width))[0].cpu()  # [H, W]

    def timed(stage: str, work: Callable[..., Any], *inputs: Any) -> Any:
        spent, result = _clocked(work, *inputs, is_cuda=setting.device == "cuda")
        times[stage].append(spent)
        return result

    frames = islice(read(video), setting.warmup + setting.frames)
    with Writer(out, info) as writer:
        while block := _block(frames, times["decode"]):
            images = [timed("copy", lambda frame: frame.image[None].to(setting.device), frame) for frame in block]
            maps = []
            for image in images:
                logits, state = timed("model", model.step, image, state)
                maps.append(logits)
            preds = [timed("labels", label, logits) for logits in maps]
            drawn = [timed("draw", draw, frame.image, labels) for frame, labels in zip(block, preds, strict=True)]
            for frame, picture in zip(block, drawn, strict=True):
                timed("encode", writer.write, picture, frame.time)
        begun = time.perf_counter()
    finish = (time.perf_counter() - begun) / len(times["encode"])
    times["encode"] = [spent + finish for spent in times["encode"]]
    kept = {stage: spent[setting.warmup :] for stage, spent in times.items()}
    if not kept["encode"]:
        count = len(times["encode"])
        raise ConfigError(f"{video} has {count} frames, {setting.warmup} of them warm-up; lower --warmup")
    return kept


def _block(frames: Iterator[Frame], times: list[float]) -> list[Frame]:
    """Decode up to BLOCK frames, and add the seconds of each to `times`."""
    block: list[Frame] = []
    while len(block) < BLOCK:
        begun = time.perf_counter()
        frame = next(frames, None)
        if frame is None:
            break
        times.append(time.perf_counter() - begun)
        block.append(frame)
    return block


def _predict_times(model: VideoSegmenter, setting: Setting, video: str | Path, out: Path) -> dict[str, Any]:
    """Return the summary of `predict`: the mean is the time of the whole run by its frames, from start to end."""
    from steadyseg.engine.predict import PredictConfig, predict  # needed by this measurement only

    stamps = [time.perf_counter()]
    config = PredictConfig(max_frames=setting.warmup + setting.frames)
    count = predict(model, video, out=out, config=config, on_frame=lambda: stamps.append(time.perf_counter()))
    mean = (time.perf_counter() - stamps[0]) / count
    summary = _summary([after - before for before, after in pairwise(stamps)][setting.warmup :])
    return {"latency_ms": {**summary["latency_ms"], "mean": 1e3 * mean}, "fps": 1 / mean}


# ---- in a process of its own, and where -------------------------------------------------------------------------


def apart(function: Callable[..., dict[str, Any]], name: str, setting: Setting) -> dict[str, Any]:
    """Call `measure`, `compare` or `stages` in a fresh process, which sees nothing of earlier runs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, name, setting).result()


def machine(setting: Setting) -> dict[str, Any]:
    """Describe where, when and with what a measurement was made."""
    wanted = ("steadyseg", "torch", "transformers", *LIBRARIES.get(setting.backend, ()))
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
        "setting": asdict(setting),
    }


def _prepare(setting: Setting) -> None:
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda; this machine has none that torch can use: take --device cpu")
    if setting.threads:
        torch.set_num_threads(setting.threads)
    torch.manual_seed(setting.seed)


def _frames(setting: Setting, count: int = 8) -> list[Tensor]:
    """Frames of a street video, each uint8 [3, H, W]."""
    source = StreetsSource(split="val", size=setting.size, length=count, videos=11)
    return [frame.image.to(setting.device) for frame in source.read(source.names[10])]  # by day, with traffic


def _build(name: str, setting: Setting, frame: Tensor) -> VideoSegmenter:
    """Build a method with random weights whose labels vary over the image, as those of trained weights do."""
    kind = method(name)
    options = options_from_dict(name, {"backbone": setting.backbone, **setting.options})
    model = kind(options, setting.classes).to(setting.device).eval()
    check_periodic(model)
    with torch.no_grad():
        logits, _ = model.step(frame[None])
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.out_channels == layer.groups * setting.classes:
                if layer.bias is None:
                    layer.weight -= layer.weight.mean(1, keepdim=True)  # features after a ReLU are never negative
                else:
                    layer.bias -= logits.mean((0, 2, 3)).repeat(layer.groups)  # maybe of several variates
    return model.train().eval()  # merged weights are computed anew


def _attach(model: VideoSegmenter, setting: Setting, frames: Sequence[Tensor]) -> VideoSegmenter:
    """Have a model run as the setting says; frames uint8 [3, H, W] set the ranges of 8-bit integers."""
    if setting.precision != "int8":
        return attach(model, setting.backend, precision=setting.precision)
    enough = pingpong(frames, max(BLOCK, 2 * model.period + 1))
    return attach_int8(model, setting.backend, [frame[None] for frame in enough])


def _stream(model: VideoSegmenter, setting: Setting) -> Callable[[Tensor], Tensor]:
    stream = Stream(model)

    def run(frame: Tensor) -> Tensor:
        with _autocast(setting):
            return stream(frame)

    return run


def _forgetful(model: VideoSegmenter, setting: Setting) -> Callable[[Tensor], Tensor]:
    """Return the model as a function of a frame that computes the whole clip each time."""
    past: deque[Tensor] = deque(maxlen=1 - model.offsets[0])

    @torch.inference_mode()
    def run(frame: Tensor) -> Tensor:
        past.append(frame)
        clip = torch.stack([past[max(len(past) - 1 + offset, 0)] for offset in model.offsets])  # [T, 3, H, W]
        with _autocast(setting):
            return to_labels(model.clip_logits(clip[None]), setting.size)[0]

    return run


def _transformers(setting: Setting, frame: Tensor) -> tuple[Callable[[Tensor], Tensor], tempfile.TemporaryDirectory]:
    """Return transformers' SegFormer as a function of a frame, and a folder with its weights."""
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise ConfigError("--against transformers needs that package: pip install 'steadyseg[hf]'") from None
    if setting.backbone not in VARIANTS:
        raise ConfigError(f"transformers has no SegFormer on '{setting.backbone}'; take one of {', '.join(VARIANTS)}")
    disable_progress_bar()
    channels, depths = VARIANTS[setting.backbone]
    sizes: dict[str, Any] = {"hidden_sizes": list(channels), "depths": list(depths), "decoder_hidden_size": 256}
    config = SegformerConfig(**sizes, id2label={index: f"class {index}" for index in range(setting.classes)})
    model = SegformerForSemanticSegmentation(config).eval().to(setting.device)
    mean = torch.tensor(MEAN, device=setting.device)[:, None, None]
    std = torch.tensor(STD, device=setting.device)[:, None, None]

    def logits(frame: Tensor) -> Tensor:
        return model(((frame - mean) / std)[None]).logits

    @torch.inference_mode()
    def run(frame: Tensor) -> Tensor:
        with _autocast(setting):
            full = F.interpolate(logits(frame), size=setting.size, mode="bilinear", align_corners=False)
            return full.argmax(1)[0].to(torch.uint8)

    with torch.no_grad():
        model.decode_head.classifier.bias -= logits(frame).mean((0, 2, 3))  # labels vary over the image
    folder = tempfile.TemporaryDirectory()
    model.save_pretrained(folder.name)
    return run, folder


def _autocast(setting: Setting) -> AbstractContextManager[Any]:
    if setting.precision not in DTYPES:
        return nullcontext()
    return torch.autocast(setting.device, DTYPES[setting.precision])


def _timed(run: Callable[[Tensor], Tensor], frame: Tensor) -> tuple[float, Tensor]:
    """Return the seconds that `run` takes, and what it returns."""
    return _clocked(run, frame, is_cuda=frame.is_cuda)


def _clocked(work: Callable[..., Any], *inputs: Any, is_cuda: bool) -> tuple[float, Any]:
    """Return the seconds that `work` takes, on a GPU until it has done all, and what it returns."""
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work(*inputs)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _summary(times: list[float]) -> dict[str, Any]:
    ordered = sorted(times)
    return {
        "latency_ms": {
            "mean": 1e3 * statistics.mean(ordered),
            "median": 1e3 * statistics.median(ordered),
            "p95": 1e3 * ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)],
        },
        "fps": 1.0 / statistics.mean(ordered),
    }


def _peak_memory(setting: Setting) -> float:
    """Peak memory in MiB: of the device's allocator on cuda, else of the process."""
    if setting.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())

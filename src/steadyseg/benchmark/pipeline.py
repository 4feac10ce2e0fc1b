"""The stages of predict on a video, each timed alone, and all at once."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steadyseg.benchmark.clock import clocked, summary
from steadyseg.benchmark.setting import Setting, autocast, prepare
from steadyseg.benchmark.subject import attach_for_video
from steadyseg.engine.checkpoint import load_model
from steadyseg.engine.stream import to_labels
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError, Frame
from steadyseg.video import Overlay, Writer, probe, read

BLOCK = 16
"""Frames that go through one stage before the next stage has its turn."""
THREADS = {"decode": ("decode",), "model": ("copy", "model", "labels"), "draw": ("draw",), "encode": ("encode",)}
"""The stages that run at the same time, and which of those measured are in each."""


def stages(name: str, setting: Setting, *, video: str | Path, method: str | None = None) -> dict[str, Any]:
    """Time every stage of `predict` on a video alone, then `predict` as a whole, in which they overlap.

    Stages take turns in blocks of BLOCK frames, so that hardly any runs beside another. Encoding contains the
    conversion of colours, and the time to finish the file, shared out among the frames. The median and the 95th
    percentile of predict are those of the times between two frames that the model hands over.

    Args:
        name: weights, as `load_model` takes them.
        setting: device, precision, backend, frames, warmup, threads and options; the rest is not read.
        video: a video, an image, a folder of images or a glob.
        method: runs weights of a SegFormer by another method.

    Returns:
        "model", "method" and "video"; summaries of each of the "stages", key frames apart where they come at fixed
        distances, and of "predict", whose mean is that of its whole run; "one_by_one_ms", the
        sum of the stages' means; "slowest", the thread that takes longest; and "against_slowest", the mean time of
        predict by that of this thread.

    Raises:
        ConfigError: if the video has no frame after the warm-up, or as in `predict`.
        DataError: if the video cannot be read.
    """
    prepare(setting)
    model = load_model(name, setting.device, method=method, options=dict(setting.options))
    attach_for_video(model, setting, video)
    period = model.period if model.is_periodic else 1
    with tempfile.TemporaryDirectory() as folder, autocast(setting):
        times = _stage_times(model, setting, video, Path(folder) / "stages.mp4")
        whole = _predict_times(model, setting, video, Path(folder) / "predict.mp4")
    means = {stage: 1e3 * statistics.mean(spent) for stage, spent in times.items()}
    threads = {thread: sum(means[stage] for stage in parts) for thread, parts in THREADS.items()}
    slowest = max(threads, key=lambda thread: threads[thread])
    info = probe(video)
    return {
        "model": name,
        "method": method,
        "video": {"name": info.path.name, "height": info.height, "width": info.width, "frames": len(times["model"])},
        "stages": {stage: summary(spent, period=period, first=setting.warmup) for stage, spent in times.items()},
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
        spent, result = clocked(work, *inputs, is_cuda=setting.device == "cuda")
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
    between = summary([after - before for before, after in pairwise(stamps)][setting.warmup :])
    return {**between, "latency_ms": {**between["latency_ms"], "mean": 1e3 * mean}, "fps": 1 / mean}

"""Latency, throughput and cost of a method, alone or frame by frame in turn with something else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.benchmark.clock import clocked, of_periods, quartiles, summary
from steadyseg.benchmark.host import peak_gflops, peak_memory
from steadyseg.benchmark.parts import parts
from steadyseg.benchmark.process import EndedError, alone
from steadyseg.benchmark.reference import TransformersProcess, forgetful
from steadyseg.benchmark.setting import Round, Setting, about, prepare, rounds, whole_intervals
from steadyseg.benchmark.subject import attach, build, follow, street
from steadyseg.costs import costs
from steadyseg.engine.checkpoint import load_model
from steadyseg.models.base import VideoSegmenter, fixed_sizes


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """Measure one method; call it in a fresh process, or the peak memory is that of everything before it.

    Args:
        name: a method, such as sdcpc.
        setting: what is measured, and how.

    Returns:
        What was measured, as `about` says it, and plain numbers: parameters; multiply-adds of a frame; what
        `summary` says of the times of a round of one frame from every stream; "parts", where asked for; MiB;
        "peak_gflops" of a large matrix product; and "share_of_peak", how much of it the method reaches: two operations
        for each multiply-add executed here, products of attention included, by the mean time. Both are None in int8, in
        which torch has no such product.

    Raises:
        ConfigError: for an unknown method, backbone or device.
    """
    prepare(setting)
    frames = street(setting)
    return _measured(name, attach(build(name, setting, frames[0]), setting, frames), frames, setting)


def _measured(name: str, model: VideoSegmenter, frames: list[Tensor], setting: Setting) -> dict[str, Any]:
    """Return what `measure` does, of a model with its backend."""
    run = follow(model, setting)
    count = whole_intervals(model, setting)
    feed = rounds(frames, setting, setting.warmup + count)
    for frame in islice(feed, _rounds_beside_others(setting)):
        run(frame)
    with alone():
        for frame in islice(feed, setting.warmup - _rounds_beside_others(setting)):
            run(frame)
        times = [clocked(run, frame, is_cuda=frame[0].is_cuda)[0] for frame in feed]
        memory = peak_memory(setting)
        apart = {"parts": parts(model, setting, frames)} if setting.parts else {}
        peak = None if setting.precision == "int8" else peak_gflops(setting)
    timed = summary(times, period=model.period, first=setting.warmup, streams=setting.streams)
    recorded = model.takes_whole_steps
    backend, model.backend = model.backend, None  # what is counted is torch's
    with fixed_sizes() if recorded else nullcontext():
        counted = {
            what: {form: cost._asdict() for form, cost in forms.items()}
            for what, forms in costs(model, [frame[None] for frame in frames]).items()
        }
    model.backend = backend
    operations = 2 * counted["stream"]["executed"]["full"] * timed["fps"]
    return {
        **about(name, setting),
        "period": model.period,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": counted,
        **timed,
        **apart,
        "peak_memory_mib": memory,
        "peak_gflops": peak,
        "share_of_peak": None if peak is None else operations / (1e9 * peak),
    }


def _rounds_beside_others(setting: Setting) -> int:
    """Return how many rounds of the warm-up may run beside other measurements: the first, in which graphs are made.

    The others come after the wait for the machine, so that clocks and caches are warm.
    """
    return setting.warmup // 2


def compare(name: str, setting: Setting) -> dict[str, Any]:
    """Time a method against something else, round by round in turn; who begins changes.

    Both begin with the uint8 frames and end with the full-size label maps. transformers' SegFormer, in a process of
    its own, resizes the logits and takes the arg-max; for the method segformer both have the same weights, and the
    labels are compared. A method that remembers nothing runs its whole clip for every frame, and the labels are
    compared too.

    Args:
        name: a method.
        setting: what is measured, and how.

    Returns:
        What was measured, as `about` says it; summaries of "ours" and "theirs"; "speedup", the ratio of the mean
        times; "paired", the quartiles of the ratios of the times of single key intervals, or of single rounds for
        methods without key frames; and, where labels are compared, "pixels", how many, "differing", how many of them
        have another label, and for segformer "gap": by how much the scores of the two labels differ there at most,
        relative to the largest score; rounding alone gives about 1e-6.

    Raises:
        ConfigError: as `measure`, or if transformers is missing or has no such backbone.
        EndedError: if the process of transformers' SegFormer ends.
    """
    prepare(setting)
    frames = street(setting)
    if setting.against == "clip":
        ours = build(name, setting, frames[0])
        theirs = partial(clocked, forgetful(deepcopy(ours), setting), is_cuda=setting.device == "cuda")
        return _in_turn(name, attach(ours, setting, frames), theirs, frames, setting)
    with tempfile.TemporaryDirectory() as folder, TransformersProcess(setting, frames[0], Path(folder)) as apart:
        ours = load_model(folder, setting.device) if name == "segformer" else build(name, setting, frames[0])
        return _in_turn(name, attach(ours, setting, frames), apart, frames, setting)


def measure_and_compare(name: str, setting: Setting) -> dict[str, Any]:
    """Do both in one process, where they have the same weights with one model, whose graphs are then made once.

    Args:
        name: a method.
        setting: what is measured, and how.

    Returns:
        "result", as of `measure`, and "comparison", as of `compare`: None if the process of transformers' SegFormer
        ended, with "why".

    Raises:
        ConfigError: as they do.
    """
    if setting.against == "clip" or name == "segformer":
        return {"result": measure(name, setting), **_compared(partial(compare, name, setting))}
    prepare(setting)
    frames = street(setting)
    model = attach(build(name, setting, frames[0]), setting, frames)
    result = _measured(name, model, frames, setting)

    def compared() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder, TransformersProcess(setting, frames[0], Path(folder)) as apart:
            return _in_turn(name, model, apart, frames, setting)

    return {"result": result, **_compared(compared)}


def _compared(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"comparison": function()}
    except (EndedError, torch.OutOfMemoryError) as error:
        return {"comparison": None, "why": " ".join(str(error).split())}


def _in_turn(
    name: str,
    ours: VideoSegmenter,
    theirs: Callable[[Round], tuple[float, Round]],
    frames: list[Tensor],
    setting: Setting,
) -> dict[str, Any]:
    """Return what `compare` does; `theirs` gives its own seconds, and labels on any device."""
    runs: dict[str, Callable[[Round], tuple[float, Round]]]
    runs = {"ours": partial(clocked, follow(ours, setting), is_cuda=setting.device == "cuda"), "theirs": theirs}
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    pixels, differing, gap, period = 0, 0, 0.0, ours.period
    feed = rounds(frames, setting, setting.warmup + whole_intervals(ours, setting))
    with ExitStack() as machine:
        for index, frame in enumerate(feed):
            if index == _rounds_beside_others(setting):
                machine.enter_context(alone())
            labels: dict[str, Round] = {}
            begins = (index + index // period) % 2  # key frames change who begins, too
            for side in ("ours", "theirs") if begins else ("theirs", "ours"):
                spent, found = runs[side](frame)
                labels[side] = [map_.to(frame[0].device) for map_ in found]
                if index >= setting.warmup:
                    times[side].append(spent)
            pixels += sum(labels["ours"][stream].numel() for stream in range(setting.streams))
            wrong = sum(int((a != b).sum()) for a, b in zip(labels["ours"], labels["theirs"], strict=True))
            differing += wrong
            if wrong and name == "segformer":
                gap = max(gap, label_gap(ours, frame, labels))
    result: dict[str, Any] = {**about(name, setting), "against": setting.against}
    result |= {
        side: summary(spent, period=period, first=setting.warmup, streams=setting.streams)
        for side, spent in times.items()
    }
    result["speedup"] = sum(times["theirs"]) / sum(times["ours"])
    pairs = zip(of_periods(times["theirs"], period), of_periods(times["ours"], period), strict=True)
    result["paired"] = quartiles([spent / mine for spent, mine in pairs])
    same_weights = name == "segformer" or setting.against == "clip"
    return result | ({"pixels": pixels, "differing": differing, "gap": gap} if same_weights else {})


@torch.inference_mode()
def label_gap(model: VideoSegmenter, frames: Round, labels: dict[str, Round]) -> float:
    """Return the largest difference between the scores of two labels of a pixel, relative to the largest score.

    Args:
        model: a method that looks at one frame.
        frames: uint8 [3, H, W] each.
        labels: two maps uint8 [H, W] of each frame, "ours" and "theirs".
    """
    logits = model.step(torch.stack(frames))[0].float()
    full = F.interpolate(logits, frames[0].shape[1:], mode="bilinear", align_corners=False)  # [B, K, H, W]
    ours, theirs = (full.gather(1, _indices(labels[side])) for side in ("ours", "theirs"))
    return float((ours - theirs).abs().max() / full.abs().max())


def _indices(labels: Round) -> Tensor:
    return torch.stack(labels).long()[:, None]  # [B, 1, H, W]

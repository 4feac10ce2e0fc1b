"""The parts of a frame, each timed by itself: copy, normalising, backbone, the rest of the method, labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steadyseg.benchmark.clock import clocked, summary
from steadyseg.benchmark.setting import Setting, autocast, rounds, whole_intervals
from steadyseg.engine.stream import to_labels
from steadyseg.models.base import Backend, VideoSegmenter


@torch.inference_mode()
def parts(model: VideoSegmenter, setting: Setting, frames: list[Tensor]) -> dict[str, Any]:
    """Time the parts of a round, in a pass of its own: on a GPU the parts do not overlap, so their sum is larger.

    Frames start on the CPU and labels end there. In torch the model falls into "normalise", "backbone" and "method",
    which is all the rest of `step`; other backends run whole graphs, so there it falls into "graph NAME" for every
    graph and "rest", the schedule and what is no graph.

    Args:
        model: with its backend attached.
        setting: as in `measure`.
        frames: of a street, each uint8 [3, H, W].

    Returns:
        `summary` of the times of each part in a round, in the order of the work: "copy", those of the model, "labels".
        A part that does not run in a round takes no time there.
    """
    is_cuda = setting.device == "cuda"
    spent: dict[str, list[float]] = {}
    state: Any = None
    count = setting.warmup + whole_intervals(model, setting)
    rest = "method" if model.backend is None else "rest"
    with _watched(model, is_cuda) as watched, autocast(setting):
        for index, images in enumerate(rounds([frame.cpu() for frame in frames], setting, count)):
            watched.clear()
            copying, batch = clocked(lambda images=images: torch.stack(images).to(setting.device), is_cuda=is_cuda)
            whole, (logits, state) = clocked(model.step, batch, state, is_cuda=is_cuda)
            labelling, _ = clocked(lambda logits=logits: to_labels(logits, setting.size).cpu(), is_cuda=is_cuda)
            inside = {"copy": copying, **watched, rest: whole - sum(watched.values()), "labels": labelling}
            for part, seconds in inside.items():
                spent.setdefault(part, index * [0.0]).append(seconds)
            for part in spent.keys() - inside.keys():
                spent[part].append(0.0)
    order = ["copy", *(part for part in spent if part not in ("copy", rest, "labels")), rest, "labels"]
    return {
        part: summary(spent[part][setting.warmup :], period=model.period, first=setting.warmup, streams=setting.streams)
        for part in order
    }


@contextmanager
def _watched(model: VideoSegmenter, is_cuda: bool) -> Iterator[dict[str, float]]:
    """Yield a dict to which the seconds of each part of the model are added; the model is then as it was."""
    seconds: dict[str, float] = {}

    def timed(part: str, work: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        spent, result = clocked(lambda: work(*inputs, **options), is_cuda=is_cuda)
        seconds[part] = seconds.get(part, 0.0) + spent
        return result

    backend, normalize, run_backbone = model.backend, model.normalize, model.backbone.forward
    if backend is not None:
        watched = partial(_run_graph, timed, backend)
        watched.takes_whole_steps = model.takes_whole_steps  # type: ignore[attr-defined]
        model.backend = watched
    else:
        model.normalize = lambda frame: timed("normalise", normalize, frame)  # type: ignore[method-assign]
        model.backbone.forward = lambda *inputs, **options: timed("backbone", run_backbone, *inputs, **options)  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        model.backend = backend
        if backend is None:
            del model.normalize, model.backbone.forward


def _run_graph(timed: Callable[..., Any], backend: Backend, name: str, *inputs: Any) -> Any:
    return timed(f"graph {name}", backend, name, *inputs)

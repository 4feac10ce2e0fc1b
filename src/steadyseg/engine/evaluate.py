"""Evaluation: the same `segment` that a user runs, frame by frame, with constant memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from steadyseg.config import EvalConfig
from steadyseg.data.source import VideoSource
from steadyseg.engine.stream import segment
from steadyseg.metrics.base import Metric
from steadyseg.models.base import VideoSegmenter, check_classes


@torch.inference_mode()
def evaluate(
    model: VideoSegmenter,
    source: VideoSource,
    metrics: Sequence[Metric],
    *,
    config: EvalConfig | None = None,
    on_frame: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Score a model on every video of a source.

    Predictions are made at the label's own size; labels are never resized. Where several processes run, each takes
    every n-th video and all get the scores of the whole.

    Args:
        model: in evaluation mode, on the device to use.
        source: the split.
        metrics: accumulators; each sees every frame once.
        config: how frames are resized before the model, and whether each is taken alone; `config.source` and
            `config.starts` are not read.
        on_frame: called after every frame, for progress.

    Returns:
        The scores of all metrics by published name, fractions in [0, 1].

    Raises:
        CheckpointError: if model and source differ in their number of classes.
        DataError: if a frame cannot be read.
    """
    check_classes(model, source.classes)
    config = config or EvalConfig()
    shared = distributed.is_available() and distributed.is_initialized()
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
    for name in source.names[rank::processes]:
        for metric in metrics:
            metric.start(name)
        frames = source.read(name)
        for part in ([frame] for frame in frames) if config.alone else (frames,):
            for frame, preds in segment(model, part, prepare=lambda frame: resize_frame(frame, config)):
                for metric in metrics:
                    metric.update(frame, preds)
                if on_frame is not None:
                    on_frame()
    if shared:
        device = model.class_weights.device
        for total in (total for metric in metrics for total in metric.totals()):
            summed = total.to(device)
            distributed.all_reduce(summed)
            total.copy_(summed)
    return {name: score for metric in metrics for name, score in metric.compute().items()}


def resize_frame(frame: Tensor, config: EvalConfig) -> Tensor:
    """Resize uint8 [B, 3, H, W] as the config says: fit `base`, then stretch to multiples of 32 for "align32"."""
    height, width = frame.shape[-2:]
    target = (height, width)
    if config.base is not None:
        factor = min(max(config.base) / max(target), min(config.base) / min(target))
        target = (int(height * factor + 0.5), int(width * factor + 0.5))
    if config.resize == "align32":
        target = (-(-target[0] // 32) * 32, -(-target[1] // 32) * 32)
    if target == (height, width):
        return frame
    resized = F.interpolate(frame.float(), target, mode="bilinear", align_corners=False)  # [B, 3, H', W']
    return resized.round().to(torch.uint8)

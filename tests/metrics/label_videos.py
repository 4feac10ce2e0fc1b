"""Random label videos and small helpers for the tests of the metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from steadyseg.metrics.base import Metric
from steadyseg.types import IGNORE, Frame

CLASSES = 5


@dataclass
class Video:
    """Raw labels 0..5 and 255, of which 0 and 255 are ignored, and predictions 0..4, uint8 [L, H, W] each."""

    raw: np.ndarray
    preds: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return np.where((self.raw == 0) | (self.raw == 255), IGNORE, self.raw - 1).astype(np.uint8)


def random_video(rng: np.random.Generator) -> Video:
    """Draw a video that mostly holds still, with some pixels ignored, often short, often with classes missing."""
    length, height, width = int(rng.integers(1, 24)), int(rng.integers(1, 5)), int(rng.integers(1, 5))
    values = np.array([0, 255, *range(1, 1 + int(rng.integers(1, CLASSES + 1)))], np.uint8)
    change = rng.choice([0.0, 0.03, 0.1, 0.6])
    raw = rng.choice(values, (length, height, width))
    preds = rng.integers(0, CLASSES, (length, height, width)).astype(np.uint8)
    for still in (raw, preds):
        for i in range(1, length):
            still[i] = np.where(rng.random((height, width)) < change, still[i], still[i - 1])
    agree = rng.random((height, width)) < 0.7
    labels = Video(raw, preds).labels
    preds = np.where(agree & (labels != IGNORE), labels, preds)
    return Video(raw, preds)


def image(height: int, width: int) -> torch.Tensor:
    return torch.zeros(3, height, width, dtype=torch.uint8)


def feed(metric: Metric, name: str, video: Video) -> None:
    """Show a whole video to a metric."""
    metric.start(name)
    for index, (labels, preds) in enumerate(zip(video.labels, video.preds, strict=True)):
        frame = Frame(image(*labels.shape), index, index / 15, torch.from_numpy(labels))
        metric.update(frame, torch.from_numpy(preds))

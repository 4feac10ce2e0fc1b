"""IoU: hand-made numbers, a reference that counts pixel by pixel, and what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from label_videos import CLASSES, Video, feed, image, random_video

from steadyseg.metrics.iou import IoU
from steadyseg.types import IGNORE, ConfigError, DataError, Frame, ShapeError

ABSENT = ("skip", "zero", "mpvss")


def reference(videos: list[Video], absent: str) -> dict[str, float]:
    """The definitions, class by class, on all pixels at once."""
    labels = np.concatenate([video.labels.ravel() for video in videos])
    preds = np.concatenate([video.preds.ravel() for video in videos])
    labels, preds = labels[labels < CLASSES], preds[labels < CLASSES]
    if not len(labels):
        return {"mIoU": math.nan, "wIoU": math.nan}
    scores, weights, predicted_only = [], [], 0
    for c in range(CLASSES):
        truth, guess = labels == c, preds == c
        if truth.any():
            scores.append((truth & guess).sum() / (truth | guess).sum())
            weights.append(truth.mean())
        else:
            predicted_only += bool(guess.any())
    divisor = {"skip": len(scores), "zero": CLASSES, "mpvss": len(scores) + predicted_only}[absent]
    return {"mIoU": sum(scores) / divisor, "wIoU": sum(w * s for w, s in zip(weights, scores, strict=True))}


def frame(labels: list[list[int]]) -> Frame:
    grid = torch.tensor(labels, dtype=torch.uint8)
    return Frame(image(*grid.shape), 0, 0.0, grid)


def one(labels: list[list[int]], preds: list[list[int]], metric: IoU) -> dict[str, float]:
    metric.start("video")
    metric.update(frame(labels), torch.tensor(preds, dtype=torch.uint8))
    return metric.compute()


@pytest.mark.parametrize(("absent", "classes"), [("skip", 2), ("zero", 4), ("mpvss", 3)])
def test_by_hand(absent: str, classes: int) -> None:
    """Class 0 scores 2/3, class 1 scores 1/1, class 2 is only predicted, class 3 occurs nowhere."""
    scores = one([[0, 0, 0, 1, IGNORE]], [[0, 0, 2, 1, 3]], IoU(4, absent))
    assert scores == pytest.approx({"mIoU": (2 / 3 + 1) / classes, "wIoU": 3 / 4 * 2 / 3 + 1 / 4})


@pytest.mark.parametrize("absent", ABSENT)
def test_equals_reference(absent: str) -> None:
    rng = np.random.default_rng(1)
    videos = [random_video(rng) for _ in range(200)]
    whole = IoU(CLASSES, absent)
    for number, video in enumerate(videos):
        alone = IoU(CLASSES, absent)
        feed(alone, "alone", video)
        assert alone.compute() == pytest.approx(reference([video], absent), abs=1e-12, nan_ok=True)
        feed(whole, str(number), video)
    assert whole.compute() == pytest.approx(reference(videos, absent), abs=1e-12)


def test_parts_add_up() -> None:
    rng = np.random.default_rng(2)
    parts = [IoU(CLASSES), IoU(CLASSES)]
    whole = IoU(CLASSES)
    for number in range(10):
        video = random_video(rng)
        feed(parts[number % 2], str(number), video)
        feed(whole, str(number), video)
    for mine, other in zip(parts[0].totals(), parts[1].totals(), strict=True):
        mine.add_(other)
    assert torch.equal(parts[0].matrix, whole.matrix)
    assert parts[0].compute() == whole.compute()


def test_ignored_pixels_never_matter() -> None:
    labels = [[0, 1, IGNORE, IGNORE]]
    scores = [one(labels, [[0, 1, a, b]], IoU(2)) for a, b in ((0, 0), (1, 0), (99, IGNORE))]
    assert scores[0] == scores[1] == scores[2] == {"mIoU": 1.0, "wIoU": 1.0}


def test_labels_that_are_no_class_are_ignored() -> None:
    assert one([[0, 1, 7]], [[0, 1, 0]], IoU(2)) == {"mIoU": 1.0, "wIoU": 1.0}


def test_per_class() -> None:
    metric = IoU(3)
    one([[0, 0, 1, 1]], [[0, 2, 1, 1]], metric)
    assert metric.per_class().tolist() == pytest.approx([0.5, 1.0, math.nan], nan_ok=True)
    assert metric.matrix.dtype == torch.int64


def test_frames_without_labels_are_passed_over() -> None:
    metric = IoU(2)
    metric.update(Frame(image(1, 1), 0, 0.0), torch.zeros(1, 1, dtype=torch.uint8))
    assert int(metric.matrix.sum()) == 0
    assert all(math.isnan(score) for score in metric.compute().values())


def test_counts_do_not_overflow() -> None:
    metric = IoU(2)
    one([[0, 1]], [[0, 0]], metric)
    metric.matrix *= 2**40
    assert metric.compute()["mIoU"] == pytest.approx(0.25)


def test_errors() -> None:
    with pytest.raises(DataError, match="preds hold class 2; expected 0 to 1"):
        one([[0, 1]], [[0, 2]], IoU(2))
    with pytest.raises(ShapeError, match=r"preds has shape \[1, 3\]; expected \[1, 2\]"):
        one([[0, 1]], [[0, 1, 1]], IoU(2))
    with pytest.raises(ConfigError, match="absent is 'none'; expected one of skip, zero, mpvss"):
        IoU(2, "none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_classes is 256; expected 1 to 255"):
        IoU(256)


def test_protocol_names_the_variant() -> None:
    assert {IoU(2, absent).protocol for absent in ABSENT} == {
        "mIoU, wIoU (absent classes skipped)",
        "mIoU, wIoU (absent classes count 0)",
        "mIoU, wIoU (absent classes count 0 where predicted)",
    }

"""Accuracy: mean and weighted intersection over union, from one confusion matrix of the whole split."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from steadyseg.types import ConfigError, DataError, Frame, check_shape

_VALUES = 256

_ABSENT = {
    "skip": "absent classes skipped",
    "zero": "absent classes count 0",
    "mpvss": "absent classes count 0 where predicted",
}


def confusion(rows: Tensor, columns: Tensor) -> Tensor:
    """Count pairs of values.

    Args:
        rows: uint8 [H, W].
        columns: uint8 [H, W] on the same device.

    Returns:
        int64 [256, 256]; entry [a, b] is the number of pixels where `rows` is a and `columns` is b.
    """
    pairs = rows.flatten().int() * _VALUES + columns.flatten()  # [H*W]
    return torch.bincount(pairs, minlength=_VALUES * _VALUES).view(_VALUES, _VALUES)


def class_iou(matrix: Tensor) -> Tensor:
    """Return TP / (row sum + column sum - TP), float64 [K], of int64 counts [K, K]; NaN where a class is in neither."""
    hits = matrix.diagonal()
    union = matrix.sum(1) + matrix.sum(0) - hits
    return hits.double() / union.double()


def check_classes(num_classes: int) -> None:
    """Raise ConfigError unless class indices and IGNORE fit one byte."""
    if not 1 <= num_classes < _VALUES:
        raise ConfigError(f"num_classes is {num_classes}; expected 1 to 255")


class IoU:
    """mIoU and wIoU: every labelled pixel of every video counts once; memory is one K x K matrix.

    mIoU is the mean of IoU_c = TP_c / (GT_c + PR_c - TP_c) over classes; wIoU weighs IoU_c by the share of class c in
    the ground truth. Pixels whose label is IGNORE, or no class, are not looked at.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
        >>> preds = torch.tensor([[0, 1, 1, 2]], dtype=torch.uint8)
        >>> metric = IoU(num_classes=3)
        >>> metric.start("video")
        >>> metric.update(Frame(torch.zeros(3, 1, 4, dtype=torch.uint8), 0, 0.0, labels), preds)
        >>> metric.compute()
        {'mIoU': 0.5, 'wIoU': 0.5}
    """

    def __init__(self, num_classes: int, absent: Literal["skip", "zero", "mpvss"] = "skip") -> None:
        """Start with no pixel counted.

        Args:
            num_classes: K, 1 to 255.
            absent: what mIoU does with classes without ground truth. "skip": leave them out, even if predicted, as
                the VSPW evaluation does; "zero": they score 0, so the sum is always divided by K; "mpvss": they
                score 0 if predicted and are left out otherwise. wIoU is the same in all three.

        Raises:
            ConfigError: for an unknown variant or class count.
        """
        check_classes(num_classes)
        if absent not in _ABSENT:
            raise ConfigError(f"absent is '{absent}'; expected one of {', '.join(_ABSENT)}")
        self.num_classes = num_classes
        self.absent = absent
        self.protocol = f"mIoU, wIoU ({_ABSENT[absent]})"
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        """int64 [K, K]; entry [a, b] is the number of pixels of class a predicted as b."""

    def start(self, video: str) -> None:
        """Begin a new video; IoU does not depend on it."""

    def update(self, frame: Frame, preds: Tensor) -> None:
        """Count a frame; one without labels is passed over.

        Args:
            frame: with labels uint8 [H, W], or None.
            preds: uint8 [H, W] class indices, on the device of the labels.

        Raises:
            ShapeError: if `preds` does not have the label's size.
            DataError: if a labelled pixel is predicted as a class that does not exist.
        """
        if frame.labels is None:
            return
        check_shape("preds", preds, tuple(frame.labels.shape), torch.uint8)
        counts = confusion(frame.labels, preds)[: self.num_classes].to(self.matrix.device)  # [K, 256]
        beyond = counts[:, self.num_classes :].sum(0).nonzero()
        if len(beyond):
            value = self.num_classes + int(beyond[0])
            raise DataError(f"preds hold class {value}; expected 0 to {self.num_classes - 1}, as the labels do")
        self.matrix += counts[:, : self.num_classes]

    def per_class(self) -> Tensor:
        """Return IoU_c, float64 [K]; NaN for classes without ground truth."""
        return class_iou(self.matrix).masked_fill(self.matrix.sum(1) == 0, torch.nan)

    def compute(self) -> dict[str, float]:
        """Return mIoU and wIoU in [0, 1]; NaN if nothing was labelled."""
        truth = self.matrix.sum(1)
        scores = self.per_class().nan_to_num(0.0)
        divisor = {
            "skip": (truth > 0).sum(),
            "zero": torch.tensor(self.num_classes),
            "mpvss": ((truth + self.matrix.sum(0)) > 0).sum(),
        }[self.absent]
        if not int(truth.sum()):
            return {"mIoU": float("nan"), "wIoU": float("nan")}
        weighted = (truth.double() * scores).sum() / truth.sum()
        return {"mIoU": float(scores.sum() / divisor), "wIoU": float(weighted)}

    def totals(self) -> list[Tensor]:
        """Return the confusion matrix."""
        return [self.matrix]

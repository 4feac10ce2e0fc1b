"""The one abstraction of this folder: a metric sees every frame once and adds up tensors."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from steadyseg.types import Frame


class Metric(Protocol):
    """A streaming score. Its memory does not depend on the number of frames.

    Attributes:
        protocol: the scores' names and how they are made, such as "TC (dis, nearest warp)".
    """

    protocol: str

    def start(self, video: str) -> None:
        """Begin a new video."""
        ...

    def update(self, frame: Frame, preds: Tensor) -> None:
        """Take every frame of the video once, in order; preds uint8 [H, W] at the label's size."""
        ...

    def compute(self) -> dict[str, float]:
        """Return scores by published name, as fractions in [0, 1] (NaN where undefined)."""
        ...

    def totals(self) -> list[Tensor]:
        """Return the accumulators themselves (not copies); summing them over processes in place merges the scores."""
        ...

"""Metrics by name, and the set that a data set is usually scored with."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from steadyseg.metrics.base import Metric
from steadyseg.types import ConfigError

__all__ = ["Metric", "MetricConfig", "Scored", "build", "names", "standard"]

_NAMES = ("iou", "vc", "tc")
_DENSE_RATE = 10.0
"""Frames a second from which neighbouring frames show nearly the same; VSPW and CamVid's dense labels have 15."""


class Scored(Protocol):
    """What the metrics ask of a data set; every VideoSource has it.

    A source may also have raw_labels(name, frame) -> uint8 [H, W], its own label values, for mVC as VSPW counts it;
    and flow(name, frame), visible(name, frame), for TC with exact flow.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    rate: float

    def labelled(self, name: str) -> tuple[int, ...]:
        """Return the frame numbers of video `name` that have ground truth, rising."""
        ...


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    """How to score."""

    absent: Literal["skip", "zero", "mpvss"] = "skip"
    """What mIoU does with classes without ground truth: leave out; count 0; count 0 only if predicted."""
    lengths: tuple[int, ...] = (8, 16)
    """Window lengths of mVC, in frames."""
    protocol: Literal["auto", "vspw", "cffm_skip16", "full", "strict", "mixed"] = "auto"
    """Variant of mVC; auto is vspw for a source with raw labels, full for every other."""
    flow: Literal["dis", "files", "source", "raft"] = "dis"
    """Where TC's optical flow comes from: OpenCV DIS, .flo files, the source's exact flow, or RAFT."""
    flow_root: str | None = None
    """Folder of <video>/<frame:6>.flo for flow "files"."""
    mode: Literal["ours", "etc_exact", "vspw_exact"] = "ours"
    """TC as defined here, or as two published scripts count it."""
    occlusion: bool = False
    """Whether TC leaves out pixels that are hidden in the next frame."""


def names() -> list[str]:
    """Return the metric names: iou (mIoU, wIoU), vc (mVC8, mVC16), tc (TC)."""
    return list(_NAMES)


def build(name: str, source: Scored, config: MetricConfig | None = None) -> Metric:
    """Build an empty metric.

    Args:
        name: one of `names()`.
        source: the split that will be scored.
        config: the variants; the defaults if None.

    Returns:
        The metric. Its attribute `protocol` names its scores and how they were made, such as "TC (dis, nearest warp)".

    Raises:
        ConfigError: for an unknown name, with the nearest known one, or a variant that the source does not allow.
    """
    config = config or MetricConfig()
    if name == "iou":
        from steadyseg.metrics.iou import IoU

        return IoU(len(source.classes), config.absent)
    if name == "vc":
        from steadyseg.metrics.consistency import VideoConsistency

        raw = getattr(source, "raw_labels", None)
        protocol = config.protocol
        if protocol == "auto":
            protocol = "full" if raw is None else "vspw"
        return VideoConsistency(config.lengths, protocol, raw_labels=raw if protocol in ("vspw", "mixed") else None)
    if name == "tc":
        from steadyseg.flow import build_flow
        from steadyseg.metrics.consistency import TemporalConsistency

        flow = build_flow(config.flow, root=config.flow_root, source=source)
        return TemporalConsistency(len(source.classes), flow, mode=config.mode, occlusion=config.occlusion)
    near = difflib.get_close_matches(name, _NAMES, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(_NAMES)}"
    raise ConfigError(f"unknown metric '{name}'; {hint}")


def standard(source: Scored, config: MetricConfig | None = None) -> list[Metric]:
    """Build the metrics that a source can be scored with: mIoU and wIoU; mVC8 and mVC16; TC.

    mVC is left out where no video has more neighbouring labelled frames than the shortest window; mVC and TC are
    left out where the source has fewer than 10 frames a second, as its neighbours differ by more than motion.

    Args:
        source: the split that will be scored.
        config: the variants; the defaults if None.

    Raises:
        ConfigError: as `build`.
    """
    config = config or MetricConfig()
    chosen = ["iou"]
    if source.rate >= _DENSE_RATE:
        dense = max((_longest_run(source.labelled(name)) for name in source.names), default=0)
        chosen += ["vc", "tc"] if dense > min(config.lengths, default=0) else ["tc"]
    return [build(name, source, config) for name in chosen]


def _longest_run(frames: tuple[int, ...]) -> int:
    """Return the largest number of successive frame numbers."""
    longest = length = min(len(frames), 1)
    for before, after in pairwise(frames):
        length = length + 1 if after == before + 1 else 1
        longest = max(longest, length)
    return longest

"""How steady predictions are: video consistency (mVC) against dense labels, temporal consistency (TC) along motion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.flow import (
    UNKNOWN,
    FlowEstimator,
    SourceFlow,
    build_flow,
    consistent,
    warp_etc,
    warp_nearest,
    warp_vspw,
)
from steadyseg.metrics.iou import check_classes, class_iou, confusion
from steadyseg.types import IGNORE, ConfigError, DataError, Frame, check_shape

# ---- video consistency --------------------------------------------------------------------------------------------


class _Protocol(NamedTuple):
    """What tells the protocols of video consistency apart."""

    raw: bool = False
    """Compare raw labels, where they are given."""
    ignore: bool = True
    """Leave out pixels labelled IGNORE; else IGNORE is a label as any other."""
    drop_last: bool = False
    """A window counts only if one more frame follows it."""
    together: bool = False
    """A run counts only if it is longer than the longest window."""
    correct: bool = False
    """The prediction must also equal the label."""
    pooled: bool = False
    """The score of a length also averages the windows of all shorter ones."""
    suffix: str = ""
    """Of the name in reports, where the score is another quantity."""


_PROTOCOLS = {
    "vspw": _Protocol(raw=True, ignore=False, drop_last=True),
    "cffm_skip16": _Protocol(ignore=False, drop_last=True, together=True),
    "full": _Protocol(),
    "strict": _Protocol(correct=True, suffix="_strict"),
    "mixed": _Protocol(raw=True, ignore=False, drop_last=True, pooled=True, suffix="_mixed"),
}


@dataclass
class _Run:
    """What is known of the labelled run so far: its last frame, and for how long each pixel has been the same."""

    index: int
    labels: Tensor  # uint8 [H, W]
    preds: Tensor  # uint8 [H, W]
    labels_age: Tensor  # uint8 [H, W] frames, this one included, up to the longest window; 0 where left out
    preds_age: Tensor  # uint8 [H, W]
    length: int = 1
    waiting: list[tuple[int, float]] = field(default_factory=list)  # (window length's place, score) not yet counted


class VideoConsistency:
    """mVC_n: of the pixels whose label holds still for n frames, the share whose prediction also does.

    A window is n neighbouring frames. In it C_gt are the pixels with one label in all n frames, C_pr those with one
    prediction; its score is |C_gt and C_pr| / |C_gt|, and mVC_n is the mean over the windows of all videos. Windows
    without any C_gt are left out. The prediction need not be right, except under "strict".

    Windows lie in runs: labelled frames with successive numbers and of one size. A run of L frames has

    ============= ================ ======================== ==============================================
    protocol      windows          labels                   difference
    ============= ================ ======================== ==============================================
    vspw          L - n            raw                      the VSPW evaluation: the last window is not used
    cffm_skip16   L - n            IGNORE is a label        runs no longer than the longest n count for no n
    full          L - n + 1        IGNORE left out          all windows
    strict        L - n + 1        IGNORE left out          the prediction must also equal the label
    mixed         L - n            raw                      as vspw, but see below
    ============= ================ ======================== ==============================================

    "mixed" repeats a widely copied script that fills one list of window scores, first for n = 8, then for n = 16, and
    never empties it: its mVC8 is that of "vspw", its mVC16 is the mean over the 8-frame and the 16-frame windows
    together, hence too high. Under "strict" and "mixed" the scores have their own names, such as mVC16_mixed.

    "raw" means the data set's own label values, in which VSPW's 0 and 255 differ; both are IGNORE in `Frame.labels`.
    Without `raw_labels` the two become one label, which `protocol` then says.

    The memory is a few bytes a pixel and does not grow with the video.

    Example:
        >>> import torch
        >>> metric = VideoConsistency(lengths=(2,))
        >>> metric.start("video")
        >>> image, labels = torch.zeros(3, 1, 4, dtype=torch.uint8), torch.zeros(1, 4, dtype=torch.uint8)
        >>> for index, preds in enumerate(([1, 1, 1, 1], [1, 1, 1, 2])):
        ...     metric.update(Frame(image, index, 0.0, labels), torch.tensor([preds], dtype=torch.uint8))
        >>> metric.compute()
        {'mVC2': 0.75}
    """

    def __init__(
        self,
        lengths: Sequence[int] = (8, 16),
        protocol: str = "full",
        *,
        raw_labels: Callable[[str, int], Tensor] | None = None,
    ) -> None:
        """Start with no window counted.

        Args:
            lengths: frames of a window, 2 to 255 each.
            protocol: "vspw", "cffm_skip16", "full", "strict" or "mixed".
            raw_labels: gives uint8 [H, W] raw labels of a frame by video and frame number; for "vspw" and "mixed".

        Raises:
            ConfigError: for an unknown protocol, a wrong length, or raw labels that the protocol does not read.
        """
        if protocol not in _PROTOCOLS:
            raise ConfigError(f"protocol is '{protocol}'; expected one of {', '.join(_PROTOCOLS)}")
        self.lengths = tuple(sorted(set(lengths)))
        if not self.lengths or self.lengths[0] < 2 or self.lengths[-1] > 255:
            raise ConfigError(f"lengths are {list(lengths)}; expected at least one, each from 2 to 255 frames")
        self._rules = _PROTOCOLS[protocol]
        if raw_labels is not None and not self._rules.raw:
            raise ConfigError(f"protocol '{protocol}' does not read raw labels; leave raw_labels out, or choose 'vspw'")
        self._raw_labels = raw_labels
        merged = ", ignored labels merged" if self._rules.raw and raw_labels is None else ""
        self.protocol = f"{', '.join(f'mVC{n}{self._rules.suffix}' for n in self.lengths)} ({protocol}{merged})"
        self.sums = torch.zeros(len(self.lengths), dtype=torch.float64)
        """float64, per length: the sum of the scores of its windows."""
        self.counts = torch.zeros(len(self.lengths), dtype=torch.int64)
        """int64, per length: the number of its windows."""
        self._video = ""
        self._run: _Run | None = None

    def start(self, video: str) -> None:
        """Begin a new video; no window spans two."""
        self._video = video
        self._run = None

    def update(self, frame: Frame, preds: Tensor) -> None:
        """Take the next frame. One without labels, of another size, or after a gap in the numbers ends the run.

        Args:
            frame: with labels uint8 [H, W], or None.
            preds: uint8 [H, W] class indices, on the device of the labels.

        Raises:
            ShapeError: if `preds` or the raw labels do not have the label's size.
        """
        if frame.labels is None:
            self._run = None
            return
        labels = frame.labels
        check_shape("preds", preds, tuple(labels.shape), torch.uint8)
        if self._raw_labels is not None:
            labels = self._raw_labels(self._video, frame.index).to(preds.device)
            check_shape("raw labels", labels, tuple(preds.shape), torch.uint8)
        run = self._run
        if run is not None and run.index + 1 == frame.index and run.labels.shape == labels.shape:
            self._count_waiting(run)
            run.labels_age = self._grow(run.labels_age, run.labels == labels)
            run.preds_age = self._grow(run.preds_age, run.preds == preds)
            run.index, run.labels, run.preds, run.length = frame.index, labels, preds, run.length + 1
        else:
            run = _Run(frame.index, labels, preds, torch.ones_like(labels), torch.ones_like(preds))
        if self._rules.ignore:
            run.labels_age.masked_fill_(labels == IGNORE, 0)
        self._run = run
        self._score(run)

    def _grow(self, age: Tensor, same: Tensor) -> Tensor:
        """Return how long each pixel has been the same now, uint8 [H, W], at most the longest window."""
        return age.clamp(max=self.lengths[-1] - 1).mul_(same).add_(1)

    def _score(self, run: _Run) -> None:
        """Score the windows that end at the run's last frame."""
        both = torch.minimum(run.labels_age, run.preds_age)  # [H, W]
        if self._rules.correct:
            both.masked_fill_(run.preds != run.labels, 0)
        for place, length in enumerate(self.lengths):
            if run.length < length:
                break
            still = int((run.labels_age >= length).sum())
            if still:
                score = int((both >= length).sum()) / still
                run.waiting.append((place, score))
        if not self._rules.drop_last:
            self._count_waiting(run)

    def _count_waiting(self, run: _Run) -> None:
        """Count the windows of a run that has got another frame, unless the run may still prove too short."""
        if self._rules.together and run.length < self.lengths[-1]:
            return
        for place, score in run.waiting:
            self.sums[place] += score
            self.counts[place] += 1
        run.waiting.clear()

    def compute(self) -> dict[str, float]:
        """Return mVC_n of every length in [0, 1]; NaN where no window was defined."""
        sums, counts = self.sums, self.counts
        if self._rules.pooled:
            sums, counts = sums.cumsum(0), counts.cumsum(0)
        means = (sums / counts).tolist()
        return {f"mVC{n}{self._rules.suffix}": mean for n, mean in zip(self.lengths, means, strict=True)}

    def totals(self) -> list[Tensor]:
        """Return the sums of scores and the numbers of windows."""
        return [self.sums, self.counts]


# ---- temporal consistency -----------------------------------------------------------------------------------------

_MODES = {"ours": "nearest warp", "etc_exact": "etc_exact", "vspw_exact": "vspw_exact"}


class TemporalConsistency:
    """TC: the IoU of each frame's prediction with the next frame's, warped back along the motion between them.

    W(x) = p_{i+1}(x + flow(x)) is compared with p_i over all pairs of neighbouring frames, labelled or not, in one
    confusion matrix. The modes:

    - "ours": nearest warp; pixels that leave the image, or whose flow is unknown (not finite, or huge as .flo files
      mark it), are left out; mean over classes that occur in either map.
    - "etc_exact": bilinear warp of the class numbers, cut to integers, the border repeated; mean over all K classes
      with 1e-10 added to the union, so that a class that never occurs counts 0. Repeats the evaluation of ETC, with
      its region borders of meaningless classes.
    - "vspw_exact": nearest warp on a grid scaled by W - 1 but sampled as W wide, class 0 outside; mean over classes
      that occur in p_i. The VSPW evaluation takes the first 100 videos of val only; give that source.

    Only pairs of successive frame numbers and of one size count. The memory is the previous frame and its prediction.
    """

    def __init__(
        self,
        num_classes: int,
        flow: str | FlowEstimator = "dis",
        *,
        mode: Literal["ours", "etc_exact", "vspw_exact"] = "ours",
        occlusion: bool = False,
    ) -> None:
        """Start with no pair counted.

        Args:
            num_classes: K, 1 to 255.
            flow: an estimator, or the name of one that needs no further input (see `steadyseg.flow`).
            mode: see the class.
            occlusion: leave out pixels that are hidden in the next frame: by the source's own account where the flow
                is a source's, else where forward and backward flow disagree. Only for mode "ours".

        Raises:
            ConfigError: for an unknown mode or class count, a flow that cannot be had, or occlusion in another mode.
        """
        check_classes(num_classes)
        if mode not in _MODES:
            raise ConfigError(f"mode is '{mode}'; expected one of {', '.join(_MODES)}")
        if occlusion and mode != "ours":
            raise ConfigError(f"mode '{mode}' knows no occlusion; leave occlusion out, or choose mode 'ours'")
        self.num_classes = num_classes
        self.mode = mode
        self._flow = build_flow(flow) if isinstance(flow, str) else flow
        self._occlusion = occlusion
        visible = ", visible pixels" if occlusion else ""
        self.protocol = f"TC ({self._flow.name}, {_MODES[mode]}{visible})"
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        """int64 [K, K]; entry [a, b] is the number of pixels that are a in a frame and b in the warped next one."""
        self._last: tuple[Frame, Tensor] | None = None

    def start(self, video: str) -> None:
        """Begin a new video; no pair spans two."""
        self._flow.start(video)
        self._last = None

    def update(self, frame: Frame, preds: Tensor) -> None:
        """Take the next frame.

        Args:
            frame: labels are not read.
            preds: uint8 [H', W'] class indices; of another size than the image, the flow is scaled to it.

        Raises:
            ShapeError: if `preds` or the flow has a wrong shape or dtype.
            DataError: if `preds` hold a class that does not exist, or if flow files are missing or damaged.
        """
        check_shape("preds", preds, ("H", "W"), torch.uint8)
        highest = int(preds.max())
        if highest >= self.num_classes:
            raise DataError(f"preds hold class {highest}; expected 0 to {self.num_classes - 1}")
        last, self._last = self._last, (frame, preds)
        if last is None or last[0].index + 1 != frame.index:
            return
        if last[0].image.shape != frame.image.shape or last[1].shape != preds.shape:
            return
        counts = confusion(last[1], self._warp(last[0], frame, preds))
        self.matrix += counts[: self.num_classes, : self.num_classes].to(self.matrix.device)

    def _warp(self, first: Frame, second: Frame, preds: Tensor) -> Tensor:
        """Return the preds of `second` seen from `first`, uint8 [H', W']; UNKNOWN where not known."""
        flow = self._flow_to(first, second, preds.shape).to(preds.device)
        if self.mode == "ours":
            warped = warp_nearest(preds, flow)
            if self._occlusion:
                warped = warped.masked_fill(~self._visible(first, second, flow), UNKNOWN)
            return warped
        if not bool(flow.isfinite().all()):
            raise DataError(f"the flow of frame {first.index} is not finite; mode '{self.mode}' needs it everywhere")
        return warp_etc(preds, flow) if self.mode == "etc_exact" else warp_vspw(preds, flow)

    def _flow_to(self, first: Frame, second: Frame, size: torch.Size) -> Tensor:
        """Return the flow from `first` to `second` at size H', W': float32 [2, H', W']."""
        flow = self._flow(first, second)
        check_shape("flow", flow, (2, *first.image.shape[-2:]), torch.float32)
        height, width = size
        if flow.shape[1:] == size:
            return flow
        scale = flow.new_tensor([width / flow.shape[2], height / flow.shape[1]]).view(2, 1, 1)  # [2, 1, 1]
        return F.interpolate(flow[None], (height, width), mode="bilinear", align_corners=False)[0] * scale

    def _visible(self, first: Frame, second: Frame, flow: Tensor) -> Tensor:
        """Return bool [H', W']: where a point of `first` is seen in `second`."""
        size = (flow.shape[1], flow.shape[2])
        if isinstance(self._flow, SourceFlow):
            visible = self._flow.visible(first).to(flow.device)  # [H, W]
            return F.interpolate(visible[None, None].float(), size, mode="nearest")[0, 0] > 0
        return consistent(flow, self._flow_to(second, first, flow.shape[1:]).to(flow.device))

    def compute(self) -> dict[str, float]:
        """Return TC in [0, 1]; NaN if no pair was seen."""
        counts = self.matrix
        if not int(counts.sum()):
            return {"TC": float("nan")}
        if self.mode == "etc_exact":
            hits = counts.diagonal().double()
            return {"TC": float((hits / (counts.sum(0) + counts.sum(1) - hits + 1e-10)).mean())}
        scores = class_iou(counts)
        if self.mode == "vspw_exact":
            return {"TC": float(scores[counts.sum(1) > 0].mean())}
        return {"TC": float(scores.nanmean())}

    def totals(self) -> list[Tensor]:
        """Return the confusion matrix."""
        return [self.matrix]

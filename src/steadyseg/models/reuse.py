"""Reuse: the deep levels of a key frame stand in for those of the frames after it; a baseline.

"Clockwork Convnets for Video Semantic Segmentation", ECCV Workshops 2016, https://arxiv.org/abs/1608.03609

| paper | here | shape |
| --- | --- | --- |
| stages of the network | backbone stages 1..4 | [B, C_i, h_i, w_i], strides 4, 8, 16, 32 |
| clock of a stage, fixed rate | 1 for stages before `reuse_from`, 1 / `interval` from there | |
| output of a stage whose clock is off | state.deep, all such levels at once | [B, D, h_1, w_1] |
| fusion of the scores | the decoder's fuse convolution, a sum over levels | [B, D, h_1, w_1] |

Differences from the paper:
- The network is a SegFormer instead of an FCN, with the same parameter names: its weights run here as they are, and
  with `interval` 1 the results are its own.
- One cut and two clocks, of rate 1 and 1 / `interval`. A clock driven by the data and the pipelined schedule, which
  shortens the delay but saves no work, are not built.
- `train_reuse` is an addition: the target is trained on the deep levels of an earlier frame, as methods that carry
  features from key frames usually are. Off, training is SegFormer's, frame by frame.

Computed differently, with the same result: each level's share of the fuse convolution is a map of its own, so the sum
of the shares of all deep levels is what is kept, and neither they nor their resizing are computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from steadyseg.backbones.base import STAGES
from steadyseg.decoders import SegFormerDecoder
from steadyseg.layers import classify
from steadyseg.losses import cross_entropy
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter, check_options, check_same
from steadyseg.types import Clip


@dataclass(frozen=True, kw_only=True)
class ReuseConfig(ModelConfig):
    """Options of feature reuse."""

    width: int = 256
    """D, channels of the decoder."""
    dropout: float = 0.1
    """Channel-wise dropout before the classifier."""
    interval: int = 4
    """Frames from one key frame to the next."""
    reuse_from: Literal[2, 3, 4] = 3
    """The first stage that runs on key frames only."""
    train_reuse: bool = False
    """Train on pairs of frames: the earlier one as a key frame, the target with its deep levels."""


class ReuseState(NamedTuple):
    """What the next frame needs."""

    deep: Tensor
    """Share of the key frame's deep levels in the fuse convolution, [B, D, h_1, w_1]."""
    age: int
    """Frames since the key frame."""
    size: tuple[int, int, int]
    """Batch, height and width of the frames."""


class Reuse(VideoSegmenter):
    """SegFormer whose deep stages run on key frames only."""

    Config = ReuseConfig
    config: ReuseConfig

    def __init__(self, config: ReuseConfig, num_classes: int) -> None:
        check_options(
            config,
            ("interval", config.interval >= 1, "at least 1"),
            ("reuse_from", config.reuse_from in (2, 3, 4), "2, 3 or 4"),
        )
        cut = STAGES[config.reuse_from - 2]
        super().__init__(config, num_classes, cuts=(cut,))
        self.cut = cut
        self.deep_stages = STAGES[config.reuse_from - 1 :]
        self.decoder = SegFormerDecoder(self.backbone.channels, config.width, num_classes, dropout=config.dropout)

    @classmethod
    def adopt(cls, options: Mapping[str, Any]) -> ReuseConfig:
        """Take all options; see VideoSegmenter.adopt."""
        return ReuseConfig(**options)

    @property
    def offsets(self) -> tuple[int, ...]:
        """(0,), or with `train_reuse` (1 - interval, 0): the greatest age of the deep levels."""
        return (1 - self.config.interval, 0) if self.config.train_reuse and self.config.interval > 1 else (0,)

    @property
    def period(self) -> int:
        """The key interval."""
        return self.config.interval

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return "ce", the cross-entropy of the target frame.

        With `train_reuse` and a clip of two frames or more, the target has the deep levels of the first frame, and
        "key_ce" is the cross-entropy of that frame itself, 0 where it is not labelled.
        """
        labels = clip.labels[:, -1]
        if not self.config.train_reuse or clip.frames.shape[1] == 1:
            logits, _ = self.key(clip.frames[:, -1])
            return {"ce": cross_entropy(logits, labels, self.class_weights)}
        pair = torch.cat((clip.frames[:, 0], clip.frames[:, -1]))  # [2 * B, 3, H, W]
        shallow = self.shallow(pair)
        start = shallow[self.cut].chunk(2)[0]  # [B, C, h, w]
        deep = self.share(self.backbone(start, start=self.cut), shallow)
        key, target = self.classify(shallow, torch.cat((deep, deep))).chunk(2)  # one batch, one set of statistics
        return {
            "ce": cross_entropy(target, labels, self.class_weights),
            "key_ce": cross_entropy(key, clip.labels[:, 0], self.class_weights),
        }

    def shallow(self, frame: Tensor) -> dict[str, Tensor]:
        """frame uint8 [B, 3, H, W] -> the stages that run on every frame, [B, C_i, h_i, w_i]."""
        return self.backbone(self.normalize(frame), stop=self.cut)

    def share(self, stages: dict[str, Tensor], shallow: dict[str, Tensor]) -> Tensor:
        """Deep `stages` of a key frame, and `shallow` for the size -> their share, [B, D, h_1, w_1]."""
        size = (shallow["stage1"].shape[2], shallow["stage1"].shape[3])
        return self.decoder.partial({name: stages[name] for name in self.deep_stages}, size)

    def classify(self, shallow: dict[str, Tensor], deep: Tensor) -> Tensor:
        """Shallow stages and the share of the deep ones -> logits [B, K, h_1, w_1]."""
        fused = self.decoder.dropout(self.decoder.features(shallow, kept=deep))
        return classify(fused, self.decoder.linear_pred.weight[:, :, 0, 0], self.decoder.linear_pred.bias)

    def key(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Key frame uint8 [B, 3, H, W] -> logits [B, K, h_1, w_1], share of its deep levels [B, D, h_1, w_1]."""
        stages = self.backbone(self.normalize(frame))
        shallow = {name: stages[name] for name in STAGES if name not in self.deep_stages}
        deep = self.share(stages, shallow)
        return self.classify(shallow, deep), deep

    def between(self, frame: Tensor, deep: Tensor) -> Tensor:
        """Frame uint8 [B, 3, H, W] and the key frame's share [B, D, h_1, w_1] -> logits [B, K, h_1, w_1]."""
        return self.classify(self.shallow(frame), deep)

    def step(self, frame: Tensor, state: ReuseState | None = None) -> tuple[Tensor, ReuseState]:
        """Segment the next frame; see VideoSegmenter.step. Frames 0, interval, 2 interval, ... are key frames."""
        size = check_same(frame, None if state is None else state.size)
        if state is None or state.age + 1 >= self.config.interval:
            logits, deep = self.compute("key", self.key, frame)
            return logits, ReuseState(deep, 0, size)
        (logits,) = self.compute("between", self.between, frame, state.deep)
        return logits, state._replace(age=state.age + 1)

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        """Return "key" (frame -> logits, deep) and "between" (frame, deep -> logits)."""
        with torch.no_grad():
            _, deep = self.key(frame)
        return {
            "key": Graph(self.key, {"frame": frame}, ("logits", "deep")),
            "between": Graph(lambda *x: (self.between(*x),), {"frame": frame, "deep": deep}, ("logits",)),
        }


METHOD = Reuse

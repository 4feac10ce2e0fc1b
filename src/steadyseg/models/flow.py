"""Flow: what a key frame gave is moved to the frames after it along the optical flow; a baseline.

"Deep Feature Flow for Video Recognition" (DFF), CVPR 2017, https://arxiv.org/abs/1611.07715

| paper | here | shape |
| --- | --- | --- |
| I_k, I_i (key frame, current frame) | state.image, frame | uint8 [B, 3, H, W] |
| N_feat, N_task | all but the classifier, the classifier; or, `warp` "features": backbone, decoder | |
| f_k | state.maps | see FlowState |
| F, M_{i->k} (flow function, displacement) | `displacement`, `motion` | [B, 2, H', W'], `flow_scale` times H x W |
| W (warp) | `warp` | [B, C, h, w] |
| S_{i->k} (scale) | 1 | |
| l (key frame duration) | interval | 4 |

Differences from the paper:
- The network is a SegFormer instead of a DeepLab, with the same parameter names: its weights run here as they are, and
  with `interval` 1 the results are its own.
- The flow comes from a ready estimator, DIS or RAFT, instead of a FlowNet trained along with the rest. So nothing but
  SegFormer is trained, frame by frame, and the scale S, which only training can give, is 1. DIS flow is what "Semantic
  Video CNNs through Representation Warping" (NetWarp, ICCV 2017) moves features by; that network however runs on every
  frame, and combines.
- Where the flow leads out of the key frame its border is read; the sampler of the authors' code reads zeros.
- The key interval is 4, as in the other baseline with key frames; the paper has 5 on Cityscapes, at 17 frames a second.

Computed differently, with the same result: where N_task is the classifier, the scores are moved instead of the fused
map before it. The classifier maps each pixel alone and linearly, and a bilinear read is a weighted mean, so the order
does not matter, and K channels are fewer than D.

The paper leaves open where the cells of a coarse map lie: here at half-pixel centres, where the decoder's resizes put
them; a level's displacement is the flow read there, in units of its cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.backbones.base import STAGES
from steadyseg.decoders import SegFormerDecoder
from steadyseg.flow import displacement, shared_flow
from steadyseg.layers import warp
from steadyseg.losses import cross_entropy
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter, check_options, check_same
from steadyseg.types import Clip


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ModelConfig):
    """Options of flow propagation."""

    width: int = 256
    """Channels of the decoder."""
    dropout: float = 0.1
    """Channel-wise dropout before the classifier."""
    interval: int = 4
    """Frames from one key frame to the next."""
    flow: Literal["dis", "raft"] = "dis"
    """Estimator of the optical flow; RAFT needs torchvision and its weights."""
    flow_scale: float = 0.5
    """Size at which the flow is estimated, as a share of the frame's, above 0 and at most 1."""
    warp: Literal["logits", "features"] = "logits"
    """What is moved: the scores, or the backbone's four stages, on which the decoder then runs."""


class FlowState(NamedTuple):
    """What the next frame needs."""

    maps: tuple[Tensor, ...]
    """Of the key frame: its logits [B, K, h_1, w_1], or its stages 1..4, each [B, C_i, h_i, w_i]."""
    image: Tensor
    """The key frame, uint8 [B, 3, H, W]."""
    age: int
    """Frames since the key frame."""
    size: tuple[int, int, int]
    """Batch, height and width of the frames."""


class FlowPropagation(VideoSegmenter):
    """SegFormer on key frames; between them, its maps of the key frame moved along the flow."""

    Config = FlowConfig
    config: FlowConfig

    def __init__(self, config: FlowConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        check_options(
            config,
            ("interval", config.interval >= 1, "at least 1"),
            ("flow_scale", 0 < config.flow_scale <= 1, "above 0 and at most 1"),
            ("flow", config.flow in ("dis", "raft"), "dis or raft"),
            ("warp", config.warp in ("features", "logits"), "features or logits"),
        )
        shared_flow(config.flow)  # what it needs and lacks is said now, not in the middle of a video
        self.decoder = SegFormerDecoder(self.backbone.channels, config.width, num_classes, dropout=config.dropout)

    @classmethod
    def adopt(cls, options: Mapping[str, Any]) -> FlowConfig:
        """Take all options; see VideoSegmenter.adopt."""
        return FlowConfig(**options)

    @property
    def period(self) -> int:
        """The key interval."""
        return self.config.interval

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return "ce": the cross-entropy of the target frame alone, as SegFormer's."""
        logits = self.decoder(self.backbone(self.normalize(clip.frames[:, -1])))
        return {"ce": cross_entropy(logits, clip.labels[:, -1], self.class_weights)}

    def key(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Key frame uint8 [B, 3, H, W] -> logits [B, K, h_1, w_1] and, where features are moved, its four stages."""
        stages = self.backbone(self.normalize(frame))
        logits = self.decoder(stages)
        return (logits, *(stages[name] for name in STAGES)) if self.config.warp == "features" else (logits,)

    def flow_size(self, frame: Tensor) -> tuple[int, int]:
        """frame [B, 3, H, W] -> (H', W')."""
        height, width = (round(side * self.config.flow_scale) for side in frame.shape[2:])
        return max(height, 1), max(width, 1)

    def motion(self, frame: Tensor, image: Tensor) -> Tensor:
        """Estimate where every point of a frame was in the key frame, at the flow's own size.

        Args:
            frame: uint8 [B, 3, H, W].
            image: the key frame, uint8 [B, 3, H, W].

        Returns:
            M_{i->k}, float32 [B, 2, H', W'], the displacement (dx, dy) in pixels of H' x W'.
        """
        size = self.flow_size(frame)
        return displacement(self.config.flow, _shrink(frame, size), _shrink(image, size))

    def between(self, *tensors: Tensor) -> Tensor:
        """Maps of the key frame, as in the state, and last the motion [B, 2, H', W'] -> logits [B, K, h_1, w_1]."""
        *maps, flow = tensors
        moved = [warp(x, flow) for x in maps]
        return self.decoder(dict(zip(STAGES, moved, strict=True))) if self.config.warp == "features" else moved[0]

    def step(self, frame: Tensor, state: FlowState | None = None) -> tuple[Tensor, FlowState]:
        """Segment the next frame; see VideoSegmenter.step. Frames 0, interval, 2 interval, ... are key frames."""
        size = check_same(frame, None if state is None else state.size)
        if state is None or state.age + 1 >= self.config.interval:
            logits, *stages = self.compute("key", self.key, frame)
            return logits, FlowState(tuple(stages) or (logits,), frame.clone(), 0, size)  # a caller may reuse its frame
        motion = self.motion(frame, state.image)  # an estimator is no graph
        (logits,) = self.compute("between", self.between, *state.maps, motion)
        return logits, state._replace(age=state.age + 1)

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        """Return "key" (frame -> logits, and the stages where these are moved) and "between" (maps, flow -> moved).

        The maps are the logits or the stages of a key frame; the flow is an input, as an estimator is no graph. What is
        moved are logits too; a graph cannot have one name twice.
        """
        with torch.no_grad():
            outputs = self.key(frame)
        names = ("logits", *STAGES)[: len(outputs)]
        maps = dict(zip(names, outputs, strict=True))
        if self.config.warp == "features":
            del maps["logits"]
        flow = torch.ones(frame.shape[0], 2, *self.flow_size(frame), device=frame.device)  # [B, 2, H', W']
        return {
            "key": Graph(self.key, {"frame": frame}, names),
            "between": Graph(lambda *x: (self.between(*x),), {**maps, "flow": flow}, ("moved",)),
        }


def _shrink(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, H', W'], each pixel the mean of what it covers."""
    if frame.shape[2:] == size:
        return frame
    return F.interpolate(frame.float(), size=size, mode="area").round().to(torch.uint8)


METHOD = FlowPropagation

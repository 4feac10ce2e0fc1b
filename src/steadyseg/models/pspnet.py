"""PSPNet: a per-frame baseline on dilated convolutional networks.

"Pyramid Scene Parsing Network", CVPR 2017, https://arxiv.org/abs/1612.01105

| paper | here | shape |
| --- | --- | --- |
| feature map of the CNN, Fig. 3 (b) | inside the backbone, before its pyramid pooling | stride 8 |
| pyramid pooling module, bins 1, 2, 3, 6, Fig. 3 (c) | the last part of backbones whose name ends in ppm | |
| its concatenated output | stages["stage4"] | [B, C_4, h, w] |
| final prediction, Fig. 3 (d) | `head` | [B, K, h, w] |
| auxiliary loss after the fourth stage (res4b22), Fig. 4 | `auxiliary` on stages["stage3"] | [B, K, h, w] |
| alpha, Sec. 3.3 | aux_weight | 0.4 |

Differences from the paper and from the authors' code (hszhao/semseg):
- Scores are resized with half-pixel centres, so frames of any size fit; their code aligns the corners, and takes sides
  of 8 n + 1 pixels.
- A frame is segmented once, whole; theirs averages crops, scales and mirror images.
- The default backbone is ResNet-18, which they do not have. `width` is a quarter of what the last residual stage has:
  128, where ResNet-50 and 101 have the published 512. Weights of their PSPNet load by `from_semseg`.
- Any backbone will do; on one without pyramid pooling, what remains is an FCN head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from steadyseg.backbones.resnet import with_counters
from steadyseg.losses import cross_entropy
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter, check_options
from steadyseg.types import CheckpointError, Clip

AUX_WIDTH = 256
"""Channels of the auxiliary head."""


@dataclass(frozen=True, kw_only=True)
class PSPNetConfig(ModelConfig):
    """Options of PSPNet."""

    backbone: str = "resnet18_ppm"
    """Backbone by name; with pyramid pooling where the name ends in ppm."""
    width: int = 128
    """Channels of the head; 512 in the published ResNet-50 and 101 models."""
    dropout: float = 0.1
    """Channel-wise dropout before the classifiers."""
    aux_weight: float = 0.4
    """alpha, weight of the auxiliary cross-entropy; 0 leaves its head out."""


class PSPNetState(NamedTuple):
    """Nothing: each frame stands alone."""


class PSPNet(VideoSegmenter):
    """A backbone with pyramid pooling and a convolutional head; every frame alone."""

    Config = PSPNetConfig
    config: PSPNetConfig

    def __init__(self, config: PSPNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        check_options(
            config,
            ("width", config.width >= 1, "at least 1"),
            ("aux_weight", config.aux_weight >= 0, "at least 0"),
        )
        channels = self.backbone.channels
        self.head = build_head(channels[3], config.width, num_classes, dropout=config.dropout)
        if config.aux_weight:
            self.auxiliary = build_head(channels[2], AUX_WIDTH, num_classes, dropout=config.dropout)

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return "ce", the cross-entropy of the target frame, and "aux_ce", that of the auxiliary head (Sec. 3.3)."""
        stages = self.backbone(self.normalize(clip.frames[:, -1]))
        labels = clip.labels[:, -1]
        terms = {"ce": cross_entropy(self.head(stages["stage4"]), labels, self.class_weights)}
        if self.config.aux_weight:
            logits = self.auxiliary(stages["stage3"])
            terms["aux_ce"] = self.config.aux_weight * cross_entropy(logits, labels, self.class_weights)
        return terms

    def logits(self, frame: Tensor) -> Tensor:
        """frame uint8 [B, 3, H, W] -> logits [B, K, h, w] at the stride of stage 4."""
        return self.head(self.backbone(self.normalize(frame))["stage4"])

    def step(self, frame: Tensor, state: PSPNetState | None = None) -> tuple[Tensor, PSPNetState]:
        """Segment one frame; see VideoSegmenter.step. The state is empty."""
        (logits,) = self.compute("frame", self.logits, frame)
        return logits, PSPNetState()

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        """Return "frame": frame -> logits."""
        return {"frame": Graph(lambda frame: (self.logits(frame),), {"frame": frame}, ("logits",))}


def build_head(channels: int, width: int, num_classes: int, *, dropout: float) -> nn.Sequential:
    """Build 3x3 convolution, norm, ReLU, dropout, classifier: [B, C, h, w] -> logits [B, K, h, w]."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(width, num_classes, 1),
    )


METHOD = PSPNet

# ---- published weights -------------------------------------------------------------------------------------------

_STEM = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
_SEMSEG = {  # the authors' name -> ours; numbers inside the heads are the same
    **{f"layer0.{place}.": f"backbone.{name}." for place, name in _STEM.items()},
    **{f"layer{stage}.": f"backbone.layer{stage}." for stage in (1, 2, 3, 4)},
    "ppm.features.": "backbone.ppm.features.",
    "cls.": "head.",
    "aux.": "auxiliary.",
}


def from_semseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of the authors' PSPNet to ours: "resnet50s_ppm" or "resnet101s_ppm", width 512.

    Args:
        state: their state dict, with or without the prefix "module.".

    Returns:
        Our keys; those of the auxiliary head only if the file has it. Counters of batches it lacks are 0.

    Raises:
        CheckpointError: listing keys that are not part of a PSPNet.
    """
    renamed, unknown = {}, []
    for key, value in state.items():
        short = key.removeprefix("module.")
        theirs = next((name for name in _SEMSEG if short.startswith(name)), None)
        if theirs is None:
            unknown.append(key)
        else:
            renamed[_SEMSEG[theirs] + short.removeprefix(theirs)] = value
    if unknown:
        raise CheckpointError(f"not keys of a PSPNet: {', '.join(sorted(unknown))}")
    return with_counters(renamed)

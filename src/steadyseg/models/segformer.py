"""SegFormer: a per-frame baseline.

"SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021,
https://arxiv.org/abs/2105.15203

| paper | here | shape |
| --- | --- | --- |
| F_i | stages["stage i"] | [B, C_i, h_i, w_i], strides 4, 8, 16, 32 |
| C | width | 256 in all video work, 768 in the official B2-B5 image weights |
| N_cls | num_classes | K |

Differences from the paper: none. Differences from the authors' code: the decoder is computed folded (see
SegFormerDecoder); their registered but unused layer ``conv_seg`` is not built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from steadyseg.backbones import mit
from steadyseg.decoders import SegFormerDecoder
from steadyseg.losses import cross_entropy
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter
from steadyseg.types import CheckpointError, Clip


@dataclass(frozen=True, kw_only=True)
class SegFormerConfig(ModelConfig):
    """Options of SegFormer."""

    width: int = 256
    """Channels of the decoder."""
    dropout: float = 0.1
    """Channel-wise dropout before the classifier."""


class SegFormerState(NamedTuple):
    """Nothing: each frame stands alone."""


class SegFormer(VideoSegmenter):
    """MiT backbone and all-MLP decoder; every frame alone."""

    Config = SegFormerConfig
    config: SegFormerConfig

    def __init__(self, config: SegFormerConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.decoder = SegFormerDecoder(self.backbone.channels, config.width, num_classes, dropout=config.dropout)

    @classmethod
    def adopt(cls, options: Mapping[str, Any]) -> SegFormerConfig:
        """Take all options; see VideoSegmenter.adopt."""
        return SegFormerConfig(**options)

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return "ce": the cross-entropy of the target frame."""
        logits = self.logits(clip.frames[:, -1])
        return {"ce": cross_entropy(logits, clip.labels[:, -1], self.class_weights)}

    def logits(self, frame: Tensor) -> Tensor:
        """frame uint8 [B, 3, H, W] -> logits [B, K, h, w] at stride 4."""
        return self.decoder(self.backbone(self.normalize(frame)))

    def step(self, frame: Tensor, state: SegFormerState | None = None) -> tuple[Tensor, SegFormerState]:
        """Segment one frame; see VideoSegmenter.step. The state is empty."""
        (logits,) = self.compute("frame", self.logits, frame)
        return logits, SegFormerState()

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        """Return "frame": frame -> logits."""
        return {"frame": Graph(lambda frame: (self.logits(frame),), {"frame": frame}, ("logits",))}


METHOD = SegFormer

# ---- published weights -------------------------------------------------------------------------------------------

_HEAD = {  # transformers' name -> ours, below decode_head. and decoder.
    **{f"linear_c.{level - 1}.proj.": f"linear_c{level}.proj." for level in (1, 2, 3, 4)},
    "linear_fuse.": "linear_fuse.conv.",
    "batch_norm.": "linear_fuse.bn.",
    "classifier.": "linear_pred.",
}


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' SegformerForSemanticSegmentation to ours.

    Raises:
        CheckpointError: listing keys that are not part of a SegFormer.
    """
    encoder = {k.removeprefix(_ENCODER): v for k, v in state.items() if k.startswith(_ENCODER)}
    head = {k: v for k, v in state.items() if not k.startswith(_ENCODER)}
    renamed = {f"backbone.{key}": value for key, value in mit.from_huggingface(encoder).items()}
    unknown = []
    for key, value in head.items():
        short = key.removeprefix("decode_head.")
        theirs = next((name for name in _HEAD if short.startswith(name)), None)
        if theirs is None or short == key:
            unknown.append(key)
        else:
            renamed[f"decoder.{_HEAD[theirs]}{short.removeprefix(theirs)}"] = value
    if unknown:
        raise CheckpointError(f"not keys of a SegFormer: {', '.join(sorted(unknown))}")
    return renamed


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our weights to transformers', the inverse of `from_huggingface`."""
    encoder = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    renamed = {_ENCODER + key: value for key, value in mit.to_huggingface(encoder).items()}
    for key, value in state.items():
        if key.startswith("decoder."):
            short = key.removeprefix("decoder.")
            theirs, ours = next(pair for pair in _HEAD.items() if short.startswith(pair[1]))
            renamed[f"decode_head.{theirs}{short.removeprefix(ours)}"] = value
    return renamed


def from_nvlabs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the weights of the authors' segmentation files; the unused layer ``conv_seg`` is dropped by name."""
    renamed = {}
    for key, value in state.items():
        if not key.startswith("decode_head.conv_seg."):
            renamed[key.replace("decode_head.", "decoder.", 1)] = value
    return renamed


_ENCODER = "segformer.encoder."

"""What methods are compared with."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.backbones.mit import VARIANTS
from steadyseg.benchmark.setting import Round, Setting, autocast
from steadyseg.engine.stream import to_labels
from steadyseg.models.base import MEAN, STD, VideoSegmenter
from steadyseg.types import ConfigError


def forgetful(model: VideoSegmenter, setting: Setting) -> Callable[[Round], Round]:
    """Return the model as a function of frames that computes the whole clips each time."""
    past: deque[Tensor] = deque(maxlen=1 - model.offsets[0])

    @torch.inference_mode()
    def run(frames: Round) -> Round:
        past.append(torch.stack(frames))  # [B, 3, H, W]
        window = [past[max(len(past) - 1 + offset, 0)] for offset in model.offsets]
        with autocast(setting):
            return list(to_labels(model.clip_logits(torch.stack(window, dim=1)), setting.size))  # from [B, T, 3, H, W]

    return run


def transformers_segformer(
    setting: Setting, frame: Tensor
) -> tuple[Callable[[Round], Round], tempfile.TemporaryDirectory]:
    """Return transformers' SegFormer as a function of frames, and a folder with its weights.

    Args:
        setting: backbone, size, classes, device and precision.
        frame: uint8 [3, H, W], by which the classifier is set.

    Raises:
        ConfigError: if the package is missing, or has no such backbone.
    """
    check_transformers(setting.backbone)
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    channels, depths = VARIANTS[setting.backbone]
    sizes: dict[str, Any] = {"hidden_sizes": list(channels), "depths": list(depths), "decoder_hidden_size": 256}
    config = SegformerConfig(**sizes, id2label={index: f"class {index}" for index in range(setting.classes)})
    model = SegformerForSemanticSegmentation(config).eval().to(setting.device)
    mean = torch.tensor(MEAN, device=setting.device)[:, None, None]
    std = torch.tensor(STD, device=setting.device)[:, None, None]

    def logits(frames: Tensor) -> Tensor:
        return model((frames - mean) / std).logits

    @torch.inference_mode()
    def run(frames: Round) -> Round:
        with autocast(setting):
            full = F.interpolate(logits(torch.stack(frames)), size=setting.size, mode="bilinear", align_corners=False)
            return list(full.argmax(1).to(torch.uint8))

    with torch.no_grad():
        model.decode_head.classifier.bias -= logits(frame[None]).mean((0, 2, 3))  # labels vary over the image
    folder = tempfile.TemporaryDirectory()
    model.save_pretrained(folder.name)
    return run, folder


def check_transformers(backbone: str) -> None:
    """Raise ConfigError unless transformers is there, and has a SegFormer on this backbone."""
    if find_spec("transformers") is None:
        raise ConfigError("--against transformers needs that package: pip install 'steadyseg[hf]'")
    if backbone not in VARIANTS:
        raise ConfigError(f"transformers has no SegFormer on '{backbone}'; take one of {', '.join(VARIANTS)}")

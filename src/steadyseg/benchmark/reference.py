"""What methods are compared with."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg import allocator
from steadyseg.backbones.mit import VARIANTS
from steadyseg.benchmark.clock import clocked
from steadyseg.benchmark.process import Process
from steadyseg.benchmark.setting import Round, Setting, autocast, ended, prepare
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


class TransformersProcess:
    """transformers' SegFormer in a process of its own, frame by frame on demand, set up as a plain Python program is.

    Nothing is set there that the command line sets for a whole process (see steadyseg.allocator), as nothing would be
    where people run it. Where the environment says what to do with freed memory, that holds for both.

    Args:
        setting: backbone, size, classes, device, threads and seed.
        frame: uint8 [3, H, W], by which the classifier is set.
        folder: where its weights are saved, when the with-block begins.

    Raises:
        ConfigError: if the package is missing, or has no such backbone.
        EndedError: if the process ends in the with-block.
    """

    def __init__(self, setting: Setting, frame: Tensor, folder: Path) -> None:
        check_transformers(setting.backbone)
        self._inputs = (setting, frame.cpu().numpy(), folder)

    def __enter__(self) -> Self:
        self._process = Process(ended("the process of transformers' SegFormer", self._inputs[0]))
        try:
            self._process(_begin, *self._inputs)
        except BaseException as error:
            self._process.__exit__(type(error))
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.__exit__(*error)

    def __call__(self, frames: Round) -> tuple[float, Round]:
        """frames uint8 [3, H, W] -> the seconds that it took there, and labels uint8 [H, W]."""
        spent, labels = self._process(_answer, torch.stack(frames).cpu().numpy())
        return spent, list(torch.from_numpy(labels))


_there: Callable[[np.ndarray], tuple[float, np.ndarray]]
"""In the process of transformers' SegFormer: frames [B, 3, H, W] -> seconds, labels [B, H, W]."""


def _begin(setting: Setting, frame: np.ndarray, folder: Path) -> None:
    """Build the model in its own process, before that has touched a large tensor."""
    global _there  # noqa: PLW0603 (what the process keeps between calls)
    if not allocator.is_set_outside():
        os.environ.pop(allocator.HUGE_PAGES, None)  # set by the process that started this one
    prepare(setting)
    run = transformers_segformer(setting, torch.from_numpy(frame).to(setting.device), folder)

    def there(frames: np.ndarray) -> tuple[float, np.ndarray]:
        images = list(torch.from_numpy(frames).to(setting.device))
        spent, labels = clocked(run, images, is_cuda=setting.device == "cuda")
        return spent, torch.stack(labels).cpu().numpy()

    _there = there


def _answer(frames: np.ndarray) -> tuple[float, np.ndarray]:
    return _there(frames)


def transformers_segformer(setting: Setting, frame: Tensor, folder: Path) -> Callable[[Round], Round]:
    """Return transformers' SegFormer as a function of frames, with random weights that are saved to a folder.

    It computes in fp32, as it loads, whatever the precision of what is compared with it.

    Args:
        setting: backbone, size, classes and device.
        frame: uint8 [3, H, W], by which the classifier is set.
        folder: where to.
    """
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
        full = F.interpolate(logits(torch.stack(frames)), size=setting.size, mode="bilinear", align_corners=False)
        return list(full.argmax(1).to(torch.uint8))

    with torch.no_grad():
        model.decode_head.classifier.bias -= logits(frame[None]).mean((0, 2, 3))  # labels vary over the image
    model.save_pretrained(folder)
    return run


def check_transformers(backbone: str) -> None:
    """Raise ConfigError unless transformers is there, and has a SegFormer on this backbone."""
    if find_spec("transformers") is None:
        raise ConfigError("--against transformers needs that package: pip install 'steadyseg[hf]'")
    if backbone not in VARIANTS:
        raise ConfigError(f"transformers has no SegFormer on '{backbone}'; take one of {', '.join(VARIANTS)}")

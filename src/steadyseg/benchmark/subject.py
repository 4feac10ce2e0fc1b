"""What is measured: a method with random weights, and the frames that it runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from steadyseg import backends
from steadyseg.benchmark.setting import Round, Setting, autocast, rounds
from steadyseg.config import options_from_dict
from steadyseg.costs import check_periodic
from steadyseg.engine.stream import Stream
from steadyseg.engine.streams import Streams
from steadyseg.models import method
from steadyseg.models.base import VideoSegmenter
from steadyseg.quantisation import attach_int8, check_int8


def check(name: str, setting: Setting) -> None:
    """Find what is wrong with a setting before anything is measured.

    Args:
        name: a method.
        setting: what will be measured.

    Raises:
        ConfigError: for an unknown method or backbone, options that do not fit, an adaptive schedule, or a backend that
            is not there or lacks the device or the precision.
    """
    if setting.precision == "int8":
        check_int8(setting.backend, setting.device)
    else:
        backends.check(setting.backend, setting.device, setting.precision)
    options = options_from_dict(name, {"backbone": setting.backbone, **setting.options})
    with torch.device("meta"):  # no weights
        check_periodic(method(name)(options, setting.classes))


def street(setting: Setting, count: int = 8) -> list[Tensor]:
    """Return frames of a street video, each uint8 [3, H, W]."""
    from steadyseg.data.streets import StreetsSource

    source = StreetsSource(split="val", size=setting.size, length=count, videos=11)
    return [frame.image.to(setting.device) for frame in source.read(source.names[10])]  # by day, with traffic


def build(name: str, setting: Setting, frame: Tensor) -> VideoSegmenter:
    """Build a method with random weights whose labels vary over the image, as those of trained weights do.

    Args:
        name: a method.
        setting: backbone, classes, device and options.
        frame: uint8 [3, H, W], by which the classifier is set.
    """
    kind = method(name)
    options = options_from_dict(name, {"backbone": setting.backbone, **setting.options})
    model = kind(options, setting.classes).to(setting.device).eval()
    check_periodic(model)
    with torch.no_grad():
        logits, _ = model.step(frame[None])
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.out_channels == layer.groups * setting.classes:
                if layer.bias is None:
                    layer.weight -= layer.weight.mean(1, keepdim=True)  # features after a ReLU are never negative
                else:
                    layer.bias -= logits.mean((0, 2, 3)).repeat(layer.groups)  # maybe of several variates
    return model.train().eval()  # merged weights are computed anew


def attach(model: VideoSegmenter, setting: Setting, frames: Sequence[Tensor]) -> VideoSegmenter:
    """Have the setting's backend run the model, in int8 calibrated on frames, each uint8 [3, H, W]."""
    if setting.precision != "int8":
        return backends.attach(model, setting.backend, precision=setting.precision)
    enough = rounds(frames, setting, max(len(frames), 2 * model.period + 1))
    return attach_int8(model, setting.backend, [torch.stack(images) for images in enough])


def attach_for_video(model: VideoSegmenter, setting: Setting, video: str | Path) -> VideoSegmenter:
    """Have the setting's backend run the model for one stream, in int8 calibrated on the first frames of a video."""
    from steadyseg.video import read  # needed by measurements on videos only

    frames = [frame.image for frame in islice(read(video), 8)] if setting.precision == "int8" else []
    return attach(model, replace(setting, streams=1), frames)


def follow(model: VideoSegmenter, setting: Setting) -> Callable[[Round], Round]:
    """Return what users run, from one frame of every stream to their labels: a Stream, or Streams."""
    single, several = Stream(model), Streams(model)

    def run(frames: Round) -> Round:
        with autocast(setting):
            if len(frames) == 1:
                return [single(frames[0])]
            labels = several(dict(enumerate(frames)))
            return [labels[number] for number in range(len(frames))]

    return run

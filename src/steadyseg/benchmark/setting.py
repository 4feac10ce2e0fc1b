"""What is measured, and how: the setting, the frames, and the model with random weights that runs on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steadyseg import backends
from steadyseg.config import options_from_dict
from steadyseg.costs import check_periodic, pingpong
from steadyseg.data.streets import StreetsSource
from steadyseg.engine.stream import Stream
from steadyseg.engine.streams import Streams
from steadyseg.models import method
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
Against = Literal["transformers", "clip"]
"""The transformers library's SegFormer of the same backbone, or the method itself with nothing remembered."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Round = list[Tensor]
"""One frame of every stream, each uint8 [3, H, W]; or their labels, each uint8 [H, W]."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured, and how."""

    backbone: str = "mit_b0"
    """Backbone by name."""
    size: tuple[int, int] = (480, 853)
    """Height and width of a frame."""
    classes: int = 124
    """K."""
    precision: Precision = "fp32"
    """bf16 and fp16 run under autocast."""
    device: str = "cpu"
    """cpu or cuda."""
    backend: backends.Name = "torch"
    """What runs the method, see steadyseg.backends; what it is compared with always runs in torch."""
    streams: int = 1
    """Videos at a time, as one batch."""
    frames: int = 200
    """Timed frames of every stream; whole key intervals are timed, so there may be a few more."""
    warmup: int = 20
    """Frames before the first timed one."""
    threads: int | None = None
    """CPU threads; None leaves the choice to torch."""
    seed: int = 0
    """Of the random weights."""
    against: Against = "transformers"
    """What `compare` compares with."""
    parts: bool = False
    """Whether `measure` also times the parts of a frame, on as many frames again."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the method's default options, as in a config's model section."""

    def __post_init__(self) -> None:
        for name, least in (("streams", 1), ("frames", 1), ("warmup", 0)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}; expected at least {least}")


def check(name: str, setting: Setting) -> None:
    """Find what is wrong with a setting before anything is measured.

    Args:
        name: a method.
        setting: what will be measured.

    Raises:
        ConfigError: for an unknown method or backbone, options that do not fit, an adaptive schedule, or a backend that
            is not there or lacks the device or the precision.
    """
    backends.check(setting.backend, setting.device, setting.precision)
    options = options_from_dict(name, {"backbone": setting.backbone, **setting.options})
    with torch.device("meta"):  # no weights
        check_periodic(method(name)(options, setting.classes))


def prepare(setting: Setting) -> None:
    """Set threads and seed of this process.

    Raises:
        ConfigError: if there is no such device.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda; this machine has none that torch can use: take --device cpu")
    if setting.threads:
        torch.set_num_threads(setting.threads)
    torch.manual_seed(setting.seed)


def street(setting: Setting, count: int = 8) -> list[Tensor]:
    """Return frames of a street video, each uint8 [3, H, W]."""
    source = StreetsSource(split="val", size=setting.size, length=count, videos=11)
    return [frame.image.to(setting.device) for frame in source.read(source.names[10])]  # by day, with traffic


def rounds(frames: Sequence[Tensor], setting: Setting, count: int) -> Iterator[Round]:
    """Yield `count` rounds of `frames` forwards and backwards; each stream is one frame behind the one before it."""
    ahead = list(pingpong(frames, 2 * len(frames) - 2 or 1))
    for index in range(count):
        yield [ahead[(index - stream) % len(ahead)] for stream in range(setting.streams)]


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


def attach(model: VideoSegmenter, setting: Setting) -> VideoSegmenter:
    """Have the setting's backend run the model."""
    return backends.attach(model, setting.backend, precision=setting.precision)


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


def whole_intervals(model: VideoSegmenter, setting: Setting) -> int:
    """Return how many rounds are timed, so that key frames and those between are in their true shares."""
    return -(-setting.frames // model.period) * model.period


def autocast(setting: Setting) -> AbstractContextManager[Any]:
    """Return the precision as a context."""
    if setting.precision == "fp32":
        return nullcontext()
    return torch.autocast(setting.device, DTYPES[setting.precision])

"""How a measurement is made: size, precision, backend and all else, and what that means for this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from steadyseg import backends
from steadyseg.costs import pingpong
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Against = Literal["transformers", "clip"]
"""The transformers library's SegFormer of the same backbone, or the method itself with nothing remembered."""
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
    """bf16 and fp16 run under autocast; int8 takes openvino or onnxruntime, calibrated on the frames that are timed."""
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


def about(name: str, setting: Setting) -> dict[str, Any]:
    """Return what sets one measurement of a command apart from its others."""
    return {
        "method": name,
        "backbone": setting.backbone,
        "size": list(setting.size),
        "backend": setting.backend,
        "precision": setting.precision,
        "streams": setting.streams,
    }


def ended(what: str, setting: Setting) -> str:
    """Return the message where a process ends without a result."""
    size = "x".join(str(side) for side in setting.size)
    return (
        f"{what} ended without a result, as when memory runs out; frames are {size}, {setting.streams} at a time: "
        "take smaller or fewer ones"
    )


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


def rounds(frames: Sequence[Tensor], setting: Setting, count: int) -> Iterator[Round]:
    """Yield `count` rounds of `frames` forwards and backwards; each stream is one frame behind the one before it."""
    ahead = list(pingpong(frames, 2 * len(frames) - 2 or 1))
    for index in range(count):
        yield [ahead[(index - stream) % len(ahead)] for stream in range(setting.streams)]


def whole_intervals(model: VideoSegmenter, setting: Setting) -> int:
    """Return how many rounds are timed, so that key frames and those between are in their true shares."""
    return -(-setting.frames // model.period) * model.period


def autocast(setting: Setting) -> AbstractContextManager[Any]:
    """Return the precision as a context."""
    return backends.autocast(setting.device, setting.precision)

"""A real but tiny method on made-up clips, for fast tests of the engine; `run` trains it in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steadyseg import models
from steadyseg.backbones.base import Backbone
from steadyseg.config import EvalConfig, Experiment, TrainConfig
from steadyseg.data.clips import DataConfig
from steadyseg.data.source import VideoSource
from steadyseg.engine import train as training
from steadyseg.losses import cross_entropy
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter
from steadyseg.types import Clip, Frame

SIZE = 8
"""Height and width of all frames."""


class TinyBackbone(Backbone):
    channels = (4, 4, 4, 4)
    minimum = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)

    def units(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        yield "stage1", lambda x: self.norm(self.conv(x))
        for stage in (2, 3, 4):
            yield f"stage{stage}", torch.relu


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    dropout: float = 0.5
    nan_from: int = 10**9
    """Clips from this sample number on give a term that is not a number."""


class Tiny(VideoSegmenter):
    Config: ClassVar[type[ModelConfig]] = Config

    def __init__(self, config: Config, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.nan_from = config.nan_from
        self.backbone = TinyBackbone()
        self.dropout = nn.Dropout2d(config.dropout)
        self.head = nn.Conv2d(4, num_classes, 1)

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        logits = self.logits(clip.frames[:, -1])
        bad = bool((clip.index >= self.nan_from).any())
        extra = logits.square().mean() * 1e-3
        return {
            "ce": cross_entropy(logits, clip.labels[:, -1], self.class_weights),
            "extra": extra * float("nan") if bad else extra,
        }

    def logits(self, frame: Tensor) -> Tensor:
        return self.head(self.dropout(self.backbone(self.normalize(frame))["stage4"]))

    def step(self, frame: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.logits(frame), None

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        return {"frame": Graph(lambda frame: (self.logits(frame),), {"frame": frame}, ("logits",))}


METHOD = Tiny


class TinySource(VideoSource):
    """Frames whose colour shows their class; the label of frame t is class t % 3 on the left and 0 on the right."""

    classes = ("road", "car", "tree")
    palette = ((128, 64, 128), (64, 0, 128), (128, 128, 0))

    def __init__(self, videos: int = 2, frames: int = 5) -> None:
        self.names = tuple(f"video{number}" for number in range(videos))
        self.frames = frames

    def length(self, name: str) -> int:
        return self.frames

    def labelled(self, name: str) -> tuple[int, ...]:
        return tuple(range(self.frames))

    def read(self, name: str, frames: Any = None) -> Iterator[Frame]:
        for number in range(self.frames) if frames is None else frames:
            image, labels = picture(number)
            yield Frame(image, number, number / 25, labels)


def picture(number: int) -> tuple[Tensor, Tensor]:
    """Return uint8 [3, H, W] and its labels uint8 [H, W]."""
    labels = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    labels[:, : SIZE // 2] = number % 3
    image = torch.stack([(labels == c) * 200 for c in range(3)]).to(torch.uint8)  # [3, H, W]
    return image, labels


class TinyClips(torch.utils.data.Dataset):
    """Eight clips without end; `hook(i)` runs when sample i is drawn."""

    def __init__(self, hook: Callable[[int], None] = lambda i: None) -> None:
        self.hook = hook
        self.sources = (TinySource(),)

    def __getitem__(self, i: int) -> Clip:
        self.hook(i)
        image, labels = picture(i % 8)
        noise = torch.randint(0, 40, image.shape, generator=torch.Generator().manual_seed(i % 8), dtype=torch.uint8)
        return Clip((image + noise)[None], labels[None], torch.tensor([i]))


def install(set_attribute: Callable[[object, str, Any], None] = setattr, dataset: Any = None) -> None:
    """Make "tiny" a method, and the made-up clips the training data."""
    known, names = models.method, models.names
    set_attribute(models, "names", lambda: [*names(), "tiny"])
    set_attribute(models, "method", lambda name: Tiny if name == "tiny" else known(name))
    set_attribute(training, "open_source", lambda config: TinySource())
    set_attribute(training, "training_clips", lambda config, offsets, seed, dense: dataset or TinyClips())


def experiment(model: Config | None = None, **train: Any) -> Experiment:
    """Return a short experiment with the tiny method."""
    options: dict[str, Any] = {"iterations": 8, "batch_size": 2, "lr": 0.01, "warmup": 2, "workers": 0, "log_every": 1}
    options |= {"accelerator": "cpu", "devices": 1} | train
    return Experiment(
        method="tiny",
        model=model or Config(),
        data=DataConfig(),
        train=TrainConfig(**options),
        eval=EvalConfig(),
    )


def run(out: str, iterations: int, *, pause: float = 0.0, dropout: float = 0.5, **train: Any) -> None:
    """Train in this process, waiting `pause` seconds a clip; for tests that kill it or need several."""
    torch.set_num_threads(1)
    install(dataset=TinyClips(lambda i: time.sleep(pause)))
    training.train(experiment(Config(dropout=dropout), iterations=iterations, **train), Path(out))


def command(out: Path, iterations: int, **train: Any) -> list[str]:
    """Return the command that calls `run` in a new process."""
    arguments = ", ".join([repr(str(out)), str(iterations), *(f"{key}={value!r}" for key, value in train.items())])
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import tiny; tiny.run({arguments})"
    return [sys.executable, "-c", code]

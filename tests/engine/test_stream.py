"""The stream remembers, and nothing else does."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.engine.stream import Stream, is_cut, thumbnail, to_labels
from steadyseg.models.base import Graph, ModelConfig, VideoSegmenter
from steadyseg.ops.upsample_argmax import upsample_argmax_reference
from steadyseg.types import Clip, ShapeError


class Age(NamedTuple):
    """How many frames came before."""

    frames: int


class Counter(VideoSegmenter):
    """Labels every pixel with the number of frames that the state has seen."""

    Config = ModelConfig

    def __init__(self) -> None:
        super().__init__(ModelConfig(), 10)
        self.backbone = nn.Conv2d(3, 1, 1)  # type: ignore[assignment]
        self.inference: list[bool] = []

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        return {"nothing": clip.frames.float().mean() * 0}

    def step(self, frame: Tensor, state: Any = None) -> tuple[Tensor, Age]:
        self.inference.append(torch.is_inference_mode_enabled())
        age = 0 if state is None else state.frames
        logits = torch.zeros(1, 10, frame.shape[2] // 4 + 1, frame.shape[3] // 4 + 1)
        logits[:, age] = 1
        return logits, Age(age + 1)

    def graphs(self, frame: Tensor) -> dict[str, Graph]:
        return {}


def scene(seed: int, height: int = 90, width: int = 200, tint: tuple[float, float, float] = (1, 1, 1)) -> Tensor:
    """A smooth random picture uint8 [3, H, W]."""
    coarse = torch.rand(1, 3, 6, 12, generator=torch.Generator().manual_seed(seed)) * 255
    picture = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255)[0]
    return (picture * torch.tensor(tint)[:, None, None]).to(torch.uint8)


DAY = scene(1, tint=(1.0, 0.9, 0.8))
NIGHT = scene(2, tint=(0.3, 0.4, 0.6))


def ages(stream: Stream, frames: list[Tensor]) -> list[int]:
    labels = [stream(frame).unique().tolist() for frame in frames]
    assert all(len(values) == 1 for values in labels)
    return [values[0] for values in labels]


def test_to_labels_is_the_plain_result() -> None:
    logits = torch.randn(2, 5, 9, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_labels(logits, (70, 90)), upsample_argmax_reference(logits, (70, 90)))


def test_labels_have_the_size_and_type_of_the_contract() -> None:
    labels = Stream(Counter())(torch.zeros(3, 37, 53, dtype=torch.uint8))
    assert labels.shape == (37, 53)
    assert labels.dtype == torch.uint8


def test_it_remembers_until_reset() -> None:
    stream = Stream(Counter())
    assert ages(stream, [DAY, DAY, NIGHT]) == [0, 1, 2]
    stream.reset()
    assert ages(stream, [DAY, DAY]) == [0, 1]


def test_two_streams_share_a_model_and_no_memory() -> None:
    model = Counter()
    one, other = Stream(model), Stream(model)
    assert [*ages(one, [DAY]), *ages(other, [DAY]), *ages(one, [DAY]), *ages(one, [DAY]), *ages(other, [DAY])] == [
        0,
        0,
        1,
        2,
        1,
    ]


def test_evaluation_and_inference_mode() -> None:
    model = Counter().train()
    stream = Stream(model)
    assert not model.training
    stream(DAY)
    assert model.inference == [True]


def test_another_size_is_refused_and_forgotten() -> None:
    stream = Stream(Counter())
    stream(DAY)
    with pytest.raises(ShapeError, match=r"60x80.*90x200.*reset\(\)"):
        stream(torch.zeros(3, 60, 80, dtype=torch.uint8))
    assert ages(stream, [DAY]) == [1]
    stream.reset()
    assert ages(stream, [torch.zeros(3, 60, 80, dtype=torch.uint8)]) == [0]


@pytest.mark.parametrize(
    "frame",
    [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
    ids=["float", "grey", "batch"],
)
def test_wrong_frames(frame: Tensor) -> None:
    with pytest.raises(ShapeError):
        Stream(Counter())(frame)


def test_a_cut_resets_only_when_asked() -> None:
    frames = [DAY, DAY, NIGHT, NIGHT, DAY]
    assert ages(Stream(Counter(), reset_on_cut=True), frames) == [0, 1, 0, 1, 0]
    assert ages(Stream(Counter()), frames) == [0, 1, 2, 3, 4]


def test_a_moving_camera_is_no_cut() -> None:
    wide = scene(3, 90, 400)
    frames = [wide[:, :, x : x + 200] for x in range(0, 180, 20)]  # a tenth of the width a frame
    assert ages(Stream(Counter(), reset_on_cut=True), frames) == list(range(9))


def test_slow_light_is_no_cut() -> None:
    frames = [(DAY * gain).to(torch.uint8) for gain in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)]
    assert ages(Stream(Counter(), reset_on_cut=True), frames) == list(range(8))


def test_both_distances_are_needed_for_a_cut() -> None:
    mirrored = DAY.flip(2)  # the same colours elsewhere
    assert (thumbnail(DAY) - thumbnail(mirrored)).abs().mean() > 25
    assert not is_cut(thumbnail(DAY), thumbnail(mirrored))
    assert is_cut(thumbnail(DAY), thumbnail(NIGHT))
    assert not is_cut(thumbnail(DAY), thumbnail((DAY * 0.85).to(torch.uint8)))


def test_tiny_frames_have_a_thumbnail() -> None:
    assert ages(Stream(Counter(), reset_on_cut=True), [torch.zeros(3, 5, 7, dtype=torch.uint8)] * 2) == [0, 1]

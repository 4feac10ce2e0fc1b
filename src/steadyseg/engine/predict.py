"""Prediction: one video in, one overlay video or folder of label images out, with constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

from torch import Tensor

from steadyseg.data.source import VideoSource
from steadyseg.engine.stream import Stream, segment
from steadyseg.models.base import VideoSegmenter
from steadyseg.types import ConfigError, Frame
from steadyseg.video import (
    ContactSheet,
    LabelWriter,
    Overlay,
    VideoInfo,
    Writer,
    image_output,
    probe,
    read,
    write_image,
)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What to write, and how."""

    format: Literal["overlay", "side", "labels"] = "overlay"
    """Colours over the frames, both side by side, or labels as indexed PNG images in a folder."""
    sheet: Path | None = None
    """Also write a picture of some frames, their labels, and where labels flickered."""
    opacity: float = 0.5
    """Of the colours, 0 to 1."""
    legend: bool = True
    """Whether to draw the legend."""
    reset_on_cut: bool = False
    """Forget the past where the scene changes."""
    look_ahead: bool = False
    """Let a method that can read later frames do so, as its paper does; the others are not changed by it."""
    max_frames: int | None = None
    """Stop after this many frames; None takes all."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do at a broken frame; it is named in both cases."""
    overwrite: bool = False
    """Whether an existing output may be replaced."""

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise ConfigError(f"opacity is {self.opacity}; expected 0 to 1")
        if self.look_ahead and self.reset_on_cut:
            raise ConfigError("look_ahead and reset_on_cut are both set; looking ahead crosses cuts: leave one out")
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError(f"max_frames is {self.max_frames}; expected at least 1")


def predict(
    model: VideoSegmenter,
    video: str | Path,
    *,
    out: Path,
    config: PredictConfig | None = None,
    on_frame: Callable[[], None] | None = None,
) -> int:
    """Segment a video; the output appears whole or not at all.

    Args:
        model: in evaluation mode, on the device to use.
        video: a video, an image, a folder of images or a glob.
        out: a video file, or a folder for the format "labels".
        config: what to write, and how.
        on_frame: called after every frame, for progress.

    Returns:
        The number of frames.

    Raises:
        ConfigError: if an output exists, is the input, or cannot be written.
        DataError: if the video cannot be read, a frame of it is broken, or the disk is full.
        ShapeError: if the frames are too small for the model.
    """
    config = config or PredictConfig()
    info = probe(video)
    if config.sheet is not None:  # a wrong name is found before the work
        image_output(config.sheet, source=info.path, overwrite=config.overwrite)
    sheet = ContactSheet(model.classes, model.palette)
    draw = Overlay(
        model.classes, model.palette, opacity=config.opacity, legend=config.legend, beside=config.format == "side"
    )
    writer: Writer | LabelWriter
    if config.format == "labels":
        writer = LabelWriter(out, model.palette, source=info.path, overwrite=config.overwrite)
    else:
        writer = Writer(out, info, overwrite=config.overwrite)
    count = 0
    with writer:
        frames = islice(read(video, on_error=config.on_error), config.max_frames)
        for frame, preds in segment(model, frames) if config.look_ahead else _follow(model, frames, config):
            if isinstance(writer, LabelWriter):
                writer.write(preds, frame.index)
            else:
                writer.write(draw(frame.image, preds), frame.time)
            if config.sheet is not None:
                sheet.add(frame.image, preds, frame.time)
            count += 1
            if on_frame is not None:
                on_frame()
    if config.sheet is not None:
        write_image(config.sheet, sheet.image(), overwrite=config.overwrite)
    return count


def looks_ahead(model: VideoSegmenter) -> bool:
    """Whether a method reads later frames where it may, in a whole video."""
    return type(model).segment is not VideoSegmenter.segment


def _follow(model: VideoSegmenter, frames: Iterable[Frame], config: PredictConfig) -> Iterator[tuple[Frame, Tensor]]:
    stream = Stream(model, reset_on_cut=config.reset_on_cut)
    for frame in frames:
        yield frame, stream(frame.image)


def render(
    source: VideoSource, name: str, *, out: Path, overwrite: bool = False, on_frame: Callable[[], None] | None = None
) -> None:
    """Write the frames of one video of a data set as a video file.

    Args:
        source: the data set.
        name: one of its videos.
        out: the video file.
        overwrite: whether an existing file may be replaced.
        on_frame: called after every frame, for progress.

    Raises:
        ConfigError: if the output exists or cannot be written.
        DataError: if a frame cannot be read, or the disk is full.
    """
    first = next(source.read(name, [0])).image
    rate = Fraction(source.rate).limit_denominator(1000)
    count = source.length(name)
    info = VideoInfo(
        path=Path(name),
        width=first.shape[2],
        height=first.shape[1],
        rate=rate,
        frames=count,
        duration=float(count / rate),
        last=float((count - 1) / rate),
        rotation=0,
        has_audio=False,
        codec="images",
        time_base=1 / rate,
        pixel_aspect=Fraction(1),
    )
    with Writer(out, info, overwrite=overwrite) as writer:
        for frame in source.read(name):
            writer.write(frame.image, frame.time)
            if on_frame is not None:
                on_frame()

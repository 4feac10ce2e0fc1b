"""Prediction: one video in, one overlay video or folder of label images out, with constant memory.

A pipeline: decoding, the model, drawing and encoding run in threads of their own, the model in the caller's.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from steadyseg.data.source import VideoSource
from steadyseg.engine.pipeline import ahead, behind
from steadyseg.engine.stream import Stream, segment
from steadyseg.engine.streams import Streams
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
    save = _saver(model, video, out, config)
    count = 0
    with behind(save) as put, ahead(_read(video, config)) as frames:
        for labelled in segment(model, frames) if config.look_ahead else _follow(model, frames, config):
            put(labelled)
            count += 1
            if on_frame is not None:
                on_frame()
    return count


def predict_together(
    model: VideoSegmenter,
    videos: Mapping[Path, str | Path],
    *,
    streams: int,
    config: PredictConfig | None = None,
    on_frame: Callable[[], None] | None = None,
) -> int:
    """Segment several videos at a time, those of one size as a batch; each output appears whole or not at all.

    A video that ends makes room for the next one. Labels are those of `predict`, up to rounding. The first error ends
    all; outputs that are complete by then stay.

    Args:
        model: in evaluation mode, on the device to use.
        videos: the video of each output.
        streams: how many videos run at a time.
        config: what to write, and how; a sheet shows one video only.
        on_frame: called after every frame, for progress.

    Returns:
        The number of frames of all videos.

    Raises:
        ConfigError: if `streams` is less than 1, a sheet is asked for, or as in `predict`.
        DataError: as in `predict`.
        ShapeError: as in `predict`.
    """
    config = config or PredictConfig()
    if streams < 1:
        raise ConfigError(f"streams is {streams}; expected at least 1")
    if config.sheet is not None:
        raise ConfigError(f"sheet is {config.sheet}, for {streams} videos at a time; a sheet shows one: leave it out")
    waiting = deque((video, _saver(model, video, out, config)) for out, video in videos.items())
    numbers, count = itertools.count(), 0
    together = Streams(model, reset_on_cut=config.reset_on_cut)
    with ExitStack() as all_lanes:
        lanes: dict[int, _Lane] = {}
        due: dict[int, Frame | Labelled] = {}
        while lanes or waiting:
            while waiting and len(lanes) < streams:
                video, save = waiting.popleft()
                lanes[next(numbers)] = _open_lane(all_lanes.enter_context(ExitStack()), model, video, save, config)
            for number in [number for number in lanes if number not in due]:
                item = next(lanes[number].items, None)
                if item is None:
                    lanes.pop(number).stack.close()
                    together.forget(number)
                else:
                    due[number] = item
            for number, labelled in _label(together, due):
                del due[number]
                lanes[number].put(labelled)
                count += 1
                if on_frame is not None:
                    on_frame()
    return count


def looks_ahead(model: VideoSegmenter) -> bool:
    """Whether a method reads later frames where it may, in a whole video."""
    return type(model).segment is not VideoSegmenter.segment


def takes_turns(model: VideoSegmenter, config: PredictConfig) -> bool:
    """Whether several videos at a time go through the model one after the other, as no batch gives the same labels."""
    return not model.is_periodic or (config.look_ahead and looks_ahead(model))


Labelled = tuple[Frame, Tensor]
"""A frame and its preds uint8 [H, W]."""


class _Lane(NamedTuple):
    """A video that is being segmented beside others."""

    stack: ExitStack
    """Of its threads; closing it completes the output."""
    items: Iterator[Frame] | Iterator[Labelled]
    """Its frames; or, for a method that looks ahead, its labelled frames."""
    put: Callable[[Labelled], None]
    """Saves a labelled frame."""


def _open_lane(
    stack: ExitStack,
    model: VideoSegmenter,
    video: str | Path,
    save: Callable[[Iterable[Labelled]], None],
    config: PredictConfig,
) -> _Lane:
    put = stack.enter_context(behind(save))
    frames = stack.enter_context(ahead(_read(video, config)))
    return _Lane(stack, segment(model, frames) if config.look_ahead and looks_ahead(model) else frames, put)


def _label(together: Streams, due: Mapping[int, Frame | Labelled]) -> list[tuple[int, Labelled]]:
    """Label the frames that are due, by the number of their lane; those that must wait are left out."""
    frames = {number: item for number, item in due.items() if isinstance(item, Frame)}
    labels = together({number: frame.image for number, frame in frames.items()})
    ready = [(number, item) for number, item in due.items() if not isinstance(item, Frame)]
    return ready + [(number, (frame, labels[number])) for number, frame in frames.items() if number in labels]


def _read(video: str | Path, config: PredictConfig) -> Iterator[Frame]:
    yield from islice(read(video, on_error=config.on_error), config.max_frames)


def _follow(model: VideoSegmenter, frames: Iterable[Frame], config: PredictConfig) -> Iterator[Labelled]:
    stream = Stream(model, reset_on_cut=config.reset_on_cut)
    for frame in frames:
        yield frame, stream(frame.image)


def _saver(
    model: VideoSegmenter, video: str | Path, out: Path, config: PredictConfig
) -> Callable[[Iterable[Labelled]], None]:
    """Check all names, and return what draws and writes the labelled frames of a whole video.

    Raises:
        ConfigError: if an output exists, is the input, or cannot be written.
        DataError: if the video cannot be read.
    """
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

    def show(labelled: Labelled) -> tuple[Frame, Tensor]:
        frame, preds = labelled
        if config.sheet is not None:
            sheet.add(frame.image, preds, frame.time)
        return frame, preds if config.format == "labels" else draw(frame.image, preds)

    def save(labelled: Iterable[Labelled]) -> None:
        with writer, ahead(map(show, labelled), depth=1) as pictures:
            for frame, picture in pictures:
                if isinstance(writer, LabelWriter):
                    writer.write(picture, frame.index)
                else:
                    writer.write(picture, frame.time)
        if config.sheet is not None:
            write_image(config.sheet, sheet.image(), overwrite=config.overwrite)

    return save


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

"""Reads videos: every frame upright, as RGB, with its own time; damage is named, never passed over in silence."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
import cv2
import numpy as np
import torch
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.sidedata.sidedata import SideData, Type
from av.stream import Disposition
from av.video.stream import VideoStream
from torch import Tensor

from steadyseg.types import ConfigError, DataError, Frame
from steadyseg.video import images

_DEFAULT_RATE = Fraction(25)
_CORRECTIBLE = "or leave out what is broken (--on-error skip)"
# Containers whose header states the true duration, so that a file that was cut off can be told from a whole one.
_EXACT_HEADERS = ("mp4", "matroska", "avi")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is known about a video before it is decoded."""

    path: Path
    """The file, the folder or the glob."""
    width: int
    """Pixels, after rotation."""
    height: int
    """Pixels, after rotation."""
    rate: Fraction
    """Frames per second; the mean where they come at varying times."""
    frames: int | None
    """Number of frames, None where the container does not say."""
    duration: float | None
    """Seconds on the clock of ``Frame.time`` at which the last frame ends; None if unknown."""
    last: float | None
    """``Frame.time`` of the last frame; None if unknown."""
    rotation: int
    """Degrees, clockwise, by which the stored frames are turned: 0, 90, 180 or 270."""
    has_audio: bool
    """Whether there is sound to copy."""
    codec: str
    """FFmpeg's name of the codec, or "images"."""
    time_base: Fraction
    """Seconds of the tick that times are a multiple of."""
    pixel_aspect: Fraction
    """Width of a pixel by its height, after rotation; 1 for square pixels."""


def probe(path: str | Path, *, rate: float | Fraction = _DEFAULT_RATE) -> VideoInfo:
    """Look at a video without decoding more than its first frame.

    Args:
        path: a video, an image, a folder of images or a glob.
        rate: frames per second of images; a video has its own.

    Raises:
        ConfigError: a rate that is not positive.
        DataError: nothing there that can be decoded.
    """
    files = images.find(path)
    if files is None:
        with open_video(Path(path)) as container:
            return _probe_video(Path(path).expanduser(), container)
    exact = _exact_rate(rate)
    height, width = _first_readable(files).shape[1:]
    return VideoInfo(
        path=Path(path).expanduser(),
        width=width,
        height=height,
        rate=exact,
        frames=len(files),
        duration=float(len(files) / exact),
        last=float((len(files) - 1) / exact),
        rotation=0,
        has_audio=False,
        codec="images",
        time_base=1 / exact,
        pixel_aspect=Fraction(1),
    )


def read(
    path: str | Path, *, on_error: Literal["stop", "skip"] = "stop", rate: float | Fraction = _DEFAULT_RATE
) -> Iterator[Frame]:
    """Yield the frames of a video lazily, in the order they are shown.

    Args:
        path: a video, an image, a folder of images or a glob.
        on_error: "stop" raises at a frame that is broken; "skip" leaves it out, with a warning in the log.
            The frames after it keep their numbers and times.
        rate: frames per second of images; a video has its own.

    Returns:
        The frames, uint8 [3, H, W] RGB, upright. ``time`` is the container's own time stamp; only in formats
        whose clock starts anywhere (MPEG transport streams) is it counted from the start of the file.

    Raises:
        ConfigError: an unknown `on_error`, or a rate that is not positive.
        DataError: nothing there that can be decoded, a broken frame, a file that was cut off, or a frame that
            differs in size from the first.
    """
    if on_error not in ("stop", "skip"):
        raise ConfigError(f"on_error is {on_error!r}; expected 'stop' or 'skip'")
    files = images.find(path)
    if files is None:
        return _read_video(Path(path), skip=on_error == "skip")
    return images.read_images(files, rate=_exact_rate(rate), on_error=on_error)


def open_video(path: Path) -> InputContainer:
    """Open a video file, and make sure that it has a video stream that can be decoded.

    Raises:
        DataError: it cannot be opened, has no video, or its codec is unknown.
    """
    file = path.expanduser()
    if file.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); copy it again")
    try:
        container = av.open(f"file:{file}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or "unknown format"
        raise DataError(f"{path} is no video that can be read, or was cut off ({reason}); copy it again") from error
    try:
        stream = video_stream(container)
        if stream is None:
            raise DataError(f"{path} has no video stream (it holds: {_content(container)}); expected a video")
        if stream.codec_context is None:
            raise DataError(f"{path}: its video codec is unknown; convert it to H.264 first")
    except DataError:
        container.close()
        raise
    return container


def video_stream(container: InputContainer) -> VideoStream | None:
    """Return the first video stream that is not the cover picture of a sound file."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    return streams[0] if streams else None


def origin(container: InputContainer) -> Fraction:
    """Return the container's time, in seconds, at which ``Frame.time`` is 0."""
    if Flags.ts_discont not in Flags(container.format.flags):
        return Fraction(0)
    starts = [
        stream.start_time * stream.time_base
        for stream in (*container.streams.video, *container.streams.audio)
        if stream.start_time is not None and stream.time_base is not None
    ]
    return Fraction(min(starts, default=Fraction(0)))


def _first_readable(files: Sequence[Path]) -> Tensor:
    failure: DataError | None = None
    for file in files:
        try:
            return images.read_image(file)
        except DataError as error:
            failure = failure or error
    raise failure or DataError("no image given")


def _exact_rate(rate: float | Fraction) -> Fraction:
    exact = Fraction(rate).limit_denominator(100_000)
    if exact <= 0:
        raise ConfigError(f"rate is {rate}; expected frames per second, more than 0")
    return exact


def _content(container: InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _stream_rate(stream: VideoStream, *, has_clock: bool) -> Fraction:
    """Return frames per second; where the file has no time stamps at all, only the coded stream knows."""
    known = (stream.average_rate, stream.guessed_rate)
    return next((rate for rate in (known if has_clock else known[::-1]) if rate), _DEFAULT_RATE)


def _probe_video(path: Path, container: InputContainer) -> VideoInfo:
    stream = video_stream(container)
    assert stream is not None and stream.time_base is not None
    shown = next((frame for frame, _ in _decoded(container, stream) if frame is not None), None)
    if shown is None:
        raise DataError(f"{path}: no frame of it can be decoded; copy it again or convert it")
    has_clock = shown.pts is not None
    rate = _stream_rate(stream, has_clock=has_clock)
    height, width = shown.height, shown.width
    aspect = stream.sample_aspect_ratio or Fraction(1)
    rotation, _ = _orientation(shown)
    if rotation in (90, 270):
        height, width, aspect = width, height, 1 / aspect
    last, end = _tail(container, stream, rate)
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        rate=rate,
        frames=stream.frames or None,
        duration=end,
        last=last,
        rotation=rotation,
        has_audio=bool(container.streams.audio),
        codec=stream.codec_context.name,
        time_base=stream.time_base if has_clock else 1 / rate,
        pixel_aspect=aspect,
    )


def _tail(container: InputContainer, stream: VideoStream, rate: Fraction) -> tuple[float | None, float | None]:
    """Return when the last frame starts and ends, from the packets after the last key frame."""
    last, duration = None, None
    if container.duration is None or stream.time_base is None:
        return None, None
    try:
        container.seek(container.duration + (container.start_time or 0))
        for packet in container.demux(stream):
            if packet.pts is not None and (last is None or packet.pts > last):
                last, duration = packet.pts, packet.duration
    except av.FFmpegError:
        return None, None
    if last is None:
        return None, None
    start = origin(container)
    begins = last * stream.time_base - start
    ends = begins + (duration * stream.time_base if duration else 1 / rate)
    if stream.duration and stream.start_time is not None:
        stated = (stream.start_time + stream.duration) * stream.time_base - start
        ends = stated if stated > begins else ends
    return float(begins), float(ends)


def _read_video(path: Path, *, skip: bool) -> Iterator[Frame]:
    def refuse(message: str) -> None:
        if not skip:
            raise DataError(f"{path}: {message}; copy the file again {_CORRECTIBLE}")
        _log.warning("%s: %s; skipped", path, message)

    with open_video(path) as container:
        stream = video_stream(container)
        assert stream is not None
        size, before, index, step = None, None, -1, 0.0
        rotation, mirrored = 0, False
        for index, (frame, time) in enumerate(_decoded(container, stream)):
            step = step or float(1 / _stream_rate(stream, has_clock=time is not None))
            when = time if time is not None else (before + step if before is not None else 0.0)
            if frame is None:
                refuse(f"frame {index} at {when:.3f} s is broken")
                continue
            if size is None:
                rotation, mirrored = _orientation(frame)
            image = _to_rgb(frame, rotation=rotation, mirrored=mirrored)
            size = size or image.shape
            if image.shape != size:
                raise DataError(
                    f"{path}: frame {index} at {when:.3f} s is {image.shape[2]}x{image.shape[1]}, the first is "
                    f"{size[2]}x{size[1]}; expected one size: cut the video there"
                )
            if before is not None and when <= before:
                refuse(f"frame {index} has the time {when:.3f} s, not after the frame before it ({before:.3f} s)")
                continue
            before = when
            yield Frame(image, index, when)
        if size is None:
            raise DataError(f"{path}: none of its {index + 1} frames can be decoded; copy it again or convert it")
        damage = _cut_off(path, container, before or 0.0, step)
        if damage:
            refuse(damage)


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[tuple[av.VideoFrame | None, float | None]]:
    """Yield every frame and its time in seconds, in the order of time; None in place of a frame that is broken.

    One decoding thread: with more, FFmpeg conceals damage, or reports it frames later and drops others.
    """
    stream.codec_context.thread_count = 1
    start = origin(container)
    broken: list[float] = []

    def seconds(ticks: int | None) -> float | None:
        return None if ticks is None or stream.time_base is None else float(ticks * stream.time_base - start)

    for packet in _packets(container, stream):
        try:
            frames = packet.decode() if packet is not None else stream.decode(None)
        except av.FFmpegError:
            frames = []
            # A packet is decoded before its frame is due; the frame's turn comes by its time.
            broken.append(_or_infinity(seconds(packet.pts if packet is not None else None)))
        for frame in frames:
            time = seconds(frame.pts)
            while broken and time is not None and min(broken) < time:
                yield None, _pop_first(broken)
            yield (None if frame.is_corrupt else frame), time
    while broken:
        yield None, _pop_first(broken)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet | None]:
    """Yield the packets of a stream; None in place of the rest where the container itself is broken."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        yield None


def _or_infinity(time: float | None) -> float:
    return float("inf") if time is None else time


def _pop_first(times: list[float]) -> float | None:
    first = min(times)
    times.remove(first)
    return None if first == float("inf") else first


def _cut_off(path: Path, container: InputContainer, last: float, step: float) -> str:
    """Say that the file ends clearly before the time in its header, or return "" if it does not."""
    if container.duration is None or not any(name in container.format.name for name in _EXACT_HEADERS):
        return ""
    promised = float(Fraction(container.duration + (container.start_time or 0), av.time_base) - origin(container))
    slack = max(3 * step, min(1.0, 0.1 * promised), 0.01 * promised)
    if last + slack >= promised:
        return ""
    # Sound may last longer than the pictures: only what no stream reaches is missing.
    with open_video(path) as again:
        came = max((_end(packet) for packet in again.demux() if packet.pts is not None), default=last)
    return "" if came + slack >= promised else f"it is cut off at {came:.3f} of {promised:.3f} s"


def _end(packet: Packet) -> float:
    return float(((packet.pts or 0) + (packet.duration or 0)) * packet.time_base)


def _orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Return what shows a frame upright: a clockwise turn of 0, 90, 180 or 270 degrees, then mirroring or not.

    Asked once a video: PyAV's side data and its frame hold each other, so the frame stays in memory for long.
    """
    matrix = cast(Mapping[Type, SideData], frame.side_data).get(Type.DISPLAYMATRIX)
    if matrix is None:
        return 0, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    # A stored point (x, y) is shown at (a x + c y, b x + d y), up to a shift; y points down.
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (180 if d < 0 else 0), (a < 0) != (d < 0)
    return (90 if b > 0 else 270), (b > 0) == (c > 0)


def _to_rgb(frame: av.VideoFrame, *, rotation: int, mirrored: bool) -> Tensor:
    """Return the frame upright, uint8 [3, H, W] RGB, in the colours its own colour space and range mean."""
    pixels = frame.to_ndarray(format="rgb24")  # [H, W, 3]
    if rotation:
        pixels = np.rot90(pixels, -rotation // 90)
    if mirrored:
        pixels = pixels[:, ::-1]
    planes = np.empty((3, *pixels.shape[:2]), dtype=np.uint8)
    cv2.split(np.ascontiguousarray(pixels), list(planes))
    return torch.from_numpy(planes)  # [3, H, W]

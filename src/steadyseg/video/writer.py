"""Writes a video file with the times and the sound of the video it was made from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from torch import Tensor

from steadyseg.types import ConfigError, DataError, ShapeError, check_shape
from steadyseg.video.output import Output, naming
from steadyseg.video.reader import VideoInfo, open_video, origin

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""File endings and the containers they mean."""

ENCODERS = ("libx264", "libx265", "mpeg4", "libvpx-vp9")
"""Encoders to choose from, where this FFmpeg has them; the first plays in every browser."""

_OPTIONS = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    "libx265": {"crf": "23", "preset": "veryfast", "x265-params": "log-level=error"},
    "libvpx-vp9": {"crf": "30", "b:v": "0", "deadline": "realtime", "cpu-used": "6"},
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},  # 3 on its scale of 1 to 31
}
_log = logging.getLogger(__name__)


class Writer:
    """Writes frames to a video file: H.264 and yuv420p, so that it plays in a browser, unless told otherwise.

    A context manager: the file appears under its name when the block ends well, and not at all otherwise.
    Times, duration and sound are those of the video it was made from; memory does not grow with its length.
    """

    def __init__(self, path: str | Path, info: VideoInfo, *, codec: str = ENCODERS[0], overwrite: bool = False) -> None:
        """Check the name and the encoder; nothing is written yet.

        Args:
            path: the file; its ending, one of FORMATS, chooses the container.
            info: of the video whose frames these are; gives time base, last frame's duration and sound.
            codec: FFmpeg's name of the encoder, such as one of ENCODERS.
            overwrite: whether an existing file may be replaced; never the input.

        Raises:
            ConfigError: `path` is the input, exists, has another ending or lies in a folder that does not
                exist; an encoder that is not there or does not fit the container.
        """
        self._output = Output(path, source=info.path, overwrite=overwrite)
        suffix = Path(path).suffix.lower()
        if suffix not in FORMATS:
            raise ConfigError(f"output {path} has no known video ending; expected one of {' '.join(FORMATS)}")
        self._format = FORMATS[suffix]
        self._info = info
        self._codec = codec
        self._check_codec()
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._sound: _Sound | None = None
        self._size = (0, 0)
        self._ticks: int | None = None
        self._waiting: Packet | None = None

    def __enter__(self) -> Writer:
        self._output.open_file()
        return self

    def write(self, image: Tensor, time: float) -> None:
        """Append one frame.

        Args:
            image: uint8 [3, H, W] RGB; all of one size, not necessarily that of the input. An odd height or
                width gets one more row or column, a copy of the last.
            time: when it is shown, seconds, rising; ``Frame.time`` of the frame it was made from.

        Raises:
            ShapeError: a frame of another size than the first.
            DataError: a time that does not rise, or the disk is full.
        """
        check_shape("image", image, (3, "H", "W"), torch.uint8)
        size = (image.shape[1], image.shape[2])
        with naming(self._output.path):
            if self._container is None:
                self._size = size
                self._start(size)
            if size != self._size:
                raise ShapeError(f"image is {size[1]}x{size[0]}; expected {self._size[1]}x{self._size[0]} as the first")
            assert self._stream is not None
            ticks = round(Fraction(time) / self._info.time_base)
            if self._ticks is not None and ticks <= self._ticks:
                raise DataError(f"frame at {time:.6f} s does not come after the one before; expected rising times")
            self._ticks = ticks
            frame = _to_yuv(image)
            frame.pts, frame.time_base = ticks, self._info.time_base
            self._mux(self._stream.encode(frame))
            if self._sound is not None:
                self._sound.copy(until=time)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with naming(self._output.path):
                    self._finish()
                self._output.commit()
        finally:
            # Removed before it is closed: closing would otherwise spend time on finishing a file nobody gets.
            self._output.discard()
            self._close()

    def _check_codec(self) -> None:
        try:
            codec = av.codec.Codec(self._codec, "w")
        except ValueError as error:
            available = " ".join(name for name in ENCODERS if name in av.codec.codecs_available)
            raise ConfigError(f"this FFmpeg has no encoder {self._codec!r}; choose one of: {available}") from error
        if codec.type != "video" or "yuv420p" not in {form.name for form in codec.video_formats or ()}:
            raise ConfigError(f"encoder {self._codec!r} does not write yuv420p video; expected one such as libx264")
        if self._format == "webm" and codec.canonical_name not in ("vp8", "vp9", "av1"):
            raise ConfigError(f"a .webm file cannot hold {self._codec}; give an .mp4 file or codec libvpx-vp9")

    def _start(self, size: tuple[int, int]) -> None:
        """Open the file for frames of height and width `size`."""
        info = self._info
        options = {"movflags": "+faststart"} if self._format in ("mp4", "mov") else {}
        self._container = av.open(f"file:{self._output.part}", "w", format=self._format, options=options)
        stream = self._container.add_stream(self._codec, rate=info.rate, options=_OPTIONS.get(self._codec, {}))
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        stream.height, stream.width = (side + side % 2 for side in size)
        stream.pix_fmt = "yuv420p"
        stream.time_base = context.time_base = info.time_base
        context.max_b_frames = 0  # decoding order is then the order of time, and each frame's duration is exact
        context.gop_size = max(1, round(2 * info.rate))
        context.sample_aspect_ratio = info.pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # 16..235
        self._stream = stream
        if info.has_audio:
            self._sound = _Sound(info.path, self._container)

    def _mux(self, packets: list[Packet]) -> None:
        """Write packets one late, as only the next one tells how long a frame lasts."""
        assert self._container is not None
        for packet in packets:
            if self._waiting is not None:
                self._waiting.duration = (packet.pts or 0) - (self._waiting.pts or 0)
                self._container.mux(self._waiting)
            self._waiting = packet

    def _finish(self) -> None:
        if self._container is None or self._stream is None or self._ticks is None:
            raise DataError(f"{self._output.path}: no frame was written; expected at least one")
        self._mux(self._stream.encode(None))
        info = self._info
        begins = self._ticks * info.time_base
        # Where the caller stopped early, the rest of the sound does not belong to the output.
        is_whole = info.last is None or float(begins) >= info.last - 0.5 * float(info.time_base)
        ends = begins + 1 / info.rate
        if is_whole and info.duration is not None and info.duration > begins:
            ends = Fraction(info.duration)
        if self._waiting is not None:
            self._waiting.duration = max(1, round((ends - begins) / info.time_base))
            self._container.mux(self._waiting)
        if self._sound is not None:
            self._sound.copy(until=None if is_whole else float(ends))
        self._container.close()

    def _close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        if self._container is not None:
            with suppress(av.FFmpegError, OSError, ValueError):
                self._container.close()
        self._container = self._stream = self._sound = self._waiting = None


class _Sound:
    """Copies the sound packets of a video, unchanged, into an output that is being written."""

    def __init__(self, path: Path, output: OutputContainer) -> None:
        self._input: InputContainer = open_video(path)
        self._output = output
        self._origin = origin(self._input)
        self._streams = {
            stream.index: output.add_stream_from_template(stream)
            for stream in self._input.streams.audio
            if self._fits(stream, path)
        }
        self._packets: Iterator[Packet] = iter(())
        if self._streams:
            self._packets = self._input.demux(*(self._input.streams[index] for index in self._streams))
        self._next: Packet | None = None

    def _fits(self, stream: AudioStream, path: Path) -> bool:
        name = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown"
        if name in self._output.supported_codecs:
            return True
        _log.warning("%s: its sound (%s) is left out, this container cannot hold it; an .mkv file can", path, name)
        return False

    def copy(self, *, until: float | None) -> None:
        """Copy the packets that start before `until` seconds, or all that are left."""
        while (packet := self._next or self._advance()) is not None:
            packet.pts = packet.dts if packet.pts is None else packet.pts
            begins = (packet.pts or 0) * packet.time_base - self._origin
            self._next = packet
            if until is not None and begins >= until:
                return
            self._next = None
            self._trim(packet)
            shift = round(self._origin / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
            packet.stream = self._streams[packet.stream_index]
            self._output.mux(packet)

    @staticmethod
    def _trim(packet: Packet) -> None:
        """Let the last packet end where its stream ends: a block of samples may be longer than what is left."""
        stream = packet.stream
        if stream.duration and stream.start_time is not None and packet.pts is not None and packet.duration:
            left = stream.start_time + stream.duration - packet.pts
            packet.duration = max(1, min(packet.duration, left))

    def _advance(self) -> Packet | None:
        """Return the next packet; None at the end, which is also where a file was cut off."""
        try:
            return next((packet for packet in self._packets if packet.size), None)
        except av.FFmpegError as error:
            _log.warning("the sound ends early: %s", error.strerror)
            return None

    def close(self) -> None:
        self._input.close()


def _to_yuv(image: Tensor) -> av.VideoFrame:
    """Return uint8 [3, H, W] RGB as a yuv420p frame of even height and width."""
    height, width = image.shape[1:]
    even = (height + height % 2, width + width % 2)
    red, green, blue = image.numpy()
    frame = av.VideoFrame(even[1], even[0], "gbrp")
    for plane, pixels in zip(frame.planes, (green, blue, red), strict=True):
        target = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: even[0], : even[1]]
        if even == (height, width):
            target[:] = pixels
        else:
            cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE, target)
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")

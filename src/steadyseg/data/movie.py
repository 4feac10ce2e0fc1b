"""A video file as numbered frames with random access."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from steadyseg.types import DataError

_NEAR = 48
"""Up to this many frames ahead it is cheaper to go on decoding than to seek."""


class Movie:
    """The frames of a video file, found by their timestamps.

    Opening reads the packets, not the pictures, so it is quick and exact for variable frame rates too.

    Attributes:
        path: the file.
        times: seconds since the first frame, one for each.
        rate: average frames per second.
    """

    def __init__(self, path: Path) -> None:
        """Index a video file.

        Raises:
            DataError: if it is no video, or its frames have no timestamps.
        """
        self.path = path
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise DataError(f"{path} has no video stream; expected a video")
                stream = container.streams.video[0]
                base = stream.time_base
                packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{path} cannot be read as a video ({error}); restore or remove it") from error
        if not packets or base is None or any(packet.pts is None for packet in packets):
            raise DataError(f"{path} has no frames with timestamps; convert it, for example to mp4")
        self._stamps = sorted({int(packet.pts) for packet in packets if packet.pts is not None})
        self.times = tuple(float((stamp - self._stamps[0]) * base) for stamp in self._stamps)
        last = self.times[-1]
        self.rate = (len(self.times) - 1) / last if last > 0 else 25.0

    def read(self, frames: Sequence[int]) -> Iterator[Tensor]:
        """Yield pictures uint8 [3, H, W] RGB, turned upright, in the order asked for.

        Raises:
            DataError: naming the frame that cannot be decoded.
        """
        number = next(iter(frames), 0)
        try:
            with av.open(str(self.path)) as container:
                # With more threads FFmpeg conceals damage.
                container.streams.video[0].codec_context.thread_count = 1
                decoded: Iterator[av.VideoFrame] = iter(())
                shown: av.VideoFrame | None = None
                for number in frames:
                    stamp = self._stamps[number]
                    if shown is None or not _stamp(shown) <= stamp <= self._ahead(_stamp(shown)):
                        shown, decoded = self._seek(container, stamp)
                    while shown is not None and _stamp(shown) < stamp:
                        shown = next(decoded, None)
                    if shown is None or _stamp(shown) != stamp or shown.is_corrupt:
                        raise DataError(f"{self.path}: frame {number} cannot be decoded; restore or convert the video")
                    yield _picture(shown)
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{self.path}: frame {number} cannot be decoded ({error}); restore the video") from error

    def _seek(
        self, container: av.container.InputContainer, stamp: int
    ) -> tuple[av.VideoFrame | None, Iterator[av.VideoFrame]]:
        """Start decoding at or before a timestamp; from the very first frame where the file's index is wrong."""
        for origin in (stamp, self._stamps[0]):
            container.seek(origin, stream=container.streams.video[0])
            decoded = container.decode(video=0)
            first = next(decoded, None)
            if first is not None and _stamp(first) <= stamp:
                break
        return first, decoded

    def _ahead(self, stamp: int) -> int:
        """Return the last timestamp that is worth decoding up to from the given one."""
        place = int(np.searchsorted(self._stamps, stamp))
        return self._stamps[min(place + _NEAR, len(self._stamps) - 1)]


def _stamp(frame: av.VideoFrame) -> int:
    return -1 if frame.pts is None else frame.pts


def _picture(frame: av.VideoFrame) -> Tensor:
    upright = np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)  # [H, W, 3]
    return torch.from_numpy(np.ascontiguousarray(upright.transpose(2, 0, 1)))  # [3, H, W]

"""A source that keeps frames in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from steadyseg.data.source import VideoSource
from steadyseg.types import DataError, Frame

if TYPE_CHECKING:
    from steadyseg.data.files import FileVideo


class KeptFrames(VideoSource):
    """Another source, of which the first frames that are read stay in memory.

    They are never replaced: in training every frame comes once an epoch, so replacing the oldest would drop each just
    before it is needed again. A forked process has the frames kept so far; one that gets a pickled copy begins anew.

    Args:
        source: where frames come from.
        megabytes: what may be kept, in MiB.
    """

    def __init__(self, source: VideoSource, megabytes: int) -> None:
        self.classes, self.palette, self.names, self.rate = source.classes, source.palette, source.names, source.rate
        self._source = source
        self._kept: dict[tuple[str, int], Frame] = {}
        self._room = self._free = megabytes * 2**20

    def length(self, name: str) -> int:
        """Return the number of frames of video `name`."""
        return self._source.length(name)

    def labelled(self, name: str) -> tuple[int, ...]:
        """Return the frame numbers of video `name` that have ground truth, rising."""
        return self._source.labelled(name)

    def files(self, name: str) -> FileVideo | None:
        """Return the files behind video `name`, see VideoSource."""
        return self._source.files(name)

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        """Yield frames of video `name` lazily, in the order asked for (see VideoSource)."""
        numbers = range(self.length(name)) if frames is None else frames
        known = [self._kept.get((name, number)) for number in numbers]
        missing = [number for number, frame in zip(numbers, known, strict=True) if frame is None]
        fresh = self._source.read(name, missing) if missing else iter(())
        for number, frame in zip(numbers, known, strict=True):
            yield self._keep(name, number, next(fresh, None)) if frame is None else frame
        if next(fresh, None) is not None:
            raise DataError(f"video {name}: more than the {len(missing)} frames that were asked for were read")

    def _keep(self, name: str, number: int, frame: Frame | None) -> Frame:
        if frame is None:
            raise DataError(f"video {name} ended before frame {number}, which was asked for")
        size = frame.image.nbytes + (frame.labels.nbytes if frame.labels is not None else 0)
        if size <= self._free and (name, number) not in self._kept:
            self._kept[name, number] = frame
            self._free -= size
        return frame

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_free": self._room}

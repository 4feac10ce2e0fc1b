"""The one abstraction of this folder: a source is one split of one data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from steadyseg.types import Frame

if TYPE_CHECKING:
    from steadyseg.data.files import FileVideo


class VideoSource(ABC):
    """One split of one data set, as videos of frames.

    Attributes:
        classes: class names; a label is an index into it.
        palette: one RGB colour, 0..255, per class.
        names: the videos.
        rate: frames per second, for ``Frame.time``.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    names: tuple[str, ...]
    rate: float = 25.0

    @abstractmethod
    def length(self, name: str) -> int:
        """Return the number of frames of video `name`."""

    @abstractmethod
    def labelled(self, name: str) -> tuple[int, ...]:
        """Return the frame numbers of video `name` that have ground truth, rising."""

    @abstractmethod
    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        """Yield frames of video `name` lazily, in the order asked for.

        Args:
            name: one of ``names``.
            frames: frame numbers in 0..length-1; None means all.

        Raises:
            DataError: naming the file that cannot be read or has a wrong size or label.
        """

    def files(self, name: str) -> FileVideo | None:
        """Return the files behind video `name`, for auditing; None where frames are made, not stored."""
        return None

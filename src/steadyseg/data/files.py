"""Frames and masks as files: what belongs to a frame, how a mask's pixels become labels, and strict reading."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steadyseg.data.movie import Movie
from steadyseg.types import IGNORE, DataError, Frame

Colour = tuple[int, int, int]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class FrameFiles(NamedTuple):
    """The files of one frame."""

    number: int
    """The number in the file's name; the frame's index counts from 0 within its video."""
    image: Path
    """The picture, or the video file that holds it."""
    mask: Path | None
    """The ground truth; None where not annotated."""


@dataclass(frozen=True)
class LabelTable:
    """How the pixels of a mask become labels."""

    values: Mapping[int, int]
    """Pixel value of a grey or palette mask -> class index or IGNORE; any other value is an error."""
    colours: Mapping[Colour, int] | None = None
    """Pixel of an RGB mask -> class index or IGNORE; None refuses RGB masks."""

    def labels(self, path: Path, mask: Image.Image) -> Tensor:
        """Turn a decoded mask into uint8 [H, W] labels.

        Args:
            path: for the message.
            mask: a mask that passed `check_form`.

        Raises:
            DataError: naming the file and every value or colour that stands for no class.
        """
        if mask.mode == "RGB":
            return torch.from_numpy(self._from_colours(path, np.asarray(mask)))
        raw = np.asarray(mask).astype(np.uint8)  # [H, W]
        lookup = np.full(256, IGNORE, np.uint8)
        refused = np.ones(256, np.uint8)
        lookup[list(self.values)] = list(self.values.values())
        refused[list(self.values)] = 0
        if refused.any() and cv2.LUT(raw, refused).any():
            wrong, counts = np.unique(raw[refused[raw] == 1], return_counts=True)
            found = ", ".join(f"{value} ({count} pixels)" for value, count in zip(wrong, counts, strict=True))
            raise DataError(f"{path} has label value {found}; expected {_spans(self.values)}")
        return torch.from_numpy(cv2.LUT(raw, lookup))

    def check_form(self, path: Path, mask: Image.Image) -> None:
        """Raise unless the mask's kind of pixel can hold labels.

        Raises:
            DataError: for transparency, for RGB without a colour table, for anything but 8 bits.
        """
        allowed = ("L", "P", "1") if self.colours is None else ("L", "P", "1", "RGB")
        if mask.mode not in allowed:
            raise DataError(f"{path} is a mask of mode {mask.mode}; {_MASK_HINTS.get(mask.mode, _WANTED)}")

    def _from_colours(self, path: Path, rgb: np.ndarray) -> np.ndarray:
        assert self.colours is not None
        packed = _pack(rgb)  # [H, W]
        order = sorted((int(_pack(np.asarray(colour))), label) for colour, label in self.colours.items())
        codes = np.array([code for code, _ in order])
        place = np.searchsorted(codes, packed).clip(max=len(codes) - 1)  # [H, W]
        unknown = codes[place] != packed
        if unknown.any():
            wrong, counts = np.unique(packed[unknown], return_counts=True)
            found = ", ".join(
                f"{code >> 16} {code >> 8 & 255} {code & 255} ({count} pixels)"
                for code, count in sorted(zip(wrong, counts, strict=True), key=lambda pair: -pair[1])[:10]
            )
            more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise DataError(f"{path} has colours that stand for no class: {found}{more}; expected label colours")
        return np.array([label for _, label in order], np.uint8)[place]


_WANTED = "expected one channel of 8 bits, or a palette"
_MASK_HINTS = {
    "RGB": f"{_WANTED}, as this data set has no colour table",
    **dict.fromkeys(("RGBA", "LA", "PA"), f"{_WANTED}: remove the transparency"),
}


def _pack(rgb: np.ndarray) -> np.ndarray:
    """Turn [..., 3] colours into [...] numbers."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _spans(values: Iterable[int]) -> str:
    """Write whole numbers as spans, such as 0-10, 255."""
    spans: list[list[int]] = []
    for value in sorted(values):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


@dataclass(frozen=True)
class FileVideo:
    """One video that lies on disk: a picture and perhaps a mask for every frame."""

    frames: tuple[FrameFiles, ...]
    table: LabelTable
    rate: float
    """Frames per second."""
    masks: Literal["every", "some", "none"] = "some"
    """Which frames the data set is supposed to annotate."""
    movie: Movie | None = None
    """The video file that holds the pictures; None where each is a file."""

    @property
    def labelled(self) -> tuple[int, ...]:
        """Frame numbers with ground truth, rising."""
        return tuple(index for index, frame in enumerate(self.frames) if frame.mask is not None)

    def read(self, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        """Yield frames lazily, in the order asked for; see `VideoSource.read`."""
        chosen = range(len(self.frames)) if frames is None else frames
        assert all(0 <= index < len(self.frames) for index in chosen), "frame number outside the video"
        for index, image in zip(chosen, self.images(chosen), strict=True):
            files = self.frames[index]
            labels = None if files.mask is None else read_labels(files.mask, self.table)
            if labels is not None and labels.shape != image.shape[1:]:
                raise DataError(f"{files.mask} is {_size(labels)}, but its image is {_size(image)}; expected one size")
            time = index / self.rate if self.movie is None else self.movie.times[index]
            yield Frame(image, index, time, labels)

    def images(self, frames: Sequence[int]) -> Iterator[Tensor]:
        """Yield the pictures uint8 [3, H, W] of the given frames."""
        if self.movie is not None:
            return self.movie.read(frames)
        return (read_image(self.frames[index].image) for index in frames)


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def load(path: Path) -> Image.Image:
    """Decode an image file completely.

    Raises:
        DataError: naming the file that is missing, damaged, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            # Pillow stretches 2- and 4-bit grey to 0..255, which would turn class 1 into class 85 or 17.
            if image.mode == "L" and image.tile and image.tile[0][3] in ("L;2", "L;4"):
                raise DataError(f"{path} has 2 or 4 bits of grey; expected 8 bits")
            image.load()
            return image
    except _UNREADABLE as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as an image ({reason}); restore or remove it") from error


def read_image(path: Path) -> Tensor:
    """Read a picture as uint8 [3, H, W] RGB; grey is repeated and transparency dropped.

    Raises:
        DataError: naming the file that cannot be decoded or does not have 8 bits.
    """
    image = load(path)
    if image.mode not in ("RGB", "L", "P", "RGBA"):
        raise DataError(f"{path} is an image of mode {image.mode}; expected 8-bit RGB or grey")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()  # [3, H, W]


def read_labels(path: Path, table: LabelTable) -> Tensor:
    """Read a mask as uint8 [H, W] class index or IGNORE.

    Raises:
        DataError: naming the file that cannot be decoded, has a wrong kind of pixel or a value that is no class.
    """
    mask = load(path)
    table.check_form(path, mask)
    return table.labels(path, mask)


def read_raw(path: Path) -> Tensor:
    """Read a one-channel or palette mask as uint8 [H, W], values as stored."""
    return read_labels(path, LabelTable({value: value for value in range(256)}))


def read_list(path: Path) -> list[str]:
    """Read a list of names: UTF-8, one a line, trimmed; blank lines and lines starting with . or # are skipped.

    Raises:
        DataError: if the file is missing, is not UTF-8 or lists nothing.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of names ({error}); expected UTF-8 text") from error
    names = [line for line in lines if line and not line.startswith((".", "#"))]
    if not names:
        raise DataError(f"{path} lists no names; expected one a line")
    return names


def listing(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the files of a folder that have one of the suffixes and no leading dot, by name; [] if it is missing."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(found)


def refuse_missing(what: str, missing: Sequence[str], expected: str) -> None:
    """Raise if anything is missing, with the first 10 names.

    Args:
        what: the start of the message, such as "CamVid: images of val.txt".
        missing: names of what is missing.
        expected: where it was looked for.

    Raises:
        DataError: if `missing` is not empty.
    """
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise DataError(f"{what} are missing: {', '.join(missing[:10])}{more}; expected {expected}")

"""Any data of your own: videos or folders of images, with masks for all or some of their frames."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from steadyseg.data.files import (
    Colour,
    FileVideo,
    FrameFiles,
    LabelTable,
    listing,
    read_list,
    refuse_missing,
)
from steadyseg.data.movie import Movie
from steadyseg.data.source import VideoSource
from steadyseg.types import IGNORE, ConfigError, DataError, Frame, default_palette

_KEYS = ("names", "colours", "ignore", "rate")


class FolderSource(VideoSource):
    """Your own data::

        classes.yaml
        videos/<name>.mp4              a video file of any kind, or
        images/<name>/<frame>.jpg      a folder of .jpg or .png frames, in the order of the numbers in their names
        masks/<name>/<frame>.png       for all frames or only some; the file name without its ending is the image's,
                                       or the frame's number in the video file, from 0 (000012.png and 12.png are one)
        splits/<split>.txt             names of videos, one a line

    Without a folder splits/, every video belongs to every split. A mask is a grey or palette PNG whose pixels are
    class numbers, from 0. classes.yaml says what they mean::

        names: [background, cell, membrane]
        colours: [[0, 0, 0], [230, 25, 75], [60, 180, 75]]    # optional; then masks may also be RGB in these colours
        ignore: 255                                           # optional; a number, or a colour such as [255, 255, 255]
        rate: 25                                              # optional; frames per second of folders of images

    The number 255 is always ignored.
    """

    def __init__(self, root: Path, split: str = "train") -> None:
        """Find the files of a split.

        Raises:
            ConfigError: if there is no such split.
            DataError: if the layout is not found, classes.yaml is wrong, or a mask belongs to no frame.
        """
        self._root = Path(root)
        described = _describe(self._root / "classes.yaml")
        self.classes = tuple(described["names"])
        colours = described.get("colours")
        self.palette = tuple(colours) if colours else default_palette(len(self.classes))
        self.rate = float(described.get("rate", 25))
        table = _table(len(self.classes), colours, described.get("ignore", IGNORE))
        found = self._find()
        names = sorted(found) if not (self._root / "splits").is_dir() else read_list(_split_file(self._root, split))
        missing = [name for name in names if name not in found]
        refuse_missing(f"videos of {split}.txt", missing, f"{root}/videos/<name>.mp4 or {root}/images/<name>")
        self._videos = {name: self._open(name, found[name], table) for name in names}
        self.names = tuple(self._videos)

    def length(self, name: str) -> int:
        return len(self._videos[name].frames)

    def labelled(self, name: str) -> tuple[int, ...]:
        return self._videos[name].labelled

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        if not self.length(name):
            raise DataError(f"video '{name}' has no frames; expected {self._root}/images/{name}/*.jpg or *.png")
        return self._videos[name].read(frames)

    def files(self, name: str) -> FileVideo:
        return self._videos[name]

    def _find(self) -> dict[str, Path]:
        """Map the name of every video to its file or its folder of images."""
        folders = self._root / "images", self._root / "videos"
        entries = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
        found: dict[str, Path] = {}
        for path in entries:
            name = path.name if path.is_dir() else path.stem
            if path.name.startswith(".") or path.is_dir() != (path.parent == folders[0]):
                continue
            if name in found:
                raise DataError(f"video '{name}' is there twice, as {found[name]} and {path}; expected one of them")
            found[name] = path
        if not found:
            raise DataError(f"found no videos under {self._root}; expected videos/<name>.mp4 or images/<name>/*.jpg")
        return found

    def _open(self, name: str, path: Path, table: LabelTable) -> FileVideo:
        masks = {mask.stem: mask for mask in listing(self._root / "masks" / name, (".png",))}
        if path.is_file():
            return _movie(path, masks, table)
        return _images(path, masks, table, self.rate)


def _images(folder: Path, masks: Mapping[str, Path], table: LabelTable, rate: float) -> FileVideo:
    images: dict[str, Path] = {}
    for image in sorted(listing(folder), key=lambda path: (_number(path) or 0, path.name)):
        if image.stem in images:
            raise DataError(
                f"frame '{image.stem}' is there twice, as {images[image.stem]} and {image.name}; remove one"
            )
        images[image.stem] = image
    refuse_missing("images of masks", sorted(masks.keys() - images), f"{folder}/<name of the mask>.jpg or .png")
    numbers = [_number(image) for image in images.values()]
    counted = None in numbers or len(set(numbers)) < len(numbers)
    frames = (
        FrameFiles(index if counted else int(number or 0), image, masks.get(stem))
        for index, (number, (stem, image)) in enumerate(zip(numbers, images.items(), strict=True))
    )
    return FileVideo(tuple(frames), table, rate)


def _movie(path: Path, masks: Mapping[str, Path], table: LabelTable) -> FileVideo:
    movie = Movie(path)
    numbered: dict[int, Path] = {}
    for stem, mask in masks.items():
        if not stem.isdigit() or int(stem) >= len(movie.times) or int(stem) in numbered:
            raise DataError(
                f"{mask} belongs to no frame of {path}; expected one mask a frame, named 0.png to "
                f"{len(movie.times) - 1}.png"
            )
        numbered[int(stem)] = mask
    frames = tuple(FrameFiles(index, path, numbered.get(index)) for index in range(len(movie.times)))
    return FileVideo(frames, table, movie.rate, movie=movie)


def _number(image: Path) -> int | None:
    """Return the last number in a file's name."""
    digits = re.findall(r"\d+", image.stem)
    return int(digits[-1]) if digits else None


def _split_file(root: Path, split: str) -> Path:
    path = root / "splits" / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt")))
        raise ConfigError(f"no split '{split}': found no {path}; known are {known or 'none'}")
    return path


def _describe(path: Path) -> dict[str, Any]:
    """Read and check classes.yaml."""
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"found no {path}; expected a file such as 'names: [background, cell]'") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(described, dict) or not described.get("names"):
        raise DataError(f"{path} has no list of names; expected a file such as 'names: [background, cell]'")
    for key in described:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(_KEYS)}"
            raise DataError(f"unknown key '{key}' in {path}; {hint}")
    names, colours = described["names"], described.get("colours")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: names is {names!r}; expected a list of words (put quotes around yes, no and numbers)")
    if len(names) > IGNORE:
        raise DataError(f"{path} has {len(names)} names; expected at most {IGNORE}, as labels are bytes")
    if colours is not None:
        described["colours"] = _check_colours(path, colours, len(names))
    ignore, rate = described.get("ignore", IGNORE), described.get("rate", 25)
    if not (type(ignore) is int and 0 <= ignore <= 255) and not _is_colour(ignore):
        raise DataError(f"{path}: ignore is {ignore!r}; expected a number of 0..255 or a colour [red, green, blue]")
    if isinstance(ignore, list) and colours is None:
        raise DataError(f"{path}: ignore is a colour, but there are no colours; add them, or set ignore to a number")
    if type(rate) not in (int, float) or not 0 < rate < float("inf"):
        raise DataError(f"{path}: rate is {rate!r}; expected frames per second, more than 0")
    return described


def _check_colours(path: Path, colours: object, count: int) -> list[Colour]:
    if not isinstance(colours, list) or len(colours) != count or not all(map(_is_colour, colours)):
        raise DataError(f"{path}: colours must be one [red, green, blue] of 0..255 for each of {count} names")
    distinct = [(red, green, blue) for red, green, blue in colours]
    if len(set(distinct)) < count:
        raise DataError(f"{path}: a colour is there twice; expected another colour for each name")
    return distinct


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value)


def _table(classes: int, colours: Sequence[Colour] | None, ignore: int | list[int]) -> LabelTable:
    values = {IGNORE: IGNORE, **{value: value for value in range(classes)}}
    rgb = None if colours is None else {colour: index for index, colour in enumerate(colours)}
    if isinstance(ignore, int):
        values[ignore] = IGNORE
    elif rgb is not None:
        rgb[ignore[0], ignore[1], ignore[2]] = IGNORE
    return LabelTable(values, rgb)

"""CamVid: driving videos with 11 classes, in its usual layout and in a compact one.

G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic Object Classes in Video: A High-Definition Ground Truth Database",
Pattern Recognition Letters, 2009. Most videos are annotated once a second, one stretch 15 times a second.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from steadyseg.data.files import Colour, FileVideo, FrameFiles, LabelTable, read_list, refuse_missing
from steadyseg.data.source import VideoSource
from steadyseg.types import IGNORE, ConfigError, DataError, Frame

CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)

COLOURS: dict[Colour, int] = {
    (128, 128, 128): 0,  # Sky
    (128, 0, 0): 1,  # Building
    (192, 0, 128): 1,  # Archway
    (0, 128, 64): 1,  # Bridge
    (64, 0, 64): 1,  # Tunnel
    (64, 192, 0): 1,  # Wall
    (192, 192, 128): 2,  # Column_Pole
    (0, 0, 64): 2,  # TrafficCone
    (128, 64, 128): 3,  # Road
    (128, 0, 192): 3,  # LaneMkgsDriv
    (192, 0, 64): 3,  # LaneMkgsNonDriv
    (0, 0, 192): 4,  # Sidewalk
    (64, 192, 128): 4,  # ParkingBlock
    (128, 128, 192): 4,  # RoadShoulder
    (128, 128, 0): 5,  # Tree
    (192, 192, 0): 5,  # VegetationMisc
    (192, 128, 128): 6,  # SignSymbol
    (128, 128, 64): 6,  # Misc_Text
    (0, 64, 64): 6,  # TrafficLight
    (64, 64, 128): 7,  # Fence
    (64, 0, 128): 8,  # Car
    (64, 128, 192): 8,  # SUVPickupTruck
    (192, 128, 192): 8,  # Truck_Bus
    (192, 64, 128): 8,  # Train
    (128, 64, 64): 8,  # OtherMoving
    (64, 64, 0): 9,  # Pedestrian
    (192, 128, 64): 9,  # Child
    (64, 0, 192): 9,  # CartLuggagePram
    (64, 128, 64): 9,  # Animal
    (0, 128, 192): 10,  # Bicyclist
    (192, 0, 192): 10,  # MotorcycleScooter
    (0, 0, 0): IGNORE,  # Void
}
"""The 32 label colours; they are not the colours that figures show, see PALETTE."""

_VALUES = {value: value if value < len(CLASSES) else IGNORE for value in range(256)}
_SOURCE_RATE = 30.0
_DENSE_STEP = 3
"""A run labelled at least at every third frame (10 Hz) is a dense video of its own."""
_LEAD = 30
"""Decoded frames before the first label of a run."""
_UNNUMBERED = ("0001TP", "Seq05VD")
"""Sequences whose label names do not count the frames of the decoded video."""
_NAME = re.compile(r"(?P<sequence>\w+)_f?(?P<number>\d+)")


@dataclass(frozen=True)
class _Run:
    """Labelled frames of one sequence, `step` source frames apart without a gap."""

    sequence: str
    step: int
    stems: Mapping[int, str]
    """Source frame number -> name, rising."""

    @property
    def name(self) -> str:
        return next(iter(self.stems.values()))


class CamVidSource(VideoSource):
    """One split of CamVid.

    The usual layout::

        images/<name>.png              labelled frames
        labels/<name>_L.png            class ids (11 and above are ignored) or the 32 label colours
        train.txt  val.txt  test.txt   names, one a line
        sequence/<sequence>/<sequence>_<frame:6>.png     optional: all decoded frames, 30 a second
        frames.txt                     "<name> <sequence>_<frame:6>" a line, for the optional frames
        colours.txt                    "<red> <green> <blue> <class id>" a line; replaces the label colours

    The compact layout::

        images/<split>/<name>.jpg    labels/<split>/<name>.png    splits/<split>.txt

    A video is one unbroken, evenly spaced run of labelled frames, named after its first frame, at the run's own rate.
    With decoded frames, a run labelled less often than 10 times a second also holds the frames in between, and up to
    one second before its first label. Without them, neighbours of the once-a-second runs are a second apart: train
    video methods on them with still clips.
    """

    classes = CLASSES
    palette = PALETTE

    def __init__(self, root: Path, split: str = "train") -> None:
        """Find the files of a split.

        Raises:
            ConfigError: if there is no such split.
            DataError: if the layout is not found, a listed file is missing or a name has no frame number.
        """
        self._root = Path(root)
        self._compact = (self._root / "splits").is_dir()
        if not self._compact and not (self._root / "images").is_dir():
            raise DataError(f"CamVid: found no images/ under {root}; expected {root}/images and {root}/labels")
        names = read_list(_split_file(self._root / "splits" if self._compact else self._root, split))
        self._split = split
        self._refuse_missing(names)
        self._table = LabelTable(_VALUES, _colours(self._root))
        decoded = _decoded(self._root)
        self._videos = {run.name: self._video(run, decoded) for run in _runs(names)}
        self.names = tuple(self._videos)
        self.rate = Counter(video.rate for video in self._videos.values()).most_common(1)[0][0]

    def length(self, name: str) -> int:
        return len(self._videos[name].frames)

    def labelled(self, name: str) -> tuple[int, ...]:
        return self._videos[name].labelled

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        return self._videos[name].read(frames)

    def files(self, name: str) -> FileVideo:
        return self._videos[name]

    def _pair(self, stem: str) -> tuple[Path, Path]:
        if self._compact:
            folder = Path(self._split)
            return self._root / "images" / folder / f"{stem}.jpg", self._root / "labels" / folder / f"{stem}.png"
        return self._root / "images" / f"{stem}.png", self._root / "labels" / f"{stem}_L.png"

    def _refuse_missing(self, names: Sequence[str]) -> None:
        for place, what in enumerate(("images", "labels")):
            there = {path for folder in {self._pair(name)[place].parent for name in names} for path in folder.glob("*")}
            missing = [name for name in names if self._pair(name)[place] not in there]
            expected = self._pair("<name>")[place]
            refuse_missing(f"CamVid: {what} of {self._split}.txt", missing, str(expected))

    def _video(self, run: _Run, decoded: Mapping[str, int]) -> FileVideo:
        folder = self._root / "sequence" / run.sequence
        if run.step <= _DENSE_STEP or not folder.is_dir():
            frames = [FrameFiles(number, *self._pair(stem)) for number, stem in run.stems.items()]
            return FileVideo(tuple(frames), self._table, _SOURCE_RATE / run.step, masks="every")
        unknown = [stem for stem in run.stems.values() if stem not in decoded]
        if run.sequence in _UNNUMBERED and unknown:
            raise DataError(
                f"CamVid: label names of {run.sequence} are not frame numbers of {folder}; expected a line "
                f"'{unknown[0]} {run.sequence}_<frame:6>' in {self._root}/frames.txt, and so on"
            )
        stems = {decoded.get(stem, number): stem for number, stem in run.stems.items()}
        there = {path.name for path in folder.glob("*.png")}
        frames = []
        for number in range(max(min(stems) - _LEAD, 0), max(stems) + 1):
            name = f"{run.sequence}_{number:06d}.png"
            if number in stems:
                frames.append(FrameFiles(number, *self._pair(stems[number])))
            elif name in there or number > min(stems):
                frames.append(FrameFiles(number, folder / name, None))
        missing = [frame.image.name for frame in frames if frame.mask is None and frame.image.name not in there]
        refuse_missing("CamVid: decoded frames", missing, str(folder))
        return FileVideo(tuple(frames), self._table, _SOURCE_RATE)


def _split_file(folder: Path, split: str) -> Path:
    path = folder / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(file.stem for file in sorted(folder.glob("*.txt")) if file.stem in ("train", "val", "test"))
        raise ConfigError(f"CamVid has no split '{split}': found no {path}; known are {known or 'none'}")
    return path


def _runs(names: Sequence[str]) -> list[_Run]:
    """Cut the names into unbroken, evenly spaced runs, sequence by sequence."""
    sequences: dict[str, dict[int, str]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise DataError(f"CamVid: '{name}' is no frame name; expected <sequence>_<number>")
        sequences.setdefault(match["sequence"], {})[int(match["number"])] = name
    runs = []
    for sequence, stems in sequences.items():
        numbers = sorted(stems)
        steps = Counter(after - before for before, after in pairwise(numbers))
        step = steps.most_common(1)[0][0] if steps else int(_SOURCE_RATE)
        cuts = [place for place, pair in enumerate(pairwise(numbers), start=1) if pair[1] - pair[0] != step]
        for start, stop in pairwise([0, *cuts, len(numbers)]):
            runs.append(_Run(sequence, step, {number: stems[number] for number in numbers[start:stop]}))
    return runs


def _decoded(root: Path) -> dict[str, int]:
    """Read frames.txt: labelled name -> number of its decoded frame; {} without the file."""
    path = root / "frames.txt"
    if not path.is_file():
        return {}
    found = {}
    for line in read_list(path):
        words = line.split()
        match = _NAME.fullmatch(words[1]) if len(words) == 2 else None
        if match is None:
            raise DataError(f"{path} has the line '{line}'; expected '<name> <sequence>_<frame:6>'")
        found[words[0]] = int(match["number"])
    return found


def _colours(root: Path) -> dict[Colour, int]:
    """Read colours.txt, or return the usual label colours without the file."""
    path = root / "colours.txt"
    if not path.is_file():
        return COLOURS
    colours: dict[Colour, int] = {}
    for line in read_list(path):
        numbers = [int(word) for word in line.split() if word.isdigit()]
        if len(numbers) != 4 or len(line.split()) != 4 or max(numbers) > 255:
            raise DataError(f"{path} has the line '{line}'; expected '<red> <green> <blue> <class id>', each 0..255")
        colours[(numbers[0], numbers[1], numbers[2])] = _VALUES[numbers[3]]
    return colours

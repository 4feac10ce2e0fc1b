"""Cityscapes as video: snippets of 30 frames, 17 a second, of which the 20th is annotated with 19 classes.

M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from steadyseg.data.files import FileVideo, FrameFiles, LabelTable, refuse_missing
from steadyseg.data.source import VideoSource
from steadyseg.types import IGNORE, ConfigError, DataError, Frame

_LABELS = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
"""labelId, class and colour, in the order of the trainIds."""

_IDS = {**dict.fromkeys((*range(34), 255), IGNORE), **{label: index for index, (label, _, _) in enumerate(_LABELS)}}
_KINDS = {
    "labelTrainIds": LabelTable({IGNORE: IGNORE, **{index: index for index in range(len(_LABELS))}}),
    "labelIds": LabelTable(_IDS),
}
_BEFORE, _LENGTH = 19, 30
_NAME = re.compile(r"(?P<clip>.+_\d{6})_(?P<frame>\d{6})_(?P<kind>leftImg8bit|gtFine_labelTrainIds|gtFine_labelIds)")

_Key = tuple[str, str, int]
"""City, <city>_<sequence>, frame number."""


class CityscapesSource(VideoSource):
    """One split of Cityscapes; a video is one snippet, named after its annotated frame::

        leftImg8bit_sequence/<split>/<city>/<city>_<sequence:6>_<frame:6>_leftImg8bit.png
        gtFine/<split>/<city>/<city>_<sequence:6>_<frame:6>_gtFine_labelTrainIds.png      or ..._labelIds.png

    Without leftImg8bit_sequence/ the frames are looked for under leftImg8bit/. If that holds the annotated frames
    only, each video is one frame: train on it with still clips. The test split has no labels.
    """

    classes = tuple(name for _, name, _ in _LABELS)
    palette = tuple(colour for _, _, colour in _LABELS)
    rate = 17.0

    def __init__(self, root: Path, split: str = "train") -> None:
        """Find the files of a split.

        Raises:
            ConfigError: if there is no such split.
            DataError: if the layout is not found or frames of a snippet are missing.
        """
        if split not in ("train", "val", "test"):
            raise ConfigError(f"Cityscapes has no split '{split}'; known are train, val, test")
        self._images = _find_images(Path(root), split)
        self._annotated = split != "test"
        there = set(_listing(self._images, ("leftImg8bit",)))
        if self._annotated:
            self._labels = Path(root) / "gtFine" / split
            self._kinds = _listing(self._labels, ("gtFine_labelIds", "gtFine_labelTrainIds"))
            if not self._kinds:
                raise DataError(
                    f"Cityscapes: found no masks under {self._labels}; expected <city>/*_gtFine_labelIds.png"
                )
            snippets = _around(sorted(self._kinds), there, whole=self._images.parent.name == "leftImg8bit_sequence")
        else:
            snippets = _in_thirties(sorted(there))
        missing = [_stem(key) for keys in snippets.values() for key in keys if key not in there]
        refuse_missing("Cityscapes: frames", missing, f"{self._images}/<city>/<name>_leftImg8bit.png")
        self._snippets = {_stem(key): keys for key, keys in snippets.items()}
        self.names = tuple(self._snippets)

    def length(self, name: str) -> int:
        return len(self._snippets[name])

    def labelled(self, name: str) -> tuple[int, ...]:
        return self.files(name).labelled

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        return self.files(name).read(frames)

    def files(self, name: str) -> FileVideo:
        keys = self._snippets[name]
        kind = self._kinds[next(key for key in keys if _stem(key) == name)] if self._annotated else "gtFine_labelIds"
        frames = []
        for key in keys:
            image = self._images / key[0] / f"{_stem(key)}_leftImg8bit.png"
            labelled = self._annotated and _stem(key) == name
            frames.append(FrameFiles(key[2], image, self._labels / key[0] / f"{name}_{kind}.png" if labelled else None))
        table = _KINDS[kind.removeprefix("gtFine_")]
        return FileVideo(tuple(frames), table, self.rate, masks="some" if self._annotated else "none")


def _stem(key: _Key) -> str:
    return f"{key[1]}_{key[2]:06d}"


def _find_images(root: Path, split: str) -> Path:
    for folder in ("leftImg8bit_sequence", "leftImg8bit"):
        if (root / folder / split).is_dir():
            return root / folder / split
    raise DataError(
        f"Cityscapes: found no leftImg8bit_sequence/{split} and no leftImg8bit/{split} under {root}; "
        f"expected {root}/leftImg8bit_sequence/{split}/<city>"
    )


def _listing(folder: Path, kinds: Sequence[str]) -> dict[_Key, str]:
    """Map every frame in the city folders to its kind of file; of two files of a frame the later kind counts."""
    found: dict[_Key, str] = {}
    for kind in kinds:
        for path in folder.glob(f"*/[!.]*_{kind}.png"):
            match = _NAME.fullmatch(path.stem)
            if match is not None:
                found[path.parent.name, match["clip"], int(match["frame"])] = kind
    return found


def _around(labelled: Sequence[_Key], there: set[_Key], *, whole: bool) -> dict[_Key, list[_Key]]:
    """Give each annotated frame its 30 frames; without `whole`, only itself where no snippet has any neighbour."""
    snippets = {
        (city, clip, frame): [(city, clip, number) for number in range(frame - _BEFORE, frame - _BEFORE + _LENGTH)]
        for city, clip, frame in labelled
    }
    if whole or any(key in there for target, keys in snippets.items() for key in keys if key != target):
        return snippets
    return {target: [target] for target in snippets}


def _in_thirties(frames: Sequence[_Key]) -> dict[_Key, list[_Key]]:
    """Cut frames without labels into snippets of 30; each is named after its 20th frame, or else its last."""
    snippets: list[list[_Key]] = []
    for city, clip, number in frames:
        if not snippets or len(snippets[-1]) == _LENGTH or snippets[-1][-1] != (city, clip, number - 1):
            snippets.append([])
        snippets[-1].append((city, clip, number))
    return {keys[min(_BEFORE, len(keys) - 1)]: keys for keys in snippets}

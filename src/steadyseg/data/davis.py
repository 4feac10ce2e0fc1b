"""DAVIS 2016: short videos in which every frame has one mask, of the moving object; two classes.

F. Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from steadyseg.data.files import FileVideo, FrameFiles, LabelTable, listing, refuse_missing
from steadyseg.data.source import VideoSource
from steadyseg.types import ConfigError, DataError, Frame

VALIDATION = (
    *("blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout", "car-shadow", "cows", "dance-twirl", "dog"),
    *("drift-chicane", "drift-straight", "goat", "horsejump-high", "kite-surf", "libby", "motocross-jump"),
    *("paragliding-launch", "parkour", "scooter-black", "soapbox"),
)
"""The 20 clips of the official validation set, by name."""

SPLITS = {"train": VALIDATION[:15], "val": VALIDATION[15:], "all": VALIDATION}

_LAYOUTS = (  # folders of images and masks, and what the pixels of a mask mean
    ("images", "labels", LabelTable({0: 0, 1: 1})),
    ("JPEGImages/480p", "Annotations/480p", LabelTable({0: 0, 255: 1}, {(0, 0, 0): 0, (255, 255, 255): 1})),
)


class DAVISSource(VideoSource):
    """One split of the 20 validation clips of DAVIS 2016.

    The compact layout, 427x240::

        images/<clip>/<5 digits>.jpg
        labels/<clip>/<5 digits>.png             0 background, 1 foreground

    The official layout, 854x480; other clips in it are not read::

        JPEGImages/480p/<clip>/<5 digits>.jpg
        Annotations/480p/<clip>/<5 digits>.png   0 background, 255 foreground

    The splits are our own, for development: "train" is the first 15 clips by name, "val" the last 5, "all" the 20 of
    the official validation set. Scores on "val" do not compare with published ones.

    The frame rate is not stated; 24 a second is what the videos are usually played at.
    """

    classes = ("background", "foreground")
    palette = ((0, 0, 0), (128, 0, 0))
    rate = 24.0

    def __init__(self, root: Path, split: str = "train") -> None:
        """Find the files of a split.

        Raises:
            ConfigError: if there is no such split.
            DataError: if the layout is not found, or a clip, a frame or a mask is missing.
        """
        if split not in SPLITS:
            raise ConfigError(f"DAVIS has no split '{split}'; known are {', '.join(SPLITS)}")
        images, masks, table = _find(Path(root))
        self.names = SPLITS[split]
        missing = [name for name in self.names if not listing(images / name)]
        refuse_missing(f"DAVIS: frames of clips of {split}", missing, f"{images}/<clip>/<5 digits>.jpg")
        self._videos = {name: self._video(images / name, masks / name, table) for name in self.names}

    def length(self, name: str) -> int:
        return len(self._videos[name].frames)

    def labelled(self, name: str) -> tuple[int, ...]:
        return self._videos[name].labelled

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        return self._videos[name].read(frames)

    def files(self, name: str) -> FileVideo:
        return self._videos[name]

    def _video(self, images: Path, masks: Path, table: LabelTable) -> FileVideo:
        found = {path.stem: path for path in listing(images)}
        wrong = [path.name for stem, path in found.items() if not stem.isdigit()]
        if wrong:
            raise DataError(f"DAVIS: {images}/{wrong[0]} has no number for a name; expected 5 digits")
        known = {path.stem for path in listing(masks, (".png",))}
        refuse_missing(f"DAVIS: masks of {images.name}", sorted(found.keys() - known), f"{masks}/<5 digits>.png")
        frames = (FrameFiles(int(stem), path, masks / f"{stem}.png") for stem, path in found.items())
        return FileVideo(tuple(frames), table, self.rate, masks="every")


def _find(root: Path) -> tuple[Path, Path, LabelTable]:
    for images, masks, table in _LAYOUTS:
        if (root / images).is_dir():
            return root / images, root / masks, table
    raise DataError(f"DAVIS: found no images/ and no JPEGImages/480p/ under {root}; expected {root}/images/<clip>")

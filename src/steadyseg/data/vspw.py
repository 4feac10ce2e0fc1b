"""VSPW: densely annotated videos of all kinds of scenes, 124 classes, 15 frames a second, 480p layout.

J. Miao et al., "VSPW: A Large-scale Dataset for Video Scene Parsing in the Wild", CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from steadyseg.data.files import FileVideo, FrameFiles, LabelTable, listing, read_list, read_raw, refuse_missing
from steadyseg.data.source import VideoSource
from steadyseg.types import IGNORE, ConfigError, DataError, Frame, default_palette

_NAMES = """
wall ceiling door stair ladder escalator Playground_slide handrail_or_fence window rail goal pillar pole floor ground
grass sand athletic_field road path crosswalk building house bridge tower windmill well_or_well_lid other_construction
sky mountain stone wood ice snowfield grandstand sea river lake waterfall water billboard_or_Bulletin_Board sculpture
pipeline flag parasol_or_umbrella cushion_or_carpet tent roadblock car bus truck bicycle motorcycle wheeled_machine
ship_or_boat raft airplane tyre traffic_light lamp person cat dog horse cattle other_animal tree flower other_plant
toy ball_net backboard skateboard bat ball cupboard_or_showcase_or_storage_rack box traveling_case_or_trolley_case
basket bag_or_package trash_can cage plate tub_or_bowl_or_pot bottle_or_cup barrel fishbowl bed pillow table_or_desk
chair_or_seat bench sofa shelf bathtub gun commode roaster other_machine refrigerator washing_machine Microwave_oven
fan curtain textiles clothes painting_or_poster mirror flower_pot_or_vase clock book tool blackboard tissue
screen_or_television computer printer Mobile_phone keyboard other_electronic_product fruit food instrument train
"""
CLASSES = tuple(_NAMES.split())
"""In the order of the train ids: the stored value minus one."""

_TABLE = LabelTable({0: IGNORE, IGNORE: IGNORE, **{value: value - 1 for value in range(1, len(CLASSES) + 1)}})
"""0 is "others" and 255 void, both ignored; 1..124 are the classes."""


class VSPWSource(VideoSource):
    """One split of VSPW::

        train.txt  val.txt  test.txt            one video a line
        data/<video>/origin/<8 digits>.jpg      frames, in the order of their names
        data/<video>/mask/<same name>.png       0 others, 1..124 classes, 255 void; none in test

    Frame numbers may start anywhere and have gaps; sizes differ between videos.
    """

    classes = CLASSES
    palette = default_palette(len(CLASSES))
    rate = 15.0

    def __init__(self, root: Path, split: str = "train") -> None:
        """Find the files of a split.

        Raises:
            ConfigError: if there is no such split.
            DataError: if the layout is not found or a listed video has no frames.
        """
        self._data = Path(root) / "data"
        if not self._data.is_dir():
            raise DataError(f"VSPW: found no data/ under {root}; expected {root}/data/<video>/origin")
        file = Path(root) / f"{split}.txt"
        if not file.is_file():
            raise ConfigError(f"VSPW has no split '{split}': found no {file}; known are train, val, test")
        self.names = tuple(read_list(file))
        self._annotated = split != "test"
        self._frames = {name: tuple(path.name for path in self._list(name, "origin")) for name in self.names}
        missing = [name for name in self.names if not self._frames[name]]
        refuse_missing(f"VSPW: frames of videos of {split}.txt", missing, f"{self._data}/<video>/origin/*.jpg")
        self._masks = {name: frozenset(path.stem for path in self._list(name, "mask")) for name in self.names}

    def length(self, name: str) -> int:
        return len(self._frames[name])

    def labelled(self, name: str) -> tuple[int, ...]:
        return self.files(name).labelled

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        return self.files(name).read(frames)

    def raw_labels(self, name: str, frame: int) -> Tensor:
        """Return the mask uint8 [H, W] as stored, where 0 (others) and 255 (void) stay distinct.

        Raises:
            DataError: if the frame has no mask or it cannot be read.
        """
        files = self.files(name).frames[frame]
        if files.mask is None:
            raise DataError(f"VSPW: {files.image} has no mask")
        return read_raw(files.mask)

    def files(self, name: str) -> FileVideo:
        frames = (self._data / name / "origin" / file for file in self._frames[name])
        masks = self._data / name / "mask"
        pairs = tuple(
            FrameFiles(_number(path), path, masks / f"{path.stem}.png" if path.stem in self._masks[name] else None)
            for path in frames
        )
        return FileVideo(pairs, _TABLE, self.rate, masks="every" if self._annotated else "none")

    def _list(self, name: str, kind: str) -> list[Path]:
        if kind == "mask":
            return listing(self._data / name / kind, (".png",)) if self._annotated else []
        return listing(self._data / name / kind)


def _number(path: Path) -> int:
    if not path.stem.isdigit():
        raise DataError(f"VSPW: {path} has no number for a name; expected 8 digits, or a leading dot to hide the file")
    return int(path.stem)

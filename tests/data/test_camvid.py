"""CamVid in both layouts, and the real copy where there is one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from trees import SIZE, camvid_tree, picture, save, write

from steadyseg.data import streets
from steadyseg.data.camvid import COLOURS, CamVidSource
from steadyseg.types import IGNORE, ConfigError, DataError


def test_camvid_cuts_a_sequence_into_evenly_spaced_runs(tmp_path: Path) -> None:
    source = CamVidSource(camvid_tree(tmp_path), "train")
    assert source.names == ("0016E5_00000", "0016E5_00091", "0016E5_00120")
    assert [source.length(name) for name in source.names] == [3, 1, 2]
    assert [source.labelled(name) for name in source.names] == [(0, 1, 2), (0,), (0, 1)]
    assert source.rate == 1.0
    frame = list(source.read("0016E5_00000"))[2]
    assert frame.index == 2
    assert frame.time == 2.0
    assert frame.image.shape == (3, *SIZE)
    assert frame.labels is not None
    assert frame.labels.unique().tolist() == [60 % 11]
    assert [frame.index for frame in source.read("0016E5_00000", [2, 0, 0])] == [2, 0, 0]
    assert len(source.classes) == len(source.palette) == 11


def test_camvid_ids_from_11_are_ignored(tmp_path: Path) -> None:
    camvid_tree(tmp_path)
    save(tmp_path / "labels" / "0016E5_00000_L.png", np.array([[10, 11, 12, 200, 255, 0]] * 4, np.uint8))
    frame = next(CamVidSource(tmp_path).read("0016E5_00000"))
    assert frame.labels is not None
    assert frame.labels[0].tolist() == [10, 255, 255, 255, 255, 0]


def test_camvid_label_colours(tmp_path: Path) -> None:
    camvid_tree(tmp_path)
    file = tmp_path / "labels" / "0016E5_00000_L.png"
    save(file, np.array([list(COLOURS)] * 1, np.uint8))
    picture_of_that_size = np.zeros((1, len(COLOURS), 3), np.uint8)
    save(tmp_path / "images" / "0016E5_00000.png", picture_of_that_size)
    frame = next(CamVidSource(tmp_path).read("0016E5_00000"))
    assert frame.labels is not None
    assert len(COLOURS) == 32
    assert frame.labels[0].tolist() == list(COLOURS.values())
    assert frame.labels.unique().tolist() == [*range(11), IGNORE]


def test_camvid_unknown_colours_are_counted(tmp_path: Path) -> None:
    camvid_tree(tmp_path)
    mask = np.zeros((*SIZE, 3), np.uint8)
    mask[0, :4] = (255, 69, 0)
    mask[1, :2] = (60, 40, 222)
    save(tmp_path / "labels" / "0016E5_00000_L.png", mask)
    with pytest.raises(DataError, match=r"no class: 255 69 0 \(4 pixels\), 60 40 222 \(2 pixels\); expected"):
        next(CamVidSource(tmp_path).read("0016E5_00000"))
    write(tmp_path / "colours.txt", ["0 0 0 11", "255 69 0 3", "60 40 222 4"])
    frame = next(CamVidSource(tmp_path).read("0016E5_00000"))
    assert frame.labels is not None
    assert frame.labels[:, 0].tolist() == [3, 4, 255, 255]
    write(tmp_path / "colours.txt", ["0 0 0"])
    with pytest.raises(DataError, match="has the line '0 0 0'"):
        CamVidSource(tmp_path)


def test_camvid_many_unknown_colours_are_cut_short(tmp_path: Path) -> None:
    camvid_tree(tmp_path)
    mask = np.arange(24, dtype=np.uint8).reshape(*SIZE)[..., None].repeat(3, axis=2)
    save(tmp_path / "labels" / "0016E5_00000_L.png", mask)
    with pytest.raises(DataError, match=r"\(1 pixels\) and 13 more; expected"):
        next(CamVidSource(tmp_path).read("0016E5_00000"))


def test_camvid_missing_files_are_named_at_start(tmp_path: Path) -> None:
    camvid_tree(tmp_path)
    (tmp_path / "labels" / "0016E5_00091_L.png").unlink()
    with pytest.raises(DataError, match=r"labels of train.txt are missing: 0016E5_00091; expected .*<name>_L.png"):
        CamVidSource(tmp_path)
    write(tmp_path / "train.txt", [f"0016E5_{number:05d}" for number in range(1, 14)])
    with pytest.raises(DataError, match=r"images of train.txt are missing: 0016E5_00001, .*_00010 and 3 more"):
        CamVidSource(tmp_path)


def test_camvid_wrong_folder_and_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CamVid: found no images/ under"):
        CamVidSource(tmp_path)
    with pytest.raises(ConfigError, match=r"no split 'vall': .*known are train"):
        CamVidSource(camvid_tree(tmp_path), "vall")
    write(tmp_path / "train.txt", "noname\n")
    picture(tmp_path / "images" / "noname.png")
    save(tmp_path / "labels" / "noname_L.png", 0)
    with pytest.raises(DataError, match="'noname' is no frame name"):
        CamVidSource(tmp_path)


def test_camvid_mask_must_have_the_size_of_its_image(tmp_path: Path) -> None:
    camvid_tree(tmp_path)
    save(tmp_path / "labels" / "0016E5_00000_L.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(DataError, match=r"_L.png is 3x2, but its image is 6x4"):
        next(CamVidSource(tmp_path).read("0016E5_00000"))


def decoded(root: Path, sequence: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        picture(root / "sequence" / sequence / f"{sequence}_{number:06d}.png", number)


def test_camvid_decoded_frames_lie_between_and_before_the_labels(tmp_path: Path) -> None:
    camvid_tree(tmp_path, ["0016E5_00040", "0016E5_00070"])
    decoded(tmp_path, "0016E5", range(80))
    source = CamVidSource(tmp_path)
    (name,) = source.names
    assert source.rate == 30
    assert source.length(name) == 61  # 10..70
    assert source.labelled(name) == (30, 60)
    frames = list(source.read(name, [29, 30, 31]))
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [39, 1, 41]  # the labelled frame has its own picture
    assert [frame.labels is None for frame in frames] == [True, False, True]
    assert frames[1].time == 1.0
    (tmp_path / "sequence" / "0016E5" / "0016E5_000055.png").unlink()
    with pytest.raises(DataError, match=r"decoded frames are missing: 0016E5_000055\.png"):
        CamVidSource(tmp_path)


def test_camvid_dense_runs_keep_their_own_frames(tmp_path: Path) -> None:
    stems = [f"0016E5_{number:05d}" for number in range(59, 69, 2)]
    camvid_tree(tmp_path, stems, "val")
    decoded(tmp_path, "0016E5", range(80))
    source = CamVidSource(tmp_path, "val")
    assert source.labelled(source.names[0]) == (0, 1, 2, 3, 4)
    assert source.rate == 15


def test_camvid_frame_numbers_that_only_a_file_knows(tmp_path: Path) -> None:
    camvid_tree(tmp_path, ["Seq05VD_f00000", "Seq05VD_f00030"], "test")
    decoded(tmp_path, "Seq05VD", range(40))
    with pytest.raises(DataError, match=r"expected a line 'Seq05VD_f00000 Seq05VD_<frame:6>' in .*frames.txt"):
        CamVidSource(tmp_path, "test")
    write(tmp_path / "frames.txt", ["Seq05VD_f00000 Seq05VD_000003", "Seq05VD_f00030 Seq05VD_000033"])
    source = CamVidSource(tmp_path, "test")
    assert source.labelled(source.names[0]) == (3, 33)
    write(tmp_path / "frames.txt", ["Seq05VD_f00000"])
    with pytest.raises(DataError, match="has the line 'Seq05VD_f00000'"):
        CamVidSource(tmp_path, "test")


def test_camvid_compact_layout(tmp_path: Path) -> None:
    write(tmp_path / "splits" / "val.txt", ["0016E5_00001", "0016E5_00003", "0016E5_00005"])
    for number in (1, 3, 5):
        picture(tmp_path / "images" / "val" / f"0016E5_0000{number}.jpg", number)
        save(tmp_path / "labels" / "val" / f"0016E5_0000{number}.png", 10 + number % 2, palette=True)
    source = CamVidSource(tmp_path, "val")
    assert source.rate == 15
    assert source.length("0016E5_00001") == 3
    assert all(frame.labels is not None and frame.labels.unique().item() == 255 for frame in source.read(*source.names))


@pytest.mark.parametrize(("split", "count", "rate"), [("train", 367, 1), ("val", 101, 15), ("test", 233, 1)])
def test_camvid_real_copy(data_root: Path, split: str, count: int, rate: float) -> None:
    source = CamVidSource(data_root / "camvid", split)
    assert source.rate == rate
    assert sum(source.length(name) for name in source.names) == count
    told = json.loads((data_root / "camvid" / "sequences.json").read_text(encoding="utf-8"))["sequences"]
    runs = {run["first"]: run["frames"] for entry in told if entry["split"] == split for run in entry["runs"]}
    assert {name: source.length(name) for name in source.names} == runs
    frame = next(source.read(source.names[0]))
    assert frame.labels is not None
    assert frame.labels.shape == (360, 480)


def test_camvid_real_classes(data_root: Path) -> None:
    told = json.loads((data_root / "camvid" / "classes.json").read_text(encoding="utf-8"))["classes"]
    assert [entry["name"] for entry in told[:11]] == list(CamVidSource.classes)
    assert [tuple(entry["color"]) for entry in told[:11]] == list(CamVidSource.palette)


def test_camvid_has_the_classes_of_streets() -> None:
    assert CamVidSource.classes == streets.CLASSES
    assert CamVidSource.palette == streets.PALETTE

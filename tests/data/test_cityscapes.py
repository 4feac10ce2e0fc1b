"""Cityscapes snippets, with and without the sequence package."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import cityscapes_tree, picture, save

from steadyseg.data.cityscapes import CityscapesSource
from steadyseg.types import ConfigError, DataError


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
@pytest.mark.parametrize("folder", ["leftImg8bit_sequence", "leftImg8bit"])
def test_cityscapes_20th_frame_is_labelled(tmp_path: Path, kind: str, folder: str) -> None:
    source = CityscapesSource(cityscapes_tree(tmp_path, kind=kind, folder=folder), "val")
    assert source.names == ("ulm_000001_000025",)
    name = source.names[0]
    assert source.length(name) == 30
    assert source.labelled(name) == (19,)
    before, frame = source.read(name, [18, 19])
    assert before.labels is None
    assert frame.labels is not None
    assert int(frame.image[0, 0, 0]) == 25
    assert frame.labels[0].tolist() == [0, 18, 255, 255, 2, 255]
    assert frame.time == pytest.approx(19 / 17)
    assert len(source.classes) == len(source.palette) == 19


def test_cityscapes_prefers_train_ids(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path)
    save(tmp_path / "gtFine" / "val" / "ulm" / "ulm_000001_000025_gtFine_labelTrainIds.png", 4)
    source = CityscapesSource(tmp_path, "val")
    (frame,) = source.read(source.names[0], [19])
    assert frame.labels is not None
    assert frame.labels.unique().tolist() == [4]


def test_cityscapes_labels_outside_the_ids(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path)
    save(tmp_path / "gtFine" / "val" / "ulm" / "ulm_000001_000025_gtFine_labelIds.png", 40)
    with pytest.raises(DataError, match=r"labelIds.png has label value 40 \(24 pixels\); expected 0-33, 255"):
        list(CityscapesSource(tmp_path, "val").read("ulm_000001_000025"))


def test_cityscapes_missing_frames_are_named(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path)
    (tmp_path / "leftImg8bit_sequence" / "val" / "ulm" / "ulm_000001_000024_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match="frames are missing: ulm_000001_000024; expected"):
        CityscapesSource(tmp_path, "val")


def test_cityscapes_labelled_frames_alone_are_videos_of_one_frame(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path, folder="elsewhere")
    picture(tmp_path / "leftImg8bit" / "val" / "ulm" / "ulm_000001_000025_leftImg8bit.png")
    source = CityscapesSource(tmp_path, "val")
    assert source.length("ulm_000001_000025") == 1
    assert source.labelled("ulm_000001_000025") == (0,)


def test_cityscapes_test_split(tmp_path: Path) -> None:
    source = CityscapesSource(cityscapes_tree(tmp_path), "test")
    assert source.names == ("ulm_000001_000019", "ulm_000001_000032")
    assert [source.length(name) for name in source.names] == [30, 3]
    assert source.labelled("ulm_000001_000019") == ()


def test_cityscapes_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'dev'"):
        CityscapesSource(tmp_path, "dev")
    with pytest.raises(DataError, match="found no leftImg8bit_sequence/val and no leftImg8bit/val"):
        CityscapesSource(tmp_path, "val")
    cityscapes_tree(tmp_path, kind="color")
    with pytest.raises(DataError, match=r"found no masks under .*gtFine/val"):
        CityscapesSource(tmp_path, "val")

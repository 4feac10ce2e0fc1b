"""VSPW: labels, traps and missing parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import RAW, picture, save, vspw_tree, write

from steadyseg.data.vspw import VSPWSource
from steadyseg.types import ConfigError, DataError


def test_vspw_labels(tmp_path: Path) -> None:
    source = VSPWSource(vspw_tree(tmp_path), "val")
    assert source.names == ("b",)
    assert source.length("b") == 3
    assert source.labelled("b") == (0, 1, 2)
    frames = list(source.read("b"))
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert frames[1].time == pytest.approx(1 / 15)
    assert frames[0].labels is not None
    assert frames[0].labels[0].tolist() == [255, 0, 123, 255, 1, 2]
    assert source.raw_labels("b", 0).tolist() == RAW.tolist()
    assert len(source.classes) == len(source.palette) == 124
    assert (source.classes[0], source.classes[60], source.classes[123]) == ("wall", "person", "train")


@pytest.mark.parametrize("value", [125, 252, 254])
def test_vspw_values_that_are_no_class(tmp_path: Path, value: int) -> None:
    vspw_tree(tmp_path)
    save(tmp_path / "data" / "b" / "mask" / "00000018.png", value)
    source = VSPWSource(tmp_path, "val")
    with pytest.raises(DataError, match=rf"00000018.png has label value {value} .*expected 0-124, 255"):
        list(source.read("b"))


def test_vspw_test_split_has_no_labels(tmp_path: Path) -> None:
    source = VSPWSource(vspw_tree(tmp_path), "test")
    assert source.labelled("c") == ()
    assert next(source.read("c")).labels is None
    with pytest.raises(DataError, match="has no mask"):
        source.raw_labels("c", 0)


def test_vspw_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"VSPW: found no data/ under .*; expected .*/data/<video>/origin"):
        VSPWSource(tmp_path)
    vspw_tree(tmp_path)
    with pytest.raises(ConfigError, match="VSPW has no split 'valid'"):
        VSPWSource(tmp_path, "valid")
    write(tmp_path / "train.txt", ["a", "x", "y"])
    with pytest.raises(DataError, match=r"frames of videos of train.txt are missing: x, y; expected"):
        VSPWSource(tmp_path)
    picture(tmp_path / "data" / "a" / "origin" / "cover.jpg")
    write(tmp_path / "train.txt", "a")
    with pytest.raises(DataError, match=r"cover.jpg has no number for a name"):
        VSPWSource(tmp_path).labelled("a")

"""DAVIS 2016 in both layouts, and the real copy where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trees import SIZE, picture, save

from steadyseg.data import SourceConfig, open_source
from steadyseg.data.check import check
from steadyseg.data.davis import SPLITS, VALIDATION, DAVISSource
from steadyseg.types import ConfigError, DataError

MASK = np.array([[0, 0, 1, 1, 0, 1]] * 4, np.uint8)


def compact(root: Path) -> Path:
    for clip in VALIDATION:
        for number in range(2):
            picture(root / "images" / clip / f"{number:05d}.jpg", 40 * number)
            save(root / "labels" / clip / f"{number:05d}.png", MASK, palette=True)
    return root


def official(root: Path) -> Path:
    """Write a clip more than the 20; the masks of "goat" are RGB."""
    for clip in (*VALIDATION, "bear"):
        picture(root / "JPEGImages" / "480p" / clip / "00000.jpg")
        mask = MASK * 255
        save(root / "Annotations" / "480p" / clip / "00000.png", np.stack((mask,) * 3, -1) if clip == "goat" else mask)
    return root


def test_splits_part_the_official_validation_set() -> None:
    assert SPLITS["train"] + SPLITS["val"] == SPLITS["all"] == VALIDATION
    assert (len(SPLITS["train"]), len(SPLITS["val"])) == (15, 5)
    assert list(VALIDATION) == sorted(VALIDATION)


def test_compact_layout(tmp_path: Path) -> None:
    source = DAVISSource(compact(tmp_path), "val")
    assert source.names == ("motocross-jump", "paragliding-launch", "parkour", "scooter-black", "soapbox")
    assert source.length("parkour") == 2
    assert source.labelled("parkour") == (0, 1)
    first, second = source.read("parkour")
    assert first.image.shape == (3, *SIZE)
    assert (second.index, second.time) == (1, 1 / 24)
    assert second.image.float().mean() == pytest.approx(40, abs=1)
    assert second.labels is not None
    assert second.labels.tolist() == MASK.tolist()
    assert [frame.index for frame in source.read("parkour", [1, 0, 1])] == [1, 0, 1]
    assert len(source.classes) == len(source.palette) == 2
    assert check(source) == []


def test_official_layout(tmp_path: Path) -> None:
    source = DAVISSource(official(tmp_path), "all")
    assert source.names == VALIDATION  # "bear" is a training clip
    for clip in ("goat", "dog"):
        (frame,) = source.read(clip)
        assert frame.labels is not None
        assert frame.labels.tolist() == MASK.tolist()
    assert check(source) == []


def test_values_that_are_no_class(tmp_path: Path) -> None:
    compact(tmp_path)
    save(tmp_path / "labels" / "dog" / "00001.png", 255)
    with pytest.raises(DataError, match=r"00001.png has label value 255 \(24 pixels\); expected 0-1$"):
        list(DAVISSource(tmp_path).read("dog"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"DAVIS: found no images/ and no JPEGImages/480p/ under .*; expected"):
        DAVISSource(tmp_path)
    compact(tmp_path)
    with pytest.raises(ConfigError, match="DAVIS has no split 'test'; known are train, val, all"):
        DAVISSource(tmp_path, "test")
    (tmp_path / "labels" / "dog" / "00001.png").unlink()
    with pytest.raises(DataError, match=r"DAVIS: masks of dog are missing: 00001; expected .*labels/dog"):
        DAVISSource(tmp_path)
    DAVISSource(tmp_path, "val")
    picture(tmp_path / "images" / "soapbox" / "cover.jpg")
    with pytest.raises(DataError, match=r"soapbox/cover.jpg has no number for a name; expected 5 digits"):
        DAVISSource(tmp_path, "val")
    for path in (tmp_path / "images" / "camel").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"DAVIS: frames of clips of train are missing: camel; expected"):
        DAVISSource(tmp_path)


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$STEADYSEG_DATA/davis, or davis2016val where that is there; other sources have their own name only."""
    monkeypatch.setenv("STEADYSEG_DATA", str(tmp_path))
    config = SourceConfig(source="davis", split="all")
    with pytest.raises(ConfigError, match=r"davis is not a folder; set its root, or change STEADYSEG_DATA"):
        open_source(config)
    official(tmp_path / "davis")
    assert open_source(config).length("dog") == 1
    compact(tmp_path / "davis2016val")
    assert open_source(config).length("dog") == 2
    assert open_source(SourceConfig(source="davis", split="all", root=str(tmp_path / "davis"))).length("dog") == 1


def test_real_copy(data_root: Path) -> None:
    source = open_source(SourceConfig(source="davis", split="all", root=str(data_root / "davis2016val")))
    told = json.loads((data_root / "davis2016val" / "sequences.json").read_text(encoding="utf-8"))["sequences"]
    counts = {name: source.length(name) for name in source.names}
    assert sum(counts.values()) == 1376
    assert (min(counts.values()), max(counts.values())) == (40, 104)
    assert counts == {clip["name"]: clip["frames"] for clip in told}
    (frame,) = source.read("camel", [30])
    assert frame.image.shape == (3, 240, 427)
    assert frame.labels is not None
    assert frame.labels.shape == (240, 427)
    assert frame.labels.unique().tolist() == [0, 1]

"""Masks and images are read strictly."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trees import SIZE, save, write

from steadyseg.data.files import LabelTable, listing, read_image, read_labels, read_list
from steadyseg.types import IGNORE, DataError

TABLE = LabelTable({0: 0, 1: 1, 255: IGNORE})


def test_palette_masks_are_read_as_indices(tmp_path: Path) -> None:
    raw = np.array([[0, 1], [255, 1]], np.uint8)
    assert read_labels(save(tmp_path / "p.png", raw, palette=True), TABLE).tolist() == raw.tolist()
    assert read_labels(save(tmp_path / "g.png", raw), TABLE).tolist() == raw.tolist()


def test_one_bit_masks_hold_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "m.png")
    assert read_labels(tmp_path / "m.png", TABLE).tolist() == [[0, 1]]


def test_wrong_value_is_named_with_its_count(tmp_path: Path) -> None:
    file = save(tmp_path / "m.png", np.array([[0, 7], [7, 9]], np.uint8))
    with pytest.raises(DataError, match=r"m\.png has label value 7 \(2 pixels\), 9 \(1 pixels\); expected 0-1, 255"):
        read_labels(file, TABLE)


@pytest.mark.parametrize(("mode", "hint"), [("RGB", "no colour table"), ("RGBA", "transparency"), ("I;16", "8 bits")])
def test_other_kinds_of_mask_are_refused(tmp_path: Path, mode: str, hint: str) -> None:
    Image.new(mode, (2, 2)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=f"m.png is a mask of mode {mode}; .*{hint}"):
        read_labels(tmp_path / "m.png", TABLE)


def test_four_bit_grey_is_refused_as_its_values_would_be_stretched(tmp_path: Path) -> None:
    data = bytearray(save(tmp_path / "m.png", np.zeros((1, 1), np.uint8)).read_bytes())
    data[24] = 4  # bit depth, in the header chunk that ends in its checksum
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "m.png").write_bytes(data)
    with pytest.raises(DataError, match=r"m\.png has 2 or 4 bits of grey"):
        read_labels(tmp_path / "m.png", TABLE)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_empty_and_missing_images_are_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    file = save(tmp_path / f"i.{suffix}", noise)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"i\.{suffix} cannot be read as an image \(.*truncated"):
        read_image(file)
    file.write_bytes(b"")
    with pytest.raises(DataError, match="cannot identify"):
        read_image(file)
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "none.png")


def test_images_become_rgb(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "grey.png", 7)).tolist() == torch.full((3, *SIZE), 7).tolist()
    rgb = read_image(save(tmp_path / "c.png", np.array([[[1, 2, 3]]], np.uint8)))
    assert rgb.dtype == torch.uint8
    assert rgb[:, 0, 0].tolist() == [1, 2, 3]
    Image.new("I;16", (2, 2)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png is an image of mode I;16"):
        read_image(tmp_path / "deep.png")


def test_lists_are_trimmed_and_hidden_lines_skipped(tmp_path: Path) -> None:
    assert read_list(write(tmp_path / "l.txt", "\ufeffa \r\n\n.hidden\n# word\n b")) == ["a", "b"]
    with pytest.raises(DataError, match="lists no names"):
        read_list(write(tmp_path / "l.txt", "#\n"))
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="expected UTF-8"):
        read_list(tmp_path / "l.txt")


def test_listing_skips_hidden_files(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", ".c.jpg", "d.txt"):
        write(tmp_path / name, "")
    assert [path.name for path in listing(tmp_path)] == ["a.PNG", "b.jpg"]
    assert listing(tmp_path / "none") == []

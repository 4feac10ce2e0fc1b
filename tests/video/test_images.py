"""Images as videos, label images, and outputs that appear complete or not at all."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import PALETTE

from steadyseg.types import IGNORE, ConfigError, DataError, ShapeError
from steadyseg.video import LabelWriter, read, write_image
from steadyseg.video.images import find, read_image
from steadyseg.video.output import Output


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("LA", (50, 9), (50, 50, 50)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, value: object, expected: tuple[int, ...]) -> None:
    Image.new(mode, (7, 5), value).save(tmp_path / "a.png")  # type: ignore[arg-type]
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 5, 7) and image.dtype == torch.uint8
    assert tuple(image[:, 0, 0].tolist()) == expected


def test_palette_images_show_their_colors(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[:, 0, 0].tolist() == [10, 20, 30]


def test_exif_turns_an_image_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg").float().mean(0)
    assert image.shape == (32, 16) and image[:6, -6:].mean() > 240


def test_values_no_image_should_hold(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 7), 0.5, dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif holds float32 values"):
        read_image(tmp_path / "a.tif")


def test_a_broken_image_is_named_and_skipped_only_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        Image.effect_noise((64, 48), 60).save(tmp_path / f"{number}.png")
    broken = tmp_path / "1.png"
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(DataError, match=r"frame 1: .*1\.png cannot be decoded .* \(--on-error skip\)"):
        list(read(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert [frame.index for frame in read(tmp_path, on_error="skip")] == [0, 2]
    assert "frame 1 skipped" in caplog.text


def test_sizes_that_differ(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "0.png")
    Image.new("RGB", (5, 7)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"frame 1: .*1\.png is 5x7, the first is 7x5"):
        list(read(tmp_path))


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b10.JPG", "b9.jpg", "a.png", ".hidden.png", "x.txt", "v.mp4"):
        (tmp_path / name).touch()
    assert [path.name for path in find(tmp_path) or []] == ["a.png", "b9.jpg", "b10.JPG"]
    assert find(tmp_path / "v.mp4") is None
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in find("b*.jpg") or []] == ["b9.jpg"]
    (tmp_path / "odd[1].png").touch()
    assert find(tmp_path / "odd[1].png") == [tmp_path / "odd[1].png"]


def test_labels_are_indexed_pngs(tmp_path: Path) -> None:
    preds = torch.tensor([[0, 1, 2], [IGNORE, 1, 0]], dtype=torch.uint8)
    with LabelWriter(tmp_path / "labels", PALETTE) as writer:
        for index in (0, 7):
            writer.write(preds, index)
        assert not (tmp_path / "labels").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["000000.png", "000007.png", "labels"]
    with Image.open(tmp_path / "labels" / "000007.png") as image:
        assert image.mode == "P"
        assert torch.equal(torch.from_numpy(np.array(image)), preds)
        assert image.convert("RGB").getpixel((2, 0)) == PALETTE[2]


def test_labels_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    preds = torch.zeros(4, 4, dtype=torch.uint8)
    with pytest.raises(KeyboardInterrupt), LabelWriter(tmp_path / "labels", PALETTE) as writer:
        writer.write(preds, 0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ShapeError, match=r"preds is torch\.int64"), LabelWriter(tmp_path / "labels", PALETTE) as writer:
        writer.write(preds.long(), 0)


def test_label_folders_that_are_refused_or_replaced(tmp_path: Path) -> None:
    folder, preds = tmp_path / "labels", torch.zeros(4, 4, dtype=torch.uint8)
    folder.mkdir()
    with LabelWriter(folder, PALETTE) as writer:  # an empty folder is no loss
        writer.write(preds, 0)
    with pytest.raises(ConfigError, match="exists"):
        LabelWriter(folder, PALETTE)
    with pytest.raises(ConfigError, match="is the input itself"):
        LabelWriter(folder, PALETTE, source=folder, overwrite=True)
    with LabelWriter(folder, PALETTE, overwrite=True) as writer:
        writer.write(preds, 3)
    assert [path.name for path in folder.iterdir()] == ["000003.png"]
    (folder / "thesis.txt").touch()
    with pytest.raises(ConfigError, match=r"also holds thesis\.txt"), LabelWriter(folder, PALETTE, overwrite=True):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"), LabelWriter(tmp_path / "file", PALETTE, overwrite=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "labels"]


def test_write_image(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    write_image(tmp_path / "a.png", image)
    assert torch.equal(read_image(tmp_path / "a.png"), image)
    with pytest.raises(ConfigError, match="exists"):
        write_image(tmp_path / "a.png", image)
    with pytest.raises(ConfigError, match="no image ending"):
        write_image(tmp_path / "a.mp4", image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_an_output_follows_links_and_survives_a_failed_rename(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    output = Output(tmp_path / "link.txt", overwrite=True)
    output.open_file()
    output.part.write_text("new")
    output.commit()
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"
    output.open_file()
    output.part.unlink()
    with pytest.raises(DataError, match=r"real\.txt cannot be written"):
        output.commit()
    assert (tmp_path / "real.txt").read_text() == "new"

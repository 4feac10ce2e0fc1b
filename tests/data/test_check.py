"""The audit finds everything that is wrong, and goes on after each error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from trees import camvid_tree, cityscapes_tree, folder_tree, movie, picture, save, vspw_tree, write

from steadyseg.data.camvid import CamVidSource
from steadyseg.data.check import Finding, check
from steadyseg.data.cityscapes import CityscapesSource
from steadyseg.data.folder import FolderSource
from steadyseg.data.source import VideoSource
from steadyseg.data.vspw import VSPWSource
from steadyseg.types import Frame


def brief(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, Path(finding.file).name) for finding in findings]


def test_sound_data_have_no_findings(tmp_path: Path) -> None:
    frames = []
    assert check(CamVidSource(camvid_tree(tmp_path / "c")), on_frame=lambda: frames.append(1)) == []
    assert len(frames) == 6
    assert check(CityscapesSource(cityscapes_tree(tmp_path / "s"), "val")) == []
    assert check(CityscapesSource(tmp_path / "s", "test")) == []
    assert check(FolderSource(folder_tree(tmp_path / "f"))) == []


def test_every_kind_of_damage_is_found_in_one_go(tmp_path: Path) -> None:
    root = tmp_path / "data" / "b"
    write(tmp_path / "val.txt", "b")
    for number in range(10):
        picture(root / "origin" / f"{number:08d}.jpg", number)
        save(root / "mask" / f"{number:08d}.png", 1)
    broken = root / "origin" / "00000001.jpg"
    broken.write_bytes(broken.read_bytes()[:-60])
    save(root / "mask" / "00000002.png", 252)
    save(root / "mask" / "00000003.png", np.zeros((4, 6, 3), np.uint8))
    Image.new("RGBA", (6, 4)).save(root / "mask" / "00000004.png")
    save(root / "origin" / "00000005.jpg", np.zeros((8, 6, 3), np.uint8))
    (root / "mask" / "00000006.png").unlink()
    (root / "origin" / "00000007.jpg").unlink()
    (root / "mask" / "00000009.png").write_bytes(b"")
    findings = check(VSPWSource(tmp_path, "val"))
    assert brief(findings) == [
        ("image", "00000001.jpg"),
        ("label value", "00000002.png"),
        ("mask form", "00000003.png"),
        ("mask form", "00000004.png"),
        ("size", "00000005.png"),
        ("mask", "00000009.png"),
        ("size", "00000005.jpg"),
        ("gap", "00000008.jpg"),
        ("missing mask", "00000006.jpg"),
    ]
    texts = {finding.kind: finding.text for finding in findings}
    assert texts["label value"] == "has label value 252 (24 pixels); expected 0-124, 255"
    assert texts["size"] == "is 6x8, most of its video is 6x4"
    assert texts["gap"] == "follows frame 6 of b after 2; expected 1"


def test_steady_steps_of_numbers_are_no_gaps(tmp_path: Path) -> None:
    source = VSPWSource(vspw_tree(tmp_path), "test")
    assert brief(check(source)) == [("gap", "00000020.jpg")]
    for number in (22, 24, 26):
        picture(tmp_path / "data" / "c" / "origin" / f"{number:08d}.jpg")
    (tmp_path / "data" / "c" / "origin" / "00000017.jpg").unlink()
    assert check(VSPWSource(tmp_path, "test")) == []


def test_colours_that_stand_for_no_class(tmp_path: Path) -> None:
    camvid_tree(tmp_path)
    save(tmp_path / "labels" / "0016E5_00030_L.png", np.full((4, 6, 3), 9, np.uint8))
    (finding,) = check(CamVidSource(tmp_path))
    assert finding.kind == "label value"
    assert "9 9 9 (24 pixels)" in finding.text


def test_video_without_any_frame_or_mask(tmp_path: Path) -> None:
    folder_tree(tmp_path)
    (tmp_path / "images" / "empty").mkdir()
    picture(tmp_path / "images" / "plain" / "0.png")
    assert brief(check(FolderSource(tmp_path))) == [("empty video", "empty"), ("missing mask", "plain")]


def test_movie_that_was_cut_after_opening(tmp_path: Path) -> None:
    write(tmp_path / "classes.yaml", "names: [back]")
    file = movie(tmp_path / "videos" / "m.mp4", range(0, 60, 10))
    save(tmp_path / "masks" / "m" / "2.png", np.zeros((16, 16), np.uint8))
    source = FolderSource(tmp_path)
    assert check(source) == []
    movie(file, range(0, 40, 10))
    findings = check(source)
    assert brief(findings) == [("image", "m.mp4, frame 4"), ("image", "m.mp4, frame 5")]
    assert findings[0].text.startswith("frame 4 cannot be decoded")


class Made(VideoSource):
    """A generated source with one fault a video."""

    classes = ("back", "cell")
    palette = ((0, 0, 0), (1, 1, 1))
    names = ("sound", "value", "size", "empty")

    def length(self, name: str) -> int:
        return 0 if name == "empty" else 9

    def labelled(self, name: str) -> tuple[int, ...]:
        return tuple(range(self.length(name)))

    def read(self, name: str, frames: Sequence[int] | None = None) -> Iterator[Frame]:
        for index in frames or ():
            labels = torch.tensor([[0, 1, 255]], dtype=torch.uint8)
            if name == "value" and index == 4:
                labels[0, 1] = 2
            if name == "size":
                labels = labels[:, :2]
            yield Frame(torch.zeros(3, 1, 3, dtype=torch.uint8), index, 0.0, labels if index else None)


def test_generated_sources_are_sampled() -> None:
    seen = []
    findings = check(Made(), on_frame=lambda: seen.append(1))
    assert [(finding.kind, finding.file) for finding in findings] == [
        ("label value", "value, frame 4"),
        ("size", "size, frame 4"),
        ("size", "size, frame 8"),
        ("empty video", "empty"),
    ]
    assert len(seen) == 9


def test_real_copy_is_sound(data_root: Path) -> None:
    assert check(CamVidSource(data_root / "camvid", "val")) == []

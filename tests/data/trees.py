"""Writers of tiny data sets, each in its real layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (4, 6)  # H, W


def save(path: Path, pixels: np.ndarray | int, *, palette: bool = False) -> Path:
    """Write pixels, or one grey value, as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    full = np.full(SIZE, pixels, np.uint8) if isinstance(pixels, int) else pixels
    image = Image.fromarray(full)
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(path)
    return path


def picture(path: Path, value: int = 0) -> Path:
    return save(path, np.full((*SIZE, 3), value, np.uint8))


def write(path: Path, lines: str | Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines if isinstance(lines, str) else "\n".join(lines), encoding="utf-8")
    return path


def movie(path: Path, values: Sequence[int], *, stamps: Sequence[int] | None = None, size: int = 16) -> Path:
    """Write grey frames with B-frames between them; a stamp is a thirtieth of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1", "g": "6", "bf": "2"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for place, value in enumerate(values):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), value, np.uint8), format="rgb24")
            frame.pts = stamps[place] if stamps else place
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


TRAIN = ["0016E5_00060", "0016E5_00000", "0016E5_00030", "0016E5_00091", "0016E5_00120", "0016E5_00150"]


def camvid_tree(root: Path, stems: Sequence[str] = TRAIN, split: str = "train") -> Path:
    """Write the usual layout; the mask of frame n holds class n % 11."""
    write(root / f"{split}.txt", stems)
    for stem in stems:
        picture(root / "images" / f"{stem}.png", 1)
        save(root / "labels" / f"{stem}_L.png", int(stem[-5:]) % 11)
    return root


RAW = np.array([[0, 1, 124, 255, 2, 3]] * 4, np.uint8)


def vspw_tree(root: Path) -> Path:
    write(root / "train.txt", "a\r\n")
    write(root / "val.txt", ["# names", "b"])
    write(root / "test.txt", "c")
    for name in "abc":
        for number in (17, 18, 20):
            picture(root / "data" / name / "origin" / f"{number:08d}.jpg", number)
            if name != "c":
                save(root / "data" / name / "mask" / f"{number:08d}.png", RAW)
        picture(root / "data" / name / "origin" / ".00000001.jpg")
    return root


def cityscapes_tree(root: Path, *, kind: str = "labelIds", folder: str = "leftImg8bit_sequence") -> Path:
    """Write one snippet around labelled frame 25 of val, and 33 frames of test."""
    for split, first, last in (("val", 6, 35), ("test", 0, 32)):
        for number in range(first, last + 1):
            picture(root / folder / split / "ulm" / f"ulm_000001_{number:06d}_leftImg8bit.png", number)
    mask = np.array([[7, 33, 0, 255, 11, 29]] * 4, np.uint8)
    if kind == "labelTrainIds":
        mask = np.array([[0, 18, 255, 255, 2, 255]] * 4, np.uint8)
    save(root / "gtFine" / "val" / "ulm" / f"ulm_000001_000025_gtFine_{kind}.png", mask)
    return root


def folder_tree(root: Path, classes: str = "names: [back, cell]") -> Path:
    write(root / "classes.yaml", classes)
    for number in (9, 10, 8):
        picture(root / "images" / "left" / f"f{number}.png", number)
    save(root / "masks" / "left" / "f10.png", np.array([[0, 1, 255, 0, 0, 0]] * 4, np.uint8))
    return root

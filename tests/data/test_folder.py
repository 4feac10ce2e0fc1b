"""Data of one's own."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trees import folder_tree, movie, picture, save, write

from steadyseg.data.folder import FolderSource
from steadyseg.types import ConfigError, DataError


def test_folder_of_images(tmp_path: Path) -> None:
    source = FolderSource(folder_tree(tmp_path, "names: [back, cell]\nrate: 5"), "train")
    assert source.names == ("left",)
    assert source.classes == ("back", "cell")
    assert source.labelled("left") == (2,)
    frames = list(source.read("left"))
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [8, 9, 10]  # by number, not by name
    assert [frame.time for frame in frames] == [0, 0.2, 0.4]
    assert frames[2].labels is not None
    assert frames[2].labels[0].tolist() == [0, 1, 255, 0, 0, 0]
    assert [frame.number for frame in source.files("left").frames] == [8, 9, 10]
    assert FolderSource(tmp_path, "any").names == ("left",)


def test_folder_with_colours_and_ignore(tmp_path: Path) -> None:
    mask = np.array([[[0, 0, 0], [9, 9, 9], [255, 255, 255], [0, 0, 0], [0, 0, 0], [0, 0, 0]]] * 4, np.uint8)
    rule = "names: [back, cell]\ncolours: [[0, 0, 0], [9, 9, 9]]\nignore: [255, 255, 255]"
    save(folder_tree(tmp_path, rule) / "masks" / "left" / "f10.png", mask)
    source = FolderSource(tmp_path)
    assert source.palette == ((0, 0, 0), (9, 9, 9))
    (frame,) = source.read("left", [2])
    assert frame.labels is not None
    assert frame.labels[0].tolist() == [0, 1, 255, 0, 0, 0]


def test_folder_ignores_a_number(tmp_path: Path) -> None:
    save(folder_tree(tmp_path, "names: [back, cell]\nignore: 7") / "masks" / "left" / "f10.png", 7)
    (frame,) = FolderSource(tmp_path).read("left", [2])
    assert frame.labels is not None
    assert frame.labels.unique().tolist() == [255]


def test_folder_of_one_movie(tmp_path: Path) -> None:
    write(tmp_path / "classes.yaml", "names: [back, cell]")
    stamps = [0, 2, 3, 4, 9, 10, 11, 12, 20, 21]
    movie(tmp_path / "videos" / "clip.mp4", range(0, 250, 25), stamps=stamps)
    save(tmp_path / "masks" / "clip" / "000004.png", np.ones((16, 16), np.uint8))
    source = pickle.loads(pickle.dumps(FolderSource(tmp_path)))  # as a data loader sends it to its workers
    assert source.length("clip") == 10
    assert source.labelled("clip") == (4,)
    frames = list(source.read("clip", [4, 0, 9, 9, 3]))
    assert [round(int(frame.image.float().mean()) / 25) for frame in frames] == [4, 0, 9, 9, 3]
    assert [round(frame.time * 30) for frame in frames] == [9, 0, 21, 21, 4]
    assert frames[0].labels is not None
    assert frames[1].labels is None


@pytest.mark.parametrize("name", ["10.png", "x.png", "04.png"])
def test_folder_masks_that_belong_to_no_frame_of_a_movie(tmp_path: Path, name: str) -> None:
    write(tmp_path / "classes.yaml", "names: [back]")
    movie(tmp_path / "videos" / "clip.mp4", range(10))
    save(tmp_path / "masks" / "clip" / "4.png", 0)
    save(tmp_path / "masks" / "clip" / name, 0)
    with pytest.raises(DataError, match=r"belongs to no frame of .*; expected one mask a frame, named 0.png to 9.png"):
        FolderSource(tmp_path)


def test_folder_splits(tmp_path: Path) -> None:
    folder_tree(tmp_path)
    picture(tmp_path / "images" / "right" / "0.jpg")
    write(tmp_path / "splits" / "val.txt", "right\n")
    assert FolderSource(tmp_path, "val").names == ("right",)
    with pytest.raises(ConfigError, match=r"no split 'train': .*known are val"):
        FolderSource(tmp_path, "train")
    write(tmp_path / "splits" / "val.txt", "middle\n")
    with pytest.raises(DataError, match=r"videos of val\.txt are missing: middle"):
        FolderSource(tmp_path, "val")


def test_folder_without_images_is_an_error_when_read(tmp_path: Path) -> None:
    (folder_tree(tmp_path) / "images" / "empty").mkdir()
    with pytest.raises(DataError, match="video 'empty' has no frames; expected"):
        FolderSource(tmp_path).read("empty")


def test_folder_names_without_numbers_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "classes.yaml", "names: [back]")
    for name in ("b", "a"):
        picture(tmp_path / "images" / "v" / f"{name}.png")
    assert [frame.number for frame in FolderSource(tmp_path).files("v").frames] == [0, 1]


def _twin(root: Path) -> None:
    picture(root / "images" / "left" / "f9.jpg")


def _lost_mask(root: Path) -> None:
    save(root / "masks" / "left" / "f11.png", 0)


def _same_name(root: Path) -> None:
    movie(root / "videos" / "left.mp4", range(3))


def _no_videos(root: Path) -> None:
    (root / "images").rename(root / "pictures")


def _no_classes(root: Path) -> None:
    (root / "classes.yaml").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_twin, "frame 'f9' is there twice"),
        (_lost_mask, "images of masks are missing: f11"),
        (_same_name, "video 'left' is there twice"),
        (_no_videos, "found no videos under"),
        (_no_classes, r"found no .*classes\.yaml; expected a file such as 'names:"),
    ],
)
def test_folder_wrong_trees(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder_tree(tmp_path))
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a", "cannot be read as YAML"),
        ("[a, b]", "has no list of names"),
        ("names: []", "has no list of names"),
        ("names: [yes, a]", r"names is \[True, 'a'\]; expected a list of words"),
        ("names: [a]\ncolors: [[0, 0, 0]]", "unknown key 'colors' in .*; did you mean 'colours'"),
        ("names: [a]\nqq: 1", "known are names, colours, ignore, rate"),
        ("names: [a, b]\ncolours: [[0, 0, 0]]", "one .* for each of 2 names"),
        ("names: [a]\ncolours: [[0, 0, 256]]", "one .* for each of 1 names"),
        ("names: [a, b]\ncolours: [[0, 0, 0], [0, 0, 0]]", "a colour is there twice"),
        ("names: [a]\nignore: 256", "ignore is 256"),
        ("names: [a]\nignore: [0, 0, 0]", "there are no colours"),
        ("names: [a]\nrate: 0", "rate is 0"),
        (f"names: {[f'c{n}' for n in range(256)]}", "has 256 names; expected at most 255"),
    ],
)
def test_folder_wrong_descriptions(tmp_path: Path, text: str, message: str) -> None:
    folder_tree(tmp_path, text)
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path)

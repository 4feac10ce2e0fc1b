"""An audit of a data set: every file is read the way training reads it, and nothing stops at the first error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from steadyseg.data.files import FileVideo, FrameFiles, load, read_image
from steadyseg.data.source import VideoSource
from steadyseg.types import IGNORE, DataError

_Size = tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a data set."""

    kind: str
    """One of: empty video, image, mask, mask form, label value, size, gap, missing mask."""
    file: str
    """The file, or the video where it is about no single file."""
    text: str
    """What was found, and what was expected."""


def check(source: VideoSource, *, on_frame: Callable[[], None] | None = None) -> list[Finding]:
    """Audit every frame of a source; of generated sources only the first, middle and last frame of each video.

    Args:
        source: the split to look at.
        on_frame: called after every frame, for progress.

    Returns:
        What is wrong, in the order of videos and frames; empty if nothing is.
    """
    report = on_frame or (lambda: None)
    findings: list[Finding] = []
    with ThreadPoolExecutor() as pool:
        for name in source.names:
            video = source.files(name)
            if video is None:
                findings += _check_frames(source, name, report)
            elif not video.frames:
                findings.append(Finding("empty video", name, "has no frames; expected at least one"))
            else:
                findings += [*_check_files(video, pool, report), *_gaps(name, video), *_missing_masks(name, video)]
    return findings


def _check_files(video: FileVideo, pool: ThreadPoolExecutor, report: Callable[[], None]) -> Iterator[Finding]:
    """Read all pictures and masks of a video and compare their sizes."""
    sizes: list[tuple[str, _Size]] = []
    pictures = _movie_pictures(video) if video.movie else pool.map(_picture, video.frames)
    masks = pool.map(lambda frame: _mask(frame, video), video.frames)
    for frame, (size, wrong), (mask_size, mask_wrong) in zip(video.frames, pictures, masks, strict=True):
        yield from (*wrong, *mask_wrong)
        if size is not None:
            sizes.append((_where(frame, video), size))
        if size is not None and mask_size is not None and mask_size != size:
            text = f"is {_text(mask_size)}, but its image is {_text(size)}; expected one size"
            yield Finding("size", str(frame.mask), text)
        report()
    usual = Counter(size for _, size in sizes).most_common(1)
    for where, size in sizes:
        if size != usual[0][0]:
            yield Finding("size", where, f"is {_text(size)}, most of its video is {_text(usual[0][0])}")


def _picture(frame: FrameFiles) -> tuple[_Size | None, list[Finding]]:
    try:
        return read_image(frame.image).shape[1:], []
    except DataError as error:
        return None, [_finding("image", frame.image, error)]


def _movie_pictures(video: FileVideo) -> Iterator[tuple[_Size | None, list[Finding]]]:
    """Decode a video file once; after a frame that fails, go on behind it."""
    number = 0
    while number < len(video.frames):
        try:
            for image in video.images(range(number, len(video.frames))):
                number += 1
                yield image.shape[1:], []
        except DataError as error:
            number += 1
            frame = video.frames[number - 1]
            yield None, [Finding("image", _where(frame, video), str(error).removeprefix(f"{frame.image}: "))]


def _mask(frame: FrameFiles, video: FileVideo) -> tuple[_Size | None, list[Finding]]:
    if frame.mask is None:
        return None, []
    kind = "mask"
    try:
        mask = load(frame.mask)
        kind = "mask form"
        video.table.check_form(frame.mask, mask)
        kind = "label value"
        return video.table.labels(frame.mask, mask).shape, []
    except DataError as error:
        return None, [_finding(kind, frame.mask, error)]


def _finding(kind: str, path: Path, error: DataError) -> Finding:
    return Finding(kind, str(path), str(error).removeprefix(f"{path} "))


def _where(frame: FrameFiles, video: FileVideo) -> str:
    return f"{frame.image}, frame {frame.number}" if video.movie else str(frame.image)


def _gaps(name: str, video: FileVideo) -> Iterator[Finding]:
    """Find places where frame numbers jump by more than the video's usual step."""
    steps = Counter(after.number - before.number for before, after in pairwise(video.frames))
    if not steps:
        return
    usual = steps.most_common(1)[0][0]
    for before, after in pairwise(video.frames):
        if after.number - before.number != usual:
            text = f"follows frame {before.number} of {name} after {after.number - before.number}; expected {usual}"
            yield Finding("gap", str(after.image), text)


def _missing_masks(name: str, video: FileVideo) -> Iterator[Finding]:
    if video.masks == "every":
        for frame in video.frames:
            if frame.mask is None:
                yield Finding("missing mask", str(frame.image), "has no mask; every frame here needs one")
    elif video.masks == "some" and not video.labelled:
        yield Finding("missing mask", name, "has no mask at all; expected at least one")


def _check_frames(source: VideoSource, name: str, report: Callable[[], None]) -> Iterator[Finding]:
    """Look at the first, middle and last frame of a generated video."""
    length = source.length(name)
    if not length:
        yield Finding("empty video", name, "has no frames; expected at least one")
        return
    for frame in source.read(name, sorted({0, length // 2, length - 1})):
        where = f"{name}, frame {frame.index}"
        if frame.labels is not None:
            if frame.labels.shape != frame.image.shape[1:]:
                text = f"labels are {_text(frame.labels.shape)}, the image is {_text(frame.image.shape[1:])}"
                yield Finding("size", where, text)
            wrong = frame.labels[(frame.labels >= len(source.classes)) & (frame.labels != IGNORE)]
            if wrong.numel():
                yield Finding(
                    "label value", where, f"has label {int(wrong.max())}; there are {len(source.classes)} classes"
                )
        report()


def _text(size: _Size) -> str:
    return f"{size[1]}x{size[0]}"

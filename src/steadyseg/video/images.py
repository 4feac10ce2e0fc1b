"""Images as videos: a folder, a glob or one file in; a folder of indexed label images out."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from steadyseg.types import IGNORE, ConfigError, DataError, Frame, check_shape
from steadyseg.video.output import Output, naming

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm")
"""Files with these endings are images; every other file is tried as a video."""

_IGNORE_COLOR = (224, 224, 192)
_log = logging.getLogger(__name__)


def find(path: str | Path) -> list[Path] | None:
    """Return the images that `path` names, in natural order (frame2 before frame10).

    Args:
        path: a folder, a glob such as "frames/*.jpg", or one file.

    Returns:
        The image files; None when `path` is one file that is no image, presumably a video.

    Raises:
        DataError: nothing is there, or no image.
    """
    try:
        return _find(path, Path(path).expanduser())
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}); expected a video or images") from error


def _find(path: str | Path, file: Path) -> list[Path] | None:
    if file.is_file():
        return [file] if file.suffix.lower() in SUFFIXES else None
    if file.is_dir():
        found = [entry for entry in file.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    elif file.exists():
        raise DataError(f"{path} is neither a file nor a folder; expected a video, an image or a folder of images")
    elif glob.has_magic(str(path)):
        anchor = Path(file.anchor)  # of an absolute pattern, which Path.glob does not take
        found = [entry for entry in anchor.glob(str(file.relative_to(anchor))) if entry.is_file()]
    else:
        raise DataError(f"{path} does not exist; expected a video, an image, a folder of images or a glob")
    images = sorted((entry for entry in found if entry.suffix.lower() in SUFFIXES), key=_natural)
    if not images:
        raise DataError(f"{path} holds no image ({len(found)} other files); expected {' '.join(SUFFIXES)}")
    return images


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def read_image(path: str | Path) -> Tensor:
    """Read one image file, turned upright as its EXIF data says.

    Returns:
        uint8 [3, H, W] RGB; grey is repeated, transparency is dropped, 16 bits become 8.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):
                pixels = _to_bytes(path, np.asarray(upright))
            else:
                pixels = np.array(upright.convert("RGB"))  # [H, W, 3]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not an image that can be read" if unknown else str(error).splitlines()[0]
        raise DataError(f"{path} cannot be decoded ({reason}); replace or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [3, H, W]


def _to_bytes(path: str | Path, grey: np.ndarray) -> np.ndarray:
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise DataError(f"{path} holds {grey.dtype} values outside 0..65535; save it with 8 or 16 bits")
    return np.repeat((grey // 257).astype(np.uint8)[..., None], 3, axis=2)  # [H, W, 3]


def read_images(
    files: Sequence[Path], *, rate: Fraction = Fraction(25), on_error: Literal["stop", "skip"] = "stop"
) -> Iterator[Frame]:
    """Yield image files as the frames of a video.

    Args:
        files: the images, in order.
        rate: frames per second.
        on_error: "skip" leaves out an image that cannot be decoded, with a warning in the log.

    Raises:
        DataError: an image cannot be decoded, or differs in size from the first.
    """
    size: torch.Size | None = None
    for index, file in enumerate(files):
        try:
            image = read_image(file)
        except DataError as error:
            if on_error == "stop":
                raise DataError(f"frame {index}: {error}, or leave it out (--on-error skip)") from error
            _log.warning("frame %d skipped: %s", index, error)
            continue
        size = size or image.shape
        if image.shape != size:
            raise DataError(
                f"frame {index}: {file} is {image.shape[2]}x{image.shape[1]}, the first is {size[2]}x{size[1]}; "
                "expected one size: resize it or move it to another folder"
            )
        yield Frame(image, index, float(index / rate))


def write_image(path: str | Path, image: Tensor, *, overwrite: bool = False) -> None:
    """Write one picture, complete or not at all.

    Args:
        path: the file; its ending chooses the format.
        image: uint8 [3, H, W] RGB.
        overwrite: whether an existing file may be replaced.

    Raises:
        ConfigError: the file exists, cannot be written there, or its ending is no image format.
        DataError: the disk is full.
    """
    check_shape("image", image, (3, "H", "W"), torch.uint8)
    output = image_output(path, overwrite=overwrite)
    output.open_file()
    try:
        with naming(output.path):
            pixels = image.permute(1, 2, 0).contiguous().numpy()  # [H, W, 3]
            form = Image.registered_extensions()[Path(path).suffix.lower()]
            Image.fromarray(pixels).save(output.part, format=form)
        output.commit()
    finally:
        output.discard()


def image_output(path: str | Path, *, source: Path | None = None, overwrite: bool = False) -> Output:
    """Check the name of a picture; nothing is written yet.

    Args:
        path: the file; its ending chooses the format.
        source: the input, which must not be overwritten; None when there is none.
        overwrite: whether an existing file may be replaced.

    Raises:
        ConfigError: `path` has no image ending, is the input, exists, or lies in a folder that does not exist.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"output {path} has no image ending; expected one of {' '.join(SUFFIXES)}")
    return Output(path, source=source, overwrite=overwrite)


class LabelWriter:
    """Writes label maps as indexed PNGs: the pixel value is the class index, the palette its colour.

    A context manager: the folder appears under its name when the block ends well, and not at all otherwise.
    """

    def __init__(
        self,
        path: str | Path,
        palette: Sequence[tuple[int, int, int]],
        *,
        source: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        """Check the folder's name; nothing is written yet.

        Args:
            path: the folder.
            palette: one RGB colour, 0..255, per class.
            source: the input, which must not be overwritten.
            overwrite: whether an existing folder of PNGs may be replaced.

        Raises:
            ConfigError: `path` is the input, exists, or lies in a folder that does not exist.
        """
        self._output = Output(path, source=source, overwrite=overwrite)
        colors = np.zeros((256, 3), dtype=np.uint8)
        colors[IGNORE] = _IGNORE_COLOR
        colors[: len(palette)] = palette
        self._palette = colors.tobytes()

    def __enter__(self) -> LabelWriter:
        self._output.open_folder(".png")
        return self

    def write(self, preds: Tensor, index: int) -> None:
        """Write one label map as ``<index, six digits>.png``.

        Args:
            preds: uint8 [H, W] class index or IGNORE.
            index: frame number in the video.

        Raises:
            DataError: the disk is full.
        """
        check_shape("preds", preds, ("H", "W"), torch.uint8)
        image = Image.fromarray(preds.contiguous().numpy())
        image.putpalette(self._palette)
        with naming(self._output.path):
            image.save(self._output.part / f"{index:06d}.png", compress_level=3)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._output.commit()
        finally:
            self._output.discard()

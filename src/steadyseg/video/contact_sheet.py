"""The contact sheet: a video on one picture, with its labels and the places where they flicker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from steadyseg.types import ShapeError, check_shape
from steadyseg.video.drawing import FAINT, INK, PAPER, Palette, draw_legend, font, legend_layout, lookup_table

_FULL_HEAT = 0.25  # a pixel that changes its label in every fourth frame is drawn in the hottest colour


def flicker(preds: Tensor, images: Tensor | None = None, *, tolerance: int = 10) -> Tensor:
    """Find the pixels whose label changed although the picture there hardly did.

    Args:
        preds: uint8 [T, H, W] labels of consecutive frames.
        images: uint8 [T, 3, H, W] RGB of the same frames; None counts every change of a label.
        tolerance: the most, 0..255, by which a colour channel may change and still count as the same.

    Returns:
        bool [T - 1, H, W]; entry t compares frame t + 1 with frame t.
    """
    check_shape("preds", preds, ("T", "H", "W"), torch.uint8)
    changed = preds[1:] != preds[:-1]
    if images is None:
        return changed
    check_shape("images", images, (preds.shape[0], 3, *preds.shape[1:]), torch.uint8)
    moved = (images[1:].short() - images[:-1].short()).abs().amax(dim=1) > tolerance  # [T-1, H, W]
    return changed & ~moved


@dataclass
class _Column:
    """A frame to show, and the flicker from it on, up to the next column."""

    image: Tensor
    """uint8 [3, h, w]."""
    preds: Tensor
    """uint8 [h, w]."""
    time: float
    changes: Tensor
    """int32 [h, w] number of frames in which a pixel flickered."""
    steps: int = 0
    """Number of frames that were compared with the one before."""

    def absorb(self, later: _Column) -> None:
        """Take over the flicker of the column after this one, which is dropped."""
        self.changes += later.changes
        self.steps += later.steps


class ContactSheet:
    """Collects a few small frames of a video of any length, and all flicker in between, for one picture.

    Memory does not grow with the video: whenever there are too many columns, each second one joins the one before.
    """

    def __init__(self, classes: Sequence[str], palette: Palette, *, columns: int = 5, width: int = 1600) -> None:
        """Choose the size.

        Args:
            classes: class names.
            palette: one RGB colour per class.
            columns: how many frames to show, at most.
            width: of the picture, pixels, about.
        """
        self._classes, self._palette = tuple(classes), palette
        self._columns, self._width = columns, width // columns
        self._kept: list[_Column] = []
        self._stride, self._count = 1, 0
        self._before: tuple[Tensor, Tensor] | None = None

    def add(self, image: Tensor, preds: Tensor, time: float) -> None:
        """Take the next frame.

        Args:
            image: uint8 [3, H, W] RGB.
            preds: uint8 [H, W] its labels.
            time: seconds, ``Frame.time``.
        """
        check_shape("image", image, (3, "H", "W"), torch.uint8)
        check_shape("preds", preds, (image.shape[1], image.shape[2]), torch.uint8)
        small, labels = _shrink(image, preds, self._width)
        if self._before is not None:
            images, both = torch.stack((self._before[0], small)), torch.stack((self._before[1], labels))
            self._kept[-1].changes += flicker(both, images)[0]
            self._kept[-1].steps += 1
        self._before = small, labels
        if self._count % self._stride == 0:
            if len(self._kept) == 4 * self._columns:
                self._halve()
            if self._count % self._stride == 0:
                self._kept.append(_Column(small, labels, time, torch.zeros(labels.shape, dtype=torch.int32)))
        self._count += 1

    def _halve(self) -> None:
        for first, second in zip(self._kept[::2], self._kept[1::2], strict=True):
            first.absorb(second)
        del self._kept[1::2]
        self._stride *= 2

    def image(self) -> Tensor:
        """Return the sheet, uint8 [3, H, W] RGB; see ``contact_sheet``.

        Raises:
            ShapeError: no frame was added.
        """
        if not self._kept:
            raise ShapeError("the contact sheet is empty; expected at least one frame")
        count = min(self._columns, len(self._kept))
        starts = [len(self._kept) * column // count for column in range(count + 1)]
        shown = [self._kept[start] for start in starts[:-1]]
        spans = [self._kept[start:end] for start, end in pairwise(starts)]
        changes = [
            sum((column.changes for column in span), torch.zeros_like(span[0].changes)).float()
            / max(1, sum(column.steps for column in span))
            for span in spans
        ]
        return contact_sheet(
            torch.stack([column.image for column in shown]),
            torch.stack([column.preds for column in shown]),
            shares=torch.stack(changes),
            classes=self._classes,
            palette=self._palette,
            times=[column.time for column in shown],
        )


def _shrink(image: Tensor, preds: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return frame and labels at the size of a column."""
    scale = width / image.shape[2]
    size = (width, max(1, round(image.shape[1] * scale)))
    pixels = cv2.merge([plane.contiguous().numpy() for plane in image])  # [H, W, 3]
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    labels = cv2.resize(preds.contiguous().numpy(), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return torch.from_numpy(np.stack(cv2.split(small))), torch.from_numpy(labels)


def contact_sheet(
    images: Tensor,
    preds: Tensor,
    *,
    shares: Tensor,
    classes: Sequence[str],
    palette: Palette,
    times: Sequence[float],
) -> Tensor:
    """Draw frames, their labels below, and below those where the labels flicker.

    Args:
        images: uint8 [N, 3, h, w] RGB, one per column.
        preds: uint8 [N, h, w] class index or IGNORE.
        shares: bool or float [N, h, w] how often each pixel flickers, 0..1; see ``flicker``.
        classes: class names, for the legend.
        palette: one RGB colour per class.
        times: seconds, one per column.

    Returns:
        uint8 [3, H, W] RGB.
    """
    check_shape("images", images, ("N", 3, "h", "w"), torch.uint8)
    count, _, height, width = images.shape
    check_shape("preds", preds, (count, height, width), torch.uint8)
    check_shape("shares", shares, (count, height, width))
    text = max(10, round(width / 20))
    gap, head = max(2, text // 3), round(2.2 * text)
    total = count * width + (count - 1) * gap + 2 * text
    legend = _legend(preds, classes, palette, (total, text))
    bottom = text + 3 * (head + height) + text // 2
    canvas = Image.new("RGB", (total, bottom + legend.shape[0]), PAPER)
    pen = ImageDraw.Draw(canvas)
    tops = [text + head + row * (head + height) for row in range(3)]
    for top, title, note in zip(tops, _TITLES, _NOTES, strict=True):
        pen.text((text, top - head // 2), title, INK, font(round(1.1 * text)), anchor="lm")
        left = text + font(round(1.1 * text)).getlength(title) + text
        if left + font(text).getlength(note) < total - text:
            pen.text((left, top - head // 2), note, FAINT, font(text), anchor="lm")
    table = lookup_table(palette)
    for column in range(count):
        left = text + column * (width + gap)
        frame = images[column].permute(1, 2, 0).numpy()  # [h, w, 3]
        share = shares[column].float().numpy()
        tiles = (frame, table.T[preds[column].numpy()], _heat(frame, share))
        for top, tile in zip(tops, tiles, strict=True):
            canvas.paste(Image.fromarray(np.ascontiguousarray(tile)), (left, top))
        _tag(pen, (left, tops[0] + height), f"{times[column]:.2f} s", text)
        _tag(pen, (left, tops[2] + height), f"{100 * share.mean():.2f} %", text)
    canvas.paste(Image.fromarray(legend), (0, bottom))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()  # [3, H, W]


_TITLES = ("Frames", "Labels", "Flicker")
_NOTES = ("", "", "where the label changed although the picture did not; share of all pixels, per frame")


def _legend(preds: Tensor, classes: Sequence[str], palette: Palette, size: tuple[int, int]) -> np.ndarray:
    """Return the legend of the classes that occur, uint8 [height, width, 3], for `size` width and letters."""
    names = [name.replace("_", " ") for name in classes]
    seen = [index for index in torch.unique(preds).tolist() if index < len(names)]
    layout = legend_layout(tuple(names[index] for index in seen), *size)
    return np.ascontiguousarray(draw_legend(layout, names, palette, seen).transpose(1, 2, 0))


def _heat(frame: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the frame, grey and dark, with the flicker glowing on it, uint8 [h, w, 3]."""
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    dark = np.repeat((0.45 * grey + 8)[..., None], 3, axis=2)
    heat = np.sqrt(np.clip(share / _FULL_HEAT, 0, 1))
    glow = cv2.applyColorMap((70 + 185 * heat).astype(np.uint8), cv2.COLORMAP_HOT)[..., ::-1]
    alpha = np.clip(3 * heat, 0, 1)[..., None]
    return (dark * (1 - alpha) + glow * alpha).astype(np.uint8)


def _tag(pen: ImageDraw.ImageDraw, corner: tuple[int, int], words: str, text: int) -> None:
    """Write a few words on a dark ground into the lower left corner of a tile."""
    left, bottom = corner
    size = max(9, round(0.85 * text))
    width = round(font(size).getlength(words)) + size
    pen.rectangle((left, bottom - round(1.6 * size), left + width, bottom - 1), fill=PAPER)
    pen.text((left + size // 2, bottom - round(0.8 * size)), words, INK, font(size), anchor="lm")

"""Draws labels over frames, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from steadyseg.types import ShapeError, check_shape

Palette = Sequence[tuple[int, int, int]]
"""One RGB colour, 0..255, per class."""

INK, FAINT, PAPER = (238, 238, 240), (150, 152, 160), (22, 23, 27)
_MAX_LEGEND_ROWS = 3
_MIN_LEGEND_WIDTH = 120  # pixels; in a narrower frame no text is readable
_SEEN_SHARE = 5e-4  # of the frame, which a class must fill once to enter the legend


class Overlay:
    """Draws the labels of one video over its frames, with a legend of the classes seen so far below.

    The legend's place, size and order never change; it only grows. One object per video.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: Palette,
        *,
        opacity: float = 0.5,
        boundaries: bool = True,
        legend: bool = True,
        beside: bool = False,
    ) -> None:
        """Choose how to draw.

        Args:
            classes: class names; a label is an index into it.
            palette: one RGB colour, 0..255, per class.
            opacity: of the colours, 0..1.
            boundaries: whether to draw a line where two classes meet.
            legend: whether to add the strip with the legend.
            beside: whether to put the untouched frame at the left of the drawn one.
        """
        if len(classes) != len(palette):
            raise ShapeError(f"palette has {len(palette)} colours; expected {len(classes)}, one per class")
        self._classes = [name.replace("_", " ") for name in classes]
        self._palette = palette
        self._table = lookup_table(palette)
        self._opacity = opacity
        self._boundaries = boundaries
        self._has_legend = legend
        self._beside = beside
        self.reset()

    def reset(self) -> None:
        """Forget which classes were seen: a new video begins."""
        self._seen: list[int] = []
        self._strip: np.ndarray | None = None

    def __call__(self, image: Tensor, preds: Tensor) -> Tensor:
        """Draw one frame.

        Args:
            image: uint8 [3, H, W] RGB.
            preds: uint8 [H, W] class index; where it is none, such as IGNORE, the frame stays untouched.

        Returns:
            uint8 [3, H', W'] RGB; H' is larger than H by the legend, W' is twice W with `beside`.
        """
        check_shape("image", image, (3, "H", "W"), torch.uint8)
        check_shape("preds", preds, (image.shape[1], image.shape[2]), torch.uint8)
        frame, labels = image.contiguous().numpy(), preds.contiguous().numpy()
        height, width = labels.shape
        left = width if self._beside else 0
        legend = self._legend(labels, left + width) if self._has_legend else None
        canvas = np.empty((3, height + (0 if legend is None else legend.shape[1]), left + width), dtype=np.uint8)
        canvas[:, :height, :left] = frame[:, :, :left]
        if legend is not None:
            canvas[:, height:] = legend
        self._blend(frame, labels, canvas[:, :height, left:])
        return torch.from_numpy(canvas)

    def _blend(self, frame: np.ndarray, labels: np.ndarray, blended: np.ndarray) -> None:
        """Draw into `blended`, uint8 [3, H, W], plane by plane, so that what is worked on fits a cache."""
        edges = _edges(labels, max(1, round(min(labels.shape) / 700))) if self._boundaries else None
        is_labelled = labels.size == 0 or labels.max() < len(self._palette)
        unlabelled = None if is_labelled else (labels >= len(self._palette)).astype(np.uint8)
        color, pale = np.empty_like(labels), np.empty_like(labels)
        for plane, original, row in zip(blended, frame, self._table, strict=True):
            cv2.LUT(labels, row, color)
            cv2.addWeighted(original, 1 - self._opacity, color, self._opacity, 0, plane)
            if edges is not None:
                cv2.copyTo(cv2.addWeighted(color, 0.6, color, 0, 255 * 0.4, pale), edges, plane)
            if unlabelled is not None:
                cv2.copyTo(original, unlabelled, plane)

    def _legend(self, labels: np.ndarray, width: int) -> np.ndarray:
        if self._strip is not None and len(self._seen) == len(self._classes):
            return self._strip
        counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).reshape(-1)[: len(self._classes)]
        enough = max(1.0, _SEEN_SHARE * labels.size)
        new = [index for index in np.flatnonzero(counts >= enough).tolist() if index not in self._seen]
        if new or self._strip is None:
            self._seen += new
            text = min(40, max(11, round(min(width, 1.8 * labels.shape[0]) / 52)))
            layout = legend_layout(tuple(self._classes), width, text)
            self._strip = draw_legend(layout, self._classes, self._palette, self._seen)
        return self._strip


def overlay(image: Tensor, preds: Tensor, *, classes: Sequence[str], palette: Palette, opacity: float = 0.5) -> Tensor:
    """Draw the labels of a single frame; for a video use one ``Overlay``, whose legend does not jump.

    Args:
        image: uint8 [3, H, W] RGB.
        preds: uint8 [H, W] class index or IGNORE.
        classes: class names.
        palette: one RGB colour per class.
        opacity: of the colours, 0..1.

    Returns:
        uint8 [3, H', W] RGB, the legend below.
    """
    return Overlay(classes, palette, opacity=opacity)(image, preds)


def lookup_table(palette: Palette) -> np.ndarray:
    """Return the colour of every label value, uint8 [3, 256]; black for values that are no class."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return np.ascontiguousarray(table.T)  # [3, 256]


def _edges(labels: np.ndarray, thickness: int) -> np.ndarray:
    """Mark, with 255, the pixels at which a class meets another."""
    kernel = np.ones((thickness + 1, thickness + 1), dtype=np.uint8)
    return cv2.threshold(cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, kernel), 0, 255, cv2.THRESH_BINARY)[1]


class LegendLayout(NamedTuple):
    """How the legend's strip is laid out."""

    size: tuple[int, int]
    """Height and width of the strip, pixels."""
    text: int
    """Height of the letters, pixels."""
    rows: int


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the typeface of every drawing at `size` pixels; it ships with Pillow, so it is everywhere."""
    return ImageFont.load_default(size)


def _entry_width(name: str, text: int) -> int:
    """Return the width of a colour chip, its name, and the gap after it."""
    return round(font(text).getlength(name)) + round(2.9 * text)


def legend_layout(classes: tuple[str, ...], width: int, text: int) -> LegendLayout:
    """Choose as many rows as all classes need, within reason.

    Args:
        classes: the names that may be listed.
        width: of the strip, pixels.
        text: height of the letters, pixels; somewhat less if that saves a row.
    """
    if width < _MIN_LEGEND_WIDTH:
        return LegendLayout((0, width), text, 0)
    sizes = range(text, max(11, round(0.7 * text)) - 1, -1)
    text = next((size for size in sizes if _rows(classes, width, size) == 1), text)
    rows = min(_MAX_LEGEND_ROWS, _rows(classes, width, text))
    height = round(1.9 * text * rows + 0.8 * text)
    return LegendLayout((height + height % 2, width), text, rows)


def _rows(classes: Sequence[str], width: int, text: int) -> int:
    return 1 + max((row for row, _ in _flow(classes, width, text)), default=0)


def _flow(names: Sequence[str], width: int, text: int) -> list[tuple[int, int]]:
    """Return the row and the left end of every entry, set like words in lines."""
    places, row, left = [], 0, text
    for name in names:
        entry = _entry_width(name, text)
        if left + entry - text > width - text and left > text:
            row, left = row + 1, text
        places.append((row, left))
        left += entry
    return places


def draw_legend(layout: LegendLayout, classes: Sequence[str], palette: Palette, seen: Sequence[int]) -> np.ndarray:
    """Return the strip, uint8 [3, height, width]; what does not fit is counted at its end."""
    height, width = layout.size
    if height == 0:
        return np.empty((3, 0, width), dtype=np.uint8)
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    text, face = layout.text, font(layout.text)
    places = _flow([classes[index] for index in seen], width, text)
    fitting = [place for place in places if place[0] < layout.rows]
    if len(fitting) < len(seen):
        # The last entry makes room for the number of those that are not listed.
        hidden = len(seen) - len(fitting) + 1
        row, left = fitting.pop()
        pen.text((left, round((1.35 + 1.9 * row) * text)), f"+{hidden} more", FAINT, face, anchor="lm")
    for index, (row, left) in zip(seen, fitting, strict=False):
        middle = round((1.35 + 1.9 * row) * text)
        half = round(0.55 * text)
        box = (left, middle - half, left + 2 * half, middle + half)
        pen.rounded_rectangle(box, radius=round(0.28 * text), fill=tuple(palette[index]), outline=FAINT)
        pen.text((left + 2 * half + round(0.5 * text), middle), classes[index], INK, face, anchor="lm")
    return np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))  # [3, height, width]

"""Labels at full size from logits, on the CPU: bilinear resize and arg-max in one pass, tile by tile.

A *tile* is some 32 pixels wide, and as high as there are rows of pixels between two rows of samples. The rounding
bounds that ops/upsample_argmax.py derives for cells hold for it too:

1. A class whose largest sample around a tile is below the smallest of another cannot win there. Where one class is
   left, all of the tile has its label.
2. The others are interpolated and compared, over runs of neighbouring tiles.
3. A pixel whose two best are closer than the bound is *doubtful*, and left to the caller.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steadyseg.ops.cpu_kernels import Array, compiled, in_threads
from steadyseg.ops.upsample_argmax import read_lines

_TILE = 32
_PART = 4
"""Rows of tiles that are worth a part of their own."""
_ONE = np.uint64(1)


class Bounds(NamedTuple):
    """Where rounding ends doubt, see ops/upsample_argmax.py."""

    lead: float
    """Of samples, in units of their magnitude."""
    close: float
    """Of pixels, in units of the largest magnitude around them."""
    tiny: float
    """Added to both."""
    huge: float
    """Magnitude from which on nothing is said."""


class _Columns(NamedTuple):
    """How a row of w samples is resized to W pixels, in T tiles."""

    left: Array
    """uint32 [W] the first sample that a pixel reads."""
    right: Array
    """uint32 [W] the last one."""
    near: Array
    """float32 [W] weight of `left`."""
    far: Array
    """float32 [W] weight of `right`; 0 where it is the same."""
    start: Array
    """uint64 [T + 1] the first pixel of each tile, and W."""


class _Rows(NamedTuple):
    """How h rows of samples are resized to H rows of pixels, in R rows of tiles."""

    top: Array
    """uint64 [R] the upper row of samples."""
    bottom: Array
    """uint64 [R] the lower one, or the same."""
    near: Array
    """float32 [H] weight of `top`."""
    far: Array
    """float32 [H] weight of `bottom`."""
    start: Array
    """int64 [R + 1] the first row of pixels of each row of tiles, and H."""


class _Tiles(NamedTuple):
    """What is known of one row of tiles."""

    highest: Array
    """float32 [K, T] the largest sample of a class around a tile; -inf once the class cannot win there."""
    magnitude: Array
    """float32 [K, T] the largest of its magnitudes."""
    floor: Array
    """float32 [T] what a class must reach to win."""
    close: Array
    """float32 [T] a lead above it is beyond doubt."""
    left: Array
    """int32 [T] how many classes may win."""
    sole: Array
    """int32 [T] the only one, or -1."""


class _Pixels(NamedTuple):
    """What is known of the at most P rows of pixels in one row of tiles."""

    top: Array
    """float32 [W] one class in the upper row of samples."""
    bottom: Array
    """float32 [W] the same in the lower one."""
    best: Array
    """float32 [P, W] the best value of each pixel."""
    second: Array
    """float32 [P, W] the best but one."""
    label: Array
    """int32 [P, W] the class of the best."""


def labels_and_doubts(logits: Tensor, size: tuple[int, int], bounds: Bounds) -> tuple[Tensor, Tensor] | None:
    """Label what rounding leaves no doubt about.

    Args:
        logits: float32 contiguous [K, h, w] on the CPU.
        size: (H, W) of the result.
        bounds: of rounding.

    Returns:
        uint8 [H, W] class index, and bool [H, W] whether it is doubtful; None for magnitudes beyond bounds, and NaN.
    """
    rows, columns = _rows(logits.shape[1], size[0]), _columns(logits.shape[2], size[1])
    labels, doubts = np.empty(size, np.uint8), np.empty(size, np.bool_)
    fill = partial(_fill, logits.detach().numpy(), tuple(rows), tuple(columns), tuple(bounds), labels, doubts)
    if not all(in_threads(fill, len(rows.top), _PART)):
        return None
    return torch.from_numpy(labels), torch.from_numpy(doubts)


@lru_cache(maxsize=64)
def _columns(samples: int, pixels: int) -> _Columns:
    left, right, near, far = (part.numpy() for part in read_lines(samples, pixels))
    start = np.append(np.arange(0, pixels, _TILE), pixels)
    return _Columns(left.astype(np.uint32), right.astype(np.uint32), near, far, start.astype(np.uint64))


@lru_cache(maxsize=64)
def _rows(samples: int, pixels: int) -> _Rows:
    top, bottom, near, far = (part.numpy() for part in read_lines(samples, pixels))
    start = np.flatnonzero(np.diff(top, prepend=-1) | np.diff(bottom, prepend=-1))  # [R]
    return _Rows(top[start].astype(np.uint64), bottom[start].astype(np.uint64), near, far, np.append(start, pixels))


@compiled(is_entry=True)
def _fill(
    samples: Array,
    to_rows: tuple[Array, ...],
    to_columns: tuple[Array, ...],
    limits: tuple[float, ...],
    labels: Array,
    doubts: Array,
    first: int,
    end: int,
) -> bool:
    """Label the rows of tiles from `first` up to but without `end`; False for magnitudes beyond the bounds, and NaN."""
    rows = _Rows(to_rows[0], to_rows[1], to_rows[2], to_rows[3], to_rows[4])
    columns = _Columns(to_columns[0], to_columns[1], to_columns[2], to_columns[3], to_columns[4])
    bounds = Bounds(limits[0], limits[1], limits[2], limits[3])
    classes, width, tiles = samples.shape[0], len(columns.near), len(columns.start) - 1
    most = np.max(rows.start[first + 1 : end + 1] - rows.start[first:end])
    known = _Tiles(
        np.empty((classes, tiles), np.float32),
        np.empty((classes, tiles), np.float32),
        np.empty(tiles, np.float32),
        np.empty(tiles, np.float32),
        np.empty(tiles, np.int32),
        np.empty(tiles, np.int32),
    )
    line = np.empty((2, max(width, samples.shape[2])), np.float32)
    pixels = _Pixels(
        line[0],
        line[1],
        np.empty((most, width), np.float32),
        np.empty((most, width), np.float32),
        np.empty((most, width), np.int32),
    )
    for row in range(first, end):
        known.floor[:] = -np.inf
        for label in range(np.uint64(classes)):
            if not _find_ranges(samples, label, rows.top[row], rows.bottom[row], columns, known, line, bounds):
                return False
        _drop_losers(known, bounds)
        pixels.best[:] = -np.inf
        pixels.second[:] = -np.inf
        pixels.label[:] = 0
        for label in range(classes):
            _interpolate(samples, label, row, rows, columns, known, pixels)
        _write(row, rows, columns, known, pixels, labels, doubts)
    return True


@compiled
def _find_ranges(
    samples: Array,
    label: np.uint64,
    top: np.uint64,
    bottom: np.uint64,
    columns: _Columns,
    known: _Tiles,
    line: Array,
    bounds: Bounds,
) -> bool:
    """Find the largest and the smallest sample of a class around each tile of a row; False as of `_fill`."""
    huge, lead = np.float32(bounds.huge), np.float32(bounds.lead)
    beyond = np.int32(0)
    for x in range(np.uint64(samples.shape[2])):
        upper, lower = samples[label, top, x], samples[label, bottom, x]
        is_within = abs(upper) < huge and abs(lower) < huge  # false for NaN
        beyond |= np.int32(0) if is_within else np.int32(1)
        line[0, x] = upper if upper > lower else lower
        line[1, x] = lower if upper > lower else upper
    for tile in range(len(known.close)):
        start, last = columns.left[columns.start[tile]], columns.right[columns.start[tile + 1] - _ONE]
        highest, lowest = line[0, start], line[1, start]
        for x in range(np.uint64(start) + _ONE, np.uint64(last) + _ONE):
            highest = line[0, x] if line[0, x] > highest else highest
            lowest = line[1, x] if line[1, x] < lowest else lowest
        magnitude = highest if highest > -lowest else -lowest
        known.highest[label, tile], known.magnitude[label, tile] = highest, magnitude
        floor = lowest - lead * magnitude
        known.floor[tile] = floor if floor > known.floor[tile] else known.floor[tile]
    return beyond == 0


@compiled
def _drop_losers(known: _Tiles, bounds: Bounds) -> None:
    """Mark the classes that cannot win in a tile, or the one that is left, and find which lead is beyond doubt."""
    lead, close, tiny = np.float32(bounds.lead), np.float32(bounds.close), np.float32(bounds.tiny)
    lost = np.float32(-np.inf)
    known.close[:], known.left[:], known.sole[:] = 0.0, 0, -1
    for label in range(np.uint64(len(known.highest))):
        for tile in range(np.uint64(len(known.close))):
            magnitude = known.magnitude[label, tile]
            wins = known.highest[label, tile] + lead * magnitude + tiny >= known.floor[tile]
            known.highest[label, tile] = known.highest[label, tile] if wins else lost
            known.left[tile] += np.int32(1) if wins else np.int32(0)
            known.sole[tile] = np.int32(label) if wins else known.sole[tile]
            larger = wins and magnitude > known.close[tile]
            known.close[tile] = magnitude if larger else known.close[tile]
    for tile in range(len(known.close)):
        known.close[tile] = close * known.close[tile] + tiny
        if known.left[tile] == 1:
            known.highest[known.sole[tile], tile] = lost
        else:
            known.sole[tile] = -1


@compiled
def _interpolate(
    samples: Array, label: int, row: int, rows: _Rows, columns: _Columns, known: _Tiles, pixels: _Pixels
) -> None:
    """Have a class compete wherever it may win in a row of tiles."""
    tiles = len(known.close)
    tile = 0
    while tile < tiles:
        first = tile
        while tile < tiles and known.highest[label, tile] != -np.inf:
            tile += 1
        if tile > first:
            left, right = columns.start[first], columns.start[tile]
            _widen(samples, np.uint64(label), rows.top[row], rows.bottom[row], columns, pixels, left, right)
            for line in range(rows.start[row + 1] - rows.start[row]):
                near, far = rows.near[rows.start[row] + line], rows.far[rows.start[row] + line]
                _compete(pixels, np.uint64(line), np.int32(label), near, far, left, right)
        tile += 1


@compiled
def _widen(
    samples: Array,
    label: np.uint64,
    top: np.uint64,
    bottom: np.uint64,
    columns: _Columns,
    pixels: _Pixels,
    left: np.uint64,
    right: np.uint64,
) -> None:
    """Interpolate a class within its two rows of samples, for the pixels from `left` up to but without `right`."""
    for x in range(left, right):
        first, last, near, far = columns.left[x], columns.right[x], columns.near[x], columns.far[x]
        pixels.top[x] = samples[label, top, first] * near + samples[label, top, last] * far
        pixels.bottom[x] = samples[label, bottom, first] * near + samples[label, bottom, last] * far


@compiled
def _compete(
    pixels: _Pixels,
    line: np.uint64,
    label: np.int32,
    near: np.float32,
    far: np.float32,
    left: np.uint64,
    right: np.uint64,
) -> None:
    """Interpolate a class between its two rows, and let it take the pixels where it is the best so far."""
    for x in range(left, right):
        value = pixels.top[x] * near + pixels.bottom[x] * far
        best, second = pixels.best[line, x], pixels.second[line, x]
        loser = value if value < best else best
        pixels.second[line, x] = loser if loser > second else second
        pixels.label[line, x] = label if value > best else pixels.label[line, x]
        pixels.best[line, x] = value if value > best else best


@compiled
def _write(
    row: int, rows: _Rows, columns: _Columns, known: _Tiles, pixels: _Pixels, labels: Array, doubts: Array
) -> None:
    """Write the labels of a row of tiles, and where they are doubtful."""
    start = rows.start[row]
    for line in range(np.uint64(rows.start[row + 1] - start)):
        y = np.uint64(start) + line
        for tile in range(len(known.close)):
            sole, close = known.sole[tile], known.close[tile]
            for x in range(columns.start[tile], columns.start[tile + 1]):
                labels[y, x] = pixels.label[line, x] if sole < 0 else sole
                doubts[y, x] = sole < 0 and pixels.best[line, x] - pixels.second[line, x] <= close

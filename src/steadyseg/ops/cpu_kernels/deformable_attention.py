"""Multi-scale deformable attention on the CPU, without lists of cells and their weights.

Sums run in float32, point by point; they differ from those in torch by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from steadyseg.ops.cpu_kernels import Array, compiled, in_threads, to_array

_PART = 64
"""Queries that are worth a part of their own."""


def deformable_attention(
    values: Sequence[Tensor], sizes: Sequence[tuple[int, int]], points: Tensor, weights: Tensor, image: Tensor
) -> Tensor:
    """Arguments and result as of `ops.deformable_attention.deformable_attention_reference`."""
    heads, width = points.shape[3], values[0].shape[2]
    assert points.shape[1:] == weights.shape and weights.shape[:2] == (len(values), len(image))
    assert all(value.shape[1] == h * w for value, (h, w) in zip(values, sizes, strict=True))  # no bounds are checked
    out = np.zeros((len(image), heads, width // heads), np.float32)
    images = image.numpy().astype(np.uint64)
    for level, (value, (h, w)) in enumerate(zip(values, sizes, strict=True)):
        maps = to_array(value.unflatten(2, (heads, -1)))  # [B, N_l, M, D / M]
        x, y, shares = (to_array(part[level].flatten(1)) for part in (*points, weights))  # each [Q, M * P]
        read = partial(_read, maps, (int(h), int(w)), x, y, shares, images, out)
        in_threads(read, len(out), _PART)
    return torch.from_numpy(out).flatten(1).to(values[0].dtype)  # [Q, D]


@compiled(is_entry=True)
def _read(
    maps: Array,
    size: tuple[int, int],
    x: Array,
    y: Array,
    weights: Array,
    image: Array,
    out: Array,
    first: int,
    end: int,
) -> None:
    """Add to `out` float32 [Q, M, D / M] what the queries from `first` up to but without `end` read of a level."""
    heads = np.uint64(out.shape[1])
    points = np.uint64(x.shape[1]) // heads
    cells, shares = np.empty((4, x.shape[1]), np.int32), np.empty((4, x.shape[1]), np.float32)
    for query in range(np.uint64(first), np.uint64(end)):
        _find_cells(x, y, weights, query, size, cells, shares)
        for head in range(heads):
            for point in range(head * points, (head + np.uint64(1)) * points):
                _add_cells(maps, image[query], head, cells, shares, point, out, query)


@compiled
def _find_cells(
    x: Array, y: Array, weights: Array, query: np.uint64, size: tuple[int, int], cells: Array, shares: Array
) -> None:
    """Find the four cells around each point of a query, all inside the map, and their shares; outside they are zero."""
    zero, one = np.float32(0), np.float32(1)
    width, last_x, last_y = np.int32(size[1]), np.float32(size[1] - 1), np.float32(size[0] - 1)
    for point in range(np.uint64(x.shape[1])):
        left, top = x[query, point], y[query, point]
        left = left if left > -one else -one  # NaN too
        left = left if left < last_x + one else last_x + one
        top = top if top > -one else -one
        top = top if top < last_y + one else last_y + one
        column, row = np.floor(left), np.floor(top)
        after, below = left - column, top - row
        before = one - after if (column >= zero) & (column <= last_x) else zero
        above = one - below if (row >= zero) & (row <= last_y) else zero
        after = after if column < last_x else zero
        below = below if row < last_y else zero
        right, bottom = column + one if column < last_x else last_x, row + one if row < last_y else last_y
        column, row = column if column > zero else zero, row if row > zero else zero
        column, row = column if column < last_x else last_x, row if row < last_y else last_y
        upper, lower, weight = np.int32(row) * width, np.int32(bottom) * width, weights[query, point]
        cells[0, point], shares[0, point] = upper + np.int32(column), weight * above * before
        cells[1, point], shares[1, point] = upper + np.int32(right), weight * above * after
        cells[2, point], shares[2, point] = lower + np.int32(column), weight * below * before
        cells[3, point], shares[3, point] = lower + np.int32(right), weight * below * after


@compiled(fastmath={"contract"})
def _add_cells(
    maps: Array,
    image: np.uint64,
    head: np.uint64,
    cells: Array,
    shares: Array,
    point: np.uint64,
    out: Array,
    query: np.uint64,
) -> None:
    """Add the four cells of a point, each times its share."""
    i, j = np.uint64(cells[0, point]), np.uint64(cells[1, point])
    k, m = np.uint64(cells[2, point]), np.uint64(cells[3, point])
    a, b, c, d = shares[0, point], shares[1, point], shares[2, point], shares[3, point]
    for channel in range(np.uint64(maps.shape[3])):
        above = a * maps[image, i, head, channel] + b * maps[image, j, head, channel]
        below = c * maps[image, k, head, channel] + d * maps[image, m, head, channel]
        out[query, head, channel] += above + below

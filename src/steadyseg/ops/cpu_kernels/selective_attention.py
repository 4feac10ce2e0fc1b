"""Attention of every pixel over a few fractional positions of another map, on the CPU: what is read stays in the cache.

Sums run in float32, in an order that the compiler chooses; results differ from those in torch by rounding alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from steadyseg.ops.cpu_kernels import Array, compiled, in_threads, to_array

_PART = 16
"""Queries that are worth a part of their own."""


def selective_attention(query: Tensor, source: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Arguments and result as of `ops.selective_attention.selective_attention`."""
    assert query.shape[0] == source.shape[0] == points.shape[0] and query.shape[1] == points.shape[1]
    assert query.shape[2] == source.shape[2] and size[0] * size[1] == source.shape[1]  # a kernel checks no bounds
    rows, places = to_array(query.flatten(0, 1)), to_array(points.flatten(0, 1))  # [B * N, C], [B * N, P, 2]
    maps, shape = to_array(source), (int(size[0]), int(size[1]))  # a call back has a list
    out = np.empty_like(rows)
    in_threads(lambda first, end: _attend(rows, maps, places, shape, first, end, out), len(rows), _PART)
    return torch.from_numpy(out).view(query.shape).to(query.dtype)


@compiled(is_entry=True)
def _attend(
    query: Array, source: Array, points: Array, size: tuple[int, int], first: int, end: int, out: Array
) -> None:
    """Compute the rows from `first` up to but without `end` of `out` float32 [B * N, C]."""
    count, channels = points.shape[1], query.shape[1]
    queries = len(query) // len(source)  # of an image
    width, scale = np.uint64(size[1]), np.float32(1 / np.sqrt(channels))
    read, score = np.empty((count, channels), np.float32), np.empty(count, np.float32)
    for row in range(first, end):
        here, image = np.uint64(row), np.uint64(row // queries)
        highest = np.float32(-np.inf)
        for point in range(np.uint64(count)):
            left, right, after = _sides(points[here, point, 0], size[1])
            top, bottom, below = _sides(points[here, point, 1], size[0])
            cells = (top * width + left, top * width + right, bottom * width + left, bottom * width + right)
            before, above = np.float32(1) - after, np.float32(1) - below
            shares = (above * before, above * after, below * before, below * after)
            score[point] = _read(query, source, here, image, cells, shares, read, point) * scale
            highest = max(highest, score[point])
        total = np.float32(0)
        for point in range(count):
            score[point] = np.exp(score[point] - highest)
            total += score[point]
        _sum(score, total, read, out, here)


@compiled
def _sides(position: np.float32, count: int) -> tuple[np.uint64, np.uint64, np.float32]:
    """Position on an axis of `count` cells, clamped to it -> the cells before and after it, and the latter's share."""
    last = np.float32(count - 1)
    position = position if position > np.float32(0) else np.float32(0)  # NaN too
    position = position if position < last else last
    cell = np.floor(position)
    return np.uint64(cell), np.uint64(min(cell + np.float32(1), last)), position - cell


@compiled(fastmath={"reassoc", "contract"})
def _read(
    query: Array,
    source: Array,
    here: np.uint64,
    image: np.uint64,
    cells: tuple[np.uint64, np.uint64, np.uint64, np.uint64],
    shares: tuple[np.float32, np.float32, np.float32, np.float32],
    read: Array,
    point: np.uint64,
) -> np.float32:
    """Read one point into `read`, and return its product with the query."""
    i, j, k, m = cells
    a, b, c, d = shares
    product = np.float32(0)
    for channel in range(np.uint64(query.shape[1])):
        above = a * source[image, i, channel] + b * source[image, j, channel]
        value = above + (c * source[image, k, channel] + d * source[image, m, channel])
        read[point, channel] = value
        product += query[here, channel] * value
    return product


@compiled(fastmath={"contract"})
def _sum(score: Array, total: np.float32, read: Array, out: Array, here: np.uint64) -> None:
    """Write the sum of what was read, weighted by score / total."""
    for channel in range(np.uint64(read.shape[1])):
        out[here, channel] = 0.0
    for point in range(np.uint64(len(score))):
        share = score[point] / total
        for channel in range(np.uint64(read.shape[1])):
            out[here, channel] += share * read[point, channel]

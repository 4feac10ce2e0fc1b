"""Weighted sums of points read from a map whose channels are in groups, each with points of its own (DCNv3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.ops.sample import corners, gather_rows, to_grid


def grouped_sample_reference(value: Tensor, points: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Plain form of `grouped_sample`, by ``grid_sample`` on every group of every image.

    Args:
        value: float [B, N, G, C], an h x w map row by row; C channels in each of G groups.
        points: float [B, Q, G, P, 2], (x, y) in pixels; (0, 0) is the centre of the first, outside the map is zero.
        weights: float [B, Q, G, P].
        size: (h, w).

    Returns:
        float [B, Q, G, C].
    """
    batch, groups = value.shape[0], value.shape[2]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, size)  # [B * G, C, h, w]
    grid = to_grid(points, size).transpose(1, 2).flatten(0, 1)  # [B * G, Q, P, 2]
    read = F.grid_sample(maps, grid.to(maps.dtype), align_corners=False)  # [B * G, C, Q, P]
    shares = weights.to(maps.dtype).transpose(1, 2).flatten(0, 1)  # [B * G, Q, P]
    total = (read * shares[:, None]).sum(3)  # [B * G, C, Q]
    return total.unflatten(0, (batch, groups)).permute(0, 3, 1, 2)  # [B, Q, G, C]


def grouped_sample(value: Tensor, points: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """The same as one gather of rows; arguments and result as in `grouped_sample_reference`."""
    if torch.compiler.is_exporting():
        return grouped_sample_reference(value, points, weights, size)
    groups, count = value.shape[2], points.shape[1]
    index, share = corners(points, size, padding="zeros")  # [B, Q, G, P, 4]
    share = share * weights[..., None]  # [B, Q, G, P, 4]
    group = torch.arange(groups, device=value.device)[:, None, None]
    index = index * groups + group  # rows of value seen as [B, N * G, C]
    read = gather_rows(value.flatten(1, 2), index.flatten(3).flatten(1, 2), share.flatten(3).flatten(1, 2))
    return read.unflatten(1, (count, groups))  # [B, Q, G, C]

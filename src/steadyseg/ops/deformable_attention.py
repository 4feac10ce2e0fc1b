"""Multi-scale deformable attention: a query reads a few points of every level of a pyramid (Deformable DETR, Eq. (3)).

The queries are a list in which each says which image of the batch it reads, so a few pixels of every image cost no more
than their number. The linear maps of queries, values and results are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.ops import cpu_kernels, kernels
from steadyseg.ops.sample import gather_rows, may_be_node, pixel_centres


def deformable_attention_reference(
    values: Sequence[Tensor], sizes: Sequence[tuple[int, int]], points: Tensor, weights: Tensor, image: Tensor
) -> Tensor:
    """Plain form of `deformable_attention`, by ``grid_sample`` on every level of every image.

    Args:
        values: L maps, each float [B, N_l, D], an h_l x w_l map row by row; head m owns its m-th share of D.
        sizes: L pairs (h_l, w_l).
        points: float [2, L, Q, M, P], x then y in pixels of the level; (0, 0) is the centre of its first pixel, and
            what lies outside the map reads zero.
        weights: float [L, Q, M, P].
        image: int64 [Q], the image in 0..B-1 that each query reads.

    Returns:
        float [Q, D]: for each head the weighted sum of its points over all levels.
    """
    heads, width = points.shape[3], values[0].shape[2]
    out = values[0].new_zeros(len(image), width)
    for number in range(len(values[0])):
        mine = (image == number).nonzero()[:, 0]  # [q]
        total = values[0].new_zeros(len(mine), heads, width // heads)
        for level, (value, (h, w)) in enumerate(zip(values, sizes, strict=True)):
            maps = value[number].T.reshape(heads, width // heads, h, w)  # [M, D / M, h_l, w_l]
            scale = torch.tensor([2.0 / w, 2.0 / h], dtype=points.dtype, device=points.device)
            grid = (points[:, level, mine].movedim(0, -1) + 0.5) * scale - 1.0  # [q, M, P, 2]
            read = F.grid_sample(maps, grid.transpose(0, 1).to(maps.dtype), align_corners=False)  # [M, D / M, q, P]
            total = total + torch.einsum("mdqp,qmp->qmd", read, weights[level, mine].to(maps.dtype))
        out = out.index_copy(0, mine, total.flatten(1))  # [q, D]
    return out


def query_points(offsets: Tensor, pixel: Tensor, size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Place the points that queries read.

    Args:
        offsets: float32 [2, L, Q, M, P], x then y in pixels of the levels.
        pixel: int64 [Q], the place of each query in an h x w map, row by row.
        size: (h, w).
        sizes: L pairs (h_l, w_l).

    Returns:
        float32 [2, L, Q, M, P], x then y in pixels of the levels, (0, 0) the centre of the first.
    """
    x, y = (pixel_centres(size, offsets.device)[pixel] + 0.5).T  # each [Q]
    levels = [torch.stack((x * (w / size[1]), y * (h / size[0]))) for h, w in sizes]  # each [2, Q]
    centre = torch.stack(levels, dim=1) - 0.5  # [2, L, Q]
    return offsets + centre[..., None, None]


@may_be_node(lambda offsets, weights, chosen, *values: (chosen[0], values[0][2]))
def attend(offsets: Tensor, weights: Tensor, chosen: Tensor, *others: Any) -> Tensor:
    """Have chosen pixels read around their own places.

    Args:
        offsets: as in `query_points`.
        weights: as in `deformable_attention`.
        chosen: int64 [Q] in 0..B * N - 1, which pixel of which image each query is.
        others: the L values of `deformable_attention`, then `size` and `sizes` of `query_points`.

    Returns:
        float [Q, D], of the values' type.
    """
    *values, (height, width), sizes = others
    count = height * width
    points = query_points(offsets, chosen.long() % count, (height, width), sizes)
    return deformable_attention(values, sizes, points, weights, chosen.long() // count)


def deformable_attention(
    values: Sequence[Tensor], sizes: Sequence[tuple[int, int]], points: Tensor, weights: Tensor, image: Tensor
) -> Tensor:
    """Read the levels; arguments and result as in `deformable_attention_reference`, equal up to rounding.

    Every level is a table of B * N_l * M rows, one for each head of each pixel; every head of a query sums 4 P of them.
    """
    if kernels.are_chosen(points, weights, *values):
        from steadyseg.ops.kernels.deformable_attention import deformable_attention as fused

        return fused(values, sizes, points, weights, image)
    if cpu_kernels.are_chosen(points, weights, *values):
        from steadyseg.ops.cpu_kernels.deformable_attention import deformable_attention as fused_on_cpu

        return fused_on_cpu(values, sizes, points, weights, image)
    heads, width = points.shape[3], values[0].shape[2]
    parts = []
    for level, (value, size) in enumerate(zip(values, sizes, strict=True)):
        table = value.reshape(1, -1, width // heads)  # [1, B * N_l * M, D / M]
        row, share = _corners(points[:, level], weights[level], image, size)
        parts.append(gather_rows(table, row.flatten(2).flatten(0, 1)[None], share.flatten(2).flatten(0, 1)[None]))
    return sum(parts[1:], start=parts[0]).reshape(image.shape[0], width)  # [Q, D]


def _corners(points: Tensor, weights: Tensor, image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Find the four rows around each point, and what each of them adds.

    `ops.sample.corners` puts the four side by side. Here the points of a head stay together, which copies pieces of P
    numbers instead of single ones and takes half the time.

    Args:
        points: float [2, Q, M, P].
        weights: float [Q, M, P].
        image: int64 [Q].
        size: (h, w) of the level.

    Returns:
        rows int64 [Q, M, 4, P] of the table [B * h * w * M], and their weights float [Q, M, 4, P].
    """
    (h, w), heads = size, points.shape[2]
    left, share_left, share_right = _sides(points[0], w)
    top, share_top, share_bottom = _sides(points[1], h)
    first = image[:, None, None] * (h * w * heads) + torch.arange(heads, device=image.device)[:, None]  # [Q, M, 1]
    columns = [x.clamp(0, w - 1).long() * heads for x in (left, left + 1)]  # each [Q, M, P]
    rows = [y.clamp(0, h - 1).long() * (w * heads) + first for y in (top, top + 1)]
    vertical = [share * weights for share in (share_top, share_bottom)]
    row = torch.stack([y + x for y in rows for x in columns], dim=2)  # [Q, M, 4, P]
    share = torch.stack([y * x for y in vertical for x in (share_left, share_right)], dim=2)  # [Q, M, 4, P]
    return row, share


def _sides(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions along an axis of `count` cells -> the cell before each, its share, and that of the cell after it.

    Shares of cells outside the axis are zero, and so are both shares of a position beyond one cell outside.
    """
    x = x.clamp(-1, count)
    before = x.detach().floor()
    after = x - before
    return before, (1 - after) * ((before >= 0) & (before < count)), after * (before < count - 1)

"""Deformable convolution of the first version: every pixel reads its window at learned places (MSAF, Eq. (5))."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.ops.sample import sample, sample_reference


def deformable_conv_reference(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The paper's form, a sum over the places of the window: Y(p) = sum_k W_k X(p + p_k + Dp_k(p)) + b.

    Args:
        x: float [B, C, h, w].
        offset: float [B, 2 * k * k, h, w], how far each of the k x k places of the window moves, in pixels: (y, x) of
            the first place, of the second, and so on, row by row. The map is zero outside its border.
        weight: float [D, C, k, k], k odd, laid out as in an ordinary convolution, which zero offsets give.
        bias: float [D].

    Returns:
        float [B, D, h, w].
    """
    size = (x.shape[2], x.shape[3])
    points = window_points(offset, weight.shape[-1])  # [B, N, k * k, 2]
    tokens = x.flatten(2).transpose(1, 2)  # [B, N, C]
    total = bias
    for place, part in enumerate(weight.flatten(2).unbind(2)):  # each [D, C]
        total = total + F.linear(sample_reference(tokens, points[:, :, place], size, "zeros"), part)  # [B, N, D]
    return total.unflatten(1, size).permute(0, 3, 1, 2)  # [B, D, h, w]


def deformable_conv(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same as one gather of rows and one linear map; arguments and result as in `deformable_conv_reference`.

    Fastest where `x` is stored channels-last; so is the result. It holds k * k times the values of `x`.
    """
    size = (x.shape[2], x.shape[3])
    points = window_points(offset.float(), weight.shape[-1])  # [B, N, k * k, 2]
    read = sample(x.flatten(2).transpose(1, 2), points.flatten(1, 2), size, "zeros")  # [B, N * k * k, C]
    window = read.unflatten(1, points.shape[1:3]).flatten(2)  # [B, N, k * k * C]
    matrix = weight.permute(0, 2, 3, 1).flatten(1)  # [D, k * k * C]
    return F.linear(window, matrix, bias).unflatten(1, size).permute(0, 3, 1, 2)  # [B, D, h, w]


def window_points(offset: Tensor, side: int) -> Tensor:
    """Return where every pixel reads.

    Args:
        offset: float [B, 2 * side * side, h, w], as in `deformable_conv_reference`.
        side: of the window; odd.

    Returns:
        [B, N, side * side, 2], (x, y) in pixels, of the offset's dtype; (0, 0) is the centre of the first pixel.
    """
    h, w = offset.shape[2:]
    rows, columns, axis = (torch.arange(count, device=offset.device, dtype=offset.dtype) for count in (h, w, side))
    here = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # [N, 2]
    window = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).flatten(0, 1) - side // 2  # [k * k, 2]
    moved = offset.flatten(2).transpose(1, 2).unflatten(2, (-1, 2))  # [B, N, k * k, 2]
    return (here[:, None] + window + moved).flip(-1)

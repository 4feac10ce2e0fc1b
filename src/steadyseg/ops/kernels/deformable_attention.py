"""Sparse multi-scale deformable attention: one kernel a level, which adds to the levels before it.

A program holds a few heads of queries. For one point after the other it reads the four rows around it, of one head, and
adds their weighted sum. Queries are a list, so its work follows their number; without any, no kernel runs.

In the backward pass each level's values get their gradient by atomics, in float32: no sorting, no memory besides the
gradient, even work where many points read the same pixel. Its last bits may differ from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 1024
"""Heads of queries times channels of one program."""


def deformable_attention(
    values: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    points: Tensor,
    weights: Tensor,
    image: Tensor,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Read the levels as `ops.deformable_attention.deformable_attention` does.

    Args:
        values: L maps, each float [B, N_l, D], an h_l x w_l map row by row; head m owns its m-th share of D.
        sizes: L pairs (h_l, w_l).
        points: float [2, L, Q, M, P], x then y in pixels of the level; what lies outside the map reads zero.
        weights: float [L, Q, M, P].
        image: int64 [Q], the image in 0..B-1 that each query reads.
        dtype: of the result; that of `values` by default.

    Returns:
        float [Q, D]; gradients flow to `values`, `points` and `weights`. Everything is computed in float32.
    """
    if torch.compiler.is_compiling():
        sides = [side for size in sizes for side in size]
        return _whole(points, weights, image, sides, dtype or values[0].dtype, list(values))
    return _DeformableAttention.apply(points, weights, image, tuple(sizes), dtype or values[0].dtype, *values)


@torch.library.custom_op(
    "steadyseg::deformable_attention",
    mutates_args=(),
    schema="(Tensor points, Tensor weights, Tensor image, int[] sides, ScalarType dtype, Tensor[] values) -> Tensor",
)
def _whole(
    points: Tensor, weights: Tensor, image: Tensor, sides: Sequence[int], dtype: torch.dtype, values: Sequence[Tensor]
) -> Tensor:
    """`deformable_attention` as one operation of a compiled graph, without gradients; `sides`: h, w of each level."""
    sizes = tuple(zip(sides[::2], sides[1::2], strict=True))
    return _DeformableAttention.apply(points, weights, image, sizes, dtype, *values)


@_whole.register_fake
def _(
    points: Tensor, weights: Tensor, image: Tensor, sides: Sequence[int], dtype: torch.dtype, values: Sequence[Tensor]
) -> Tensor:
    return points.new_empty((len(image), values[0].shape[2]), dtype=dtype)


class _DeformableAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        weights: Tensor,
        image: Tensor,
        sizes: tuple[tuple[int, int], ...],
        dtype: torch.dtype,
        *values: Tensor,
    ) -> Tensor:
        points, weights, image = points.contiguous(), weights.contiguous(), image.contiguous()
        values = tuple(value.contiguous() for value in values)
        out = points.new_zeros((len(image), values[0].shape[2]), dtype=torch.float32)  # [Q, D]
        if out.numel() and points.numel():
            with torch.cuda.device_of(points):
                for level, (value, size) in enumerate(zip(values, sizes, strict=True)):
                    shape = _shape(value, size, points)
                    _read[_grid(shape)](value, points[0, level], points[1, level], weights[level], image, out, **shape)
        ctx.save_for_backward(points, weights, image, *values)
        ctx.sizes = sizes
        return out.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        points, weights, image, *values = ctx.saved_tensors
        grad = grad.contiguous()
        grad_points, grad_weights = torch.empty_like(points), torch.empty_like(weights)
        grad_values = [torch.zeros_like(value, dtype=torch.float32) for value in values]
        if grad.numel() and points.numel():
            with torch.cuda.device_of(points):
                for level, (value, size) in enumerate(zip(values, ctx.sizes, strict=True)):
                    shape = _shape(value, size, points)
                    _read_backward[_grid(shape)](
                        *(value, points[0, level], points[1, level], weights[level], image, grad),
                        *(grad_values[level], grad_points[0, level], grad_points[1, level], grad_weights[level]),
                        **shape,
                        VALUES=ctx.needs_input_grad[5 + level],
                    )
        needed = ctx.needs_input_grad
        return (
            grad_points if needed[0] else None,
            grad_weights if needed[1] else None,
            *(None, None, None),
            *(
                new.to(old.dtype) if want else None
                for new, old, want in zip(grad_values, values, needed[5:], strict=True)
            ),
        )


def _grid(shape: dict[str, Any]) -> tuple[int]:
    return (triton.cdiv(shape["rows"], shape["BLOCK_R"]),)


def _shape(value: Tensor, size: tuple[int, int], points: Tensor) -> dict[str, Any]:
    """What both kernels know of their tensors, and how they are compiled; a row is one head of one query."""
    _, _, queries, heads, count = points.shape
    width = value.shape[2] // heads
    block = triton.next_power_of_2(width)
    return {
        "rows": queries * heads,
        "height": size[0],
        "width": size[1],
        "M": heads,
        "P": count,
        "C": width,
        "BLOCK_R": max(1, _TILE // block),
        "BLOCK_C": block,
        "enable_fp_fusion": True,
    }


@triton.jit
def _sides(x: tl.tensor, count: tl.tensor) -> Any:
    """Positions float32 on an axis -> the cell before each, the cell after it, the shares of both, their derivatives.

    A cell outside the axis has share and derivative zero, and stands for the next one inside; NaN stays NaN.
    """
    is_near = x >= -1.0
    x = tl.clamp(x, -1.0, tl.cast(count, tl.float32), propagate_nan=tl.PropagateNan.ALL)
    before = tl.floor(x)
    fraction = x - before
    cell = tl.minimum(tl.maximum(before.to(tl.int32), -1), count)
    is_first, is_second = (cell >= 0) & (cell < count), cell < count - 1
    share_first = tl.where(is_first, 1.0 - fraction, fraction * 0.0)
    share_second = tl.where(is_second, fraction, fraction * 0.0)
    slope_first, slope_second = tl.where(is_first, -1.0, 0.0), tl.where(is_near & is_second, 1.0, 0.0)
    first, second = tl.minimum(tl.maximum(cell, 0), count - 1), tl.minimum(cell + 1, count - 1)
    return first, second, share_first, share_second, slope_first, slope_second


@triton.jit
def _read(
    value: tl.tensor,
    xs: tl.tensor,
    ys: tl.tensor,
    weights: tl.tensor,
    image: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    M: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Add one level's part of BLOCK_R heads of queries to `out` [rows, C]."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    is_row, is_channel = row < rows, channel < C
    mask = is_row[:, None] & is_channel[None, :]
    start = tl.load(image + row // M, mask=is_row, other=0) * height * width  # first pixel of the query's image
    head = (row % M)[:, None] * C + channel[None, :]
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    acc = tl.load(out + place, mask=mask, other=0.0)
    for p in tl.range(0, P, loop_unroll_factor=4):
        at = row.to(tl.int64) * P + p
        left, right, fx0, fx1, _, _ = _sides(tl.load(xs + at, mask=is_row, other=0.0).to(tl.float32), width)
        top, bottom, fy0, fy1, _, _ = _sides(tl.load(ys + at, mask=is_row, other=0.0).to(tl.float32), height)
        upper, lower = start + top * width, start + bottom * width
        weight = tl.load(weights + at, mask=is_row, other=0.0).to(tl.float32)
        a = tl.load(value + (upper + left)[:, None] * (M * C) + head, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(value + (upper + right)[:, None] * (M * C) + head, mask=mask, other=0.0).to(tl.float32)
        c = tl.load(value + (lower + left)[:, None] * (M * C) + head, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(value + (lower + right)[:, None] * (M * C) + head, mask=mask, other=0.0).to(tl.float32)
        acc += (weight * fy0 * fx0)[:, None] * a + (weight * fy0 * fx1)[:, None] * b
        acc += (weight * fy1 * fx0)[:, None] * c + (weight * fy1 * fx1)[:, None] * d
    tl.store(out + place, acc, mask=mask)


@triton.jit
def _read_backward(
    value: tl.tensor,
    xs: tl.tensor,
    ys: tl.tensor,
    weights: tl.tensor,
    image: tl.tensor,
    grad: tl.tensor,
    grad_value: tl.tensor,
    grad_xs: tl.tensor,
    grad_ys: tl.tensor,
    grad_weights: tl.tensor,
    rows: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    M: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VALUES: tl.constexpr,
) -> None:
    """Gradients of one level's points and weights, and what BLOCK_R heads of queries add to that of its values."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    is_row, is_channel = row < rows, channel < C
    mask = is_row[:, None] & is_channel[None, :]
    start = tl.load(image + row // M, mask=is_row, other=0) * height * width
    head = (row % M)[:, None] * C + channel[None, :]
    g = tl.load(grad + row.to(tl.int64)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    for p in range(P):
        at = row.to(tl.int64) * P + p
        left, right, fx0, fx1, dx0, dx1 = _sides(tl.load(xs + at, mask=is_row, other=0.0).to(tl.float32), width)
        top, bottom, fy0, fy1, dy0, dy1 = _sides(tl.load(ys + at, mask=is_row, other=0.0).to(tl.float32), height)
        upper, lower = start + top * width, start + bottom * width
        at_a, at_b = (upper + left)[:, None] * (M * C) + head, (upper + right)[:, None] * (M * C) + head
        at_c, at_d = (lower + left)[:, None] * (M * C) + head, (lower + right)[:, None] * (M * C) + head
        a = tl.sum(g * tl.load(value + at_a, mask=mask, other=0.0).to(tl.float32), 1)
        b = tl.sum(g * tl.load(value + at_b, mask=mask, other=0.0).to(tl.float32), 1)
        c = tl.sum(g * tl.load(value + at_c, mask=mask, other=0.0).to(tl.float32), 1)
        d = tl.sum(g * tl.load(value + at_d, mask=mask, other=0.0).to(tl.float32), 1)
        weight = tl.load(weights + at, mask=is_row, other=0.0).to(tl.float32)
        above, below = fx0 * a + fx1 * b, fx0 * c + fx1 * d
        along_x = fy0 * (dx0 * a + dx1 * b) + fy1 * (dx0 * c + dx1 * d)
        tl.store(grad_xs + at, weight * along_x, mask=is_row)
        tl.store(grad_ys + at, weight * (dy0 * above + dy1 * below), mask=is_row)
        tl.store(grad_weights + at, fy0 * above + fy1 * below, mask=is_row)
        if VALUES:
            share_a, share_b = weight * fy0 * fx0, weight * fy0 * fx1
            share_c, share_d = weight * fy1 * fx0, weight * fy1 * fx1
            tl.atomic_add(grad_value + at_a, share_a[:, None] * g, mask=mask & (share_a != 0.0)[:, None], sem="relaxed")
            tl.atomic_add(grad_value + at_b, share_b[:, None] * g, mask=mask & (share_b != 0.0)[:, None], sem="relaxed")
            tl.atomic_add(grad_value + at_c, share_c[:, None] * g, mask=mask & (share_c != 0.0)[:, None], sem="relaxed")
            tl.atomic_add(grad_value + at_d, share_d[:, None] * g, mask=mask & (share_d != 0.0)[:, None], sem="relaxed")

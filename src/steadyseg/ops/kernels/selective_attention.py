"""Attention over a few fractional positions as one kernel: sample, multiply, soft-max, sum.

A program holds a few queries with all their channels. It reads the four rows around one point after the other and
keeps a running maximum, soft-max total and weighted sum, so nothing of size [B, N, P, C] exists anywhere. The backward
pass reads the same rows again; it needs the logarithm of each query's soft-max total, one number a query.

The gradient of the source is added up by atomics, in float32: no sorting, no memory besides the gradient, and the work
stays even where many points were clamped to the same border cell. The order of the sums, hence their last bits, may
differ from run to run, as in torch's own gradient of a bilinear resize on a GPU.
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
"""Queries times channels of one program."""


def selective_attention(
    query: Tensor, source: Tensor, points: Tensor, size: tuple[int, int], *, dtype: torch.dtype | None = None
) -> Tensor:
    """Attend as `ops.selective_attention.selective_attention` does.

    Args:
        query: float [B, N, C].
        source: float [B, M, C], an h x w map row by row; may have another type than `query`.
        points: float [B, N, P, 2] (x, y) in pixels of the map, clamped to its border; P >= 1.
        size: (h, w) of the map; M = h * w.
        dtype: of the result; that of `query` by default.

    Returns:
        float [B, N, C]; gradients flow to `query`, `source` and `points`. Everything is computed in float32.
    """
    if torch.compiler.is_compiling():
        return _whole(query, source, points, size, dtype or query.dtype)
    is_training = torch.is_grad_enabled() and any(x.requires_grad for x in (query, source, points))
    made = torch.float32 if is_training else dtype or query.dtype  # gradients need what rounding would take away
    return _SelectiveAttention.apply(query, source, points, size, made).to(dtype or query.dtype)


@torch.library.custom_op(
    "steadyseg::selective_attention",
    mutates_args=(),
    schema="(Tensor query, Tensor source, Tensor points, int[] size, ScalarType dtype) -> Tensor",
)
def _whole(query: Tensor, source: Tensor, points: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`selective_attention` as one operation of a compiled graph, without gradients."""
    return _SelectiveAttention.apply(query, source, points, size, dtype)


@_whole.register_fake
def _(query: Tensor, source: Tensor, points: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_like(query, dtype=dtype, memory_format=torch.contiguous_format)


class _SelectiveAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, source: Tensor, points: Tensor, size: tuple[int, int], dtype: torch.dtype
    ) -> Tensor:
        query, source, points = query.contiguous(), source.contiguous(), points.contiguous()
        out = torch.empty_like(query, dtype=dtype)  # query is contiguous
        total = query.new_empty(query.shape[:2], dtype=torch.float32)  # [B, N]
        if query.numel():
            with torch.cuda.device_of(query):
                _attend[_grid(query)](query, source, points, out, total, **_shape(query, points, size))
        ctx.save_for_backward(query, source, points, out, total)
        ctx.size = size
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, source, points, out, total = ctx.saved_tensors
        grad = grad.contiguous()
        grad_query, grad_points = torch.empty_like(query), torch.empty_like(points)
        grad_source = torch.zeros_like(source, dtype=torch.float32)
        if query.numel():
            with torch.cuda.device_of(query):
                _attend_backward[_grid(query)](
                    *(query, source, points, out, total, grad, grad_query, grad_source, grad_points),
                    **_shape(query, points, ctx.size),
                    SOURCE=ctx.needs_input_grad[1],
                    POINTS=ctx.needs_input_grad[2],
                )
        needed = ctx.needs_input_grad
        return (
            grad_query if needed[0] else None,
            grad_source.to(source.dtype) if needed[1] else None,
            grad_points if needed[2] else None,
            *(None, None),
        )


def _block(query: Tensor) -> int:
    """Queries of one program."""
    return max(1, _TILE // triton.next_power_of_2(query.shape[2]))


def _grid(query: Tensor) -> tuple[int]:
    return (triton.cdiv(query.shape[0] * query.shape[1], _block(query)),)


def _shape(query: Tensor, points: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """What both kernels know of their tensors, and how they are compiled."""
    return {
        "rows": query.shape[0] * query.shape[1],
        "queries": query.shape[1],
        "height": size[0],
        "width": size[1],
        "scale": query.shape[2] ** -0.5,
        "P": points.shape[2],
        "C": query.shape[2],
        "BLOCK_N": _block(query),
        "BLOCK_C": triton.next_power_of_2(query.shape[2]),
        "enable_fp_fusion": True,
    }


@triton.jit
def _clamped(x: tl.tensor, count: tl.tensor) -> Any:
    """Positions float32 on an axis -> the cell before each, the cell after it, the share of the second, and 1 or 0.

    The last is the derivative of the clamping. NaN stays NaN in the share, and the cells are inside the map.
    """
    last = tl.cast(count - 1, tl.float32)
    inside = tl.where((x >= 0.0) & (x <= last), 1.0, 0.0)
    x = tl.clamp(x, 0.0, last, propagate_nan=tl.PropagateNan.ALL)
    before = tl.floor(x)
    first = tl.minimum(tl.maximum(before.to(tl.int32), 0), count - 1)
    return first, tl.minimum(first + 1, count - 1), x - before, inside


@triton.jit
def _attend(
    query: tl.tensor,
    source: tl.tensor,
    points: tl.tensor,
    out: tl.tensor,
    totals: tl.tensor,
    rows: tl.tensor,
    queries: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    P: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """BLOCK_N queries: `out` [rows, C] and the logarithm of each soft-max total, `totals` [rows]."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    is_row, is_channel = row < rows, channel < C
    mask = is_row[:, None] & is_channel[None, :]
    start = (row // queries).to(tl.int64) * height * width  # first cell of the query's image
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    q = tl.load(query + place, mask=mask, other=0.0).to(tl.float32) * scale
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for p in tl.range(0, P, loop_unroll_factor=4):
        at = points + (row.to(tl.int64) * P + p) * 2
        left, right, fx, _ = _clamped(tl.load(at, mask=is_row, other=0.0).to(tl.float32), width)
        top, bottom, fy, _ = _clamped(tl.load(at + 1, mask=is_row, other=0.0).to(tl.float32), height)
        upper, lower = start + top * width, start + bottom * width
        a = tl.load(source + (upper + left)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(source + (upper + right)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        c = tl.load(source + (lower + left)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        d = tl.load(source + (lower + right)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        above, below = a * (1 - fx)[:, None] + b * fx[:, None], c * (1 - fx)[:, None] + d * fx[:, None]
        read = above * (1 - fy)[:, None] + below * fy[:, None]
        score = tl.sum(q * read, 1)
        highest = tl.maximum(best, score)
        keep, share = tl.exp(best - highest), tl.exp(score - highest)
        total = total * keep + share
        acc = acc * keep[:, None] + share[:, None] * read
        best = highest
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(totals + row, best + tl.log(total), mask=is_row)


@triton.jit
def _attend_backward(
    query: tl.tensor,
    source: tl.tensor,
    points: tl.tensor,
    out: tl.tensor,
    totals: tl.tensor,
    grad: tl.tensor,
    grad_query: tl.tensor,
    grad_source: tl.tensor,
    grad_points: tl.tensor,
    rows: tl.tensor,
    queries: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    P: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SOURCE: tl.constexpr,
    POINTS: tl.constexpr,
) -> None:
    """Gradients of BLOCK_N queries and of their points, and what they add to the gradient of the source.

    With the share a of a point, its row r, the scaled query q and the upstream gradient g: the gradient of the point's
    score is s = a (g . r - g . out), that of its row a g + s q, and that of the scaled query the sum of s r.
    """
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    is_row, is_channel = row < rows, channel < C
    mask = is_row[:, None] & is_channel[None, :]
    start = (row // queries).to(tl.int64) * height * width
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    q = tl.load(query + place, mask=mask, other=0.0).to(tl.float32) * scale
    g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(g * tl.load(out + place, mask=mask, other=0.0).to(tl.float32), 1)  # g . out
    total = tl.load(totals + row, mask=is_row, other=0.0)
    acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for p in range(P):
        at = (row.to(tl.int64) * P + p) * 2
        left, right, fx, inside_x = _clamped(tl.load(points + at, mask=is_row, other=0.0).to(tl.float32), width)
        top, bottom, fy, inside_y = _clamped(tl.load(points + at + 1, mask=is_row, other=0.0).to(tl.float32), height)
        upper, lower = start + top * width, start + bottom * width
        at_a, at_b = (upper + left)[:, None] * C + channel[None, :], (upper + right)[:, None] * C + channel[None, :]
        at_c, at_d = (lower + left)[:, None] * C + channel[None, :], (lower + right)[:, None] * C + channel[None, :]
        a = tl.load(source + at_a, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(source + at_b, mask=mask, other=0.0).to(tl.float32)
        c = tl.load(source + at_c, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(source + at_d, mask=mask, other=0.0).to(tl.float32)
        above, below = a * (1 - fx)[:, None] + b * fx[:, None], c * (1 - fx)[:, None] + d * fx[:, None]
        read = above * (1 - fy)[:, None] + below * fy[:, None]
        share = tl.exp(tl.sum(q * read, 1) - total)
        slope = share * (tl.sum(g * read, 1) - mean)
        acc += slope[:, None] * read
        grad_read = share[:, None] * g + slope[:, None] * q
        if POINTS:
            along_x = (b - a) * (1 - fy)[:, None] + (d - c) * fy[:, None]
            tl.store(grad_points + at, inside_x * tl.sum(grad_read * along_x, 1), mask=is_row)
            tl.store(grad_points + at + 1, inside_y * tl.sum(grad_read * (below - above), 1), mask=is_row)
        if SOURCE:
            tl.atomic_add(grad_source + at_a, grad_read * ((1 - fx) * (1 - fy))[:, None], mask=mask, sem="relaxed")
            tl.atomic_add(grad_source + at_b, grad_read * (fx * (1 - fy))[:, None], mask=mask, sem="relaxed")
            tl.atomic_add(grad_source + at_c, grad_read * ((1 - fx) * fy)[:, None], mask=mask, sem="relaxed")
            tl.atomic_add(grad_source + at_d, grad_read * (fx * fy)[:, None], mask=mask, sem="relaxed")
    tl.store(grad_query + place, (acc * scale).to(grad_query.dtype.element_ty), mask=mask)

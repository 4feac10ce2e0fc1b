"""Bilinear resize and arg-max as one kernel: low-resolution logits straight to uint8 labels.

A program makes the labels of a tile of pixels that all lie between the same two rows of samples. For one class after
the other it reads these samples, once for all rows of the tile, interpolates, and keeps the class if it is better than
the best so far, so the lowest class wins a tie. Classes with equal samples have equal scores, as all classes go through
the same operations.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 8, 32
"""Of one program, which is one warp: a thread makes a column, so that every sample is read once."""


def upsample_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Label as `ops.upsample_argmax.upsample_argmax_reference` does, but where two classes tie up to rounding.

    The weights of the samples are exact quotients of integers, rounded once.

    Args:
        logits: float32, float16 or bfloat16 [B, K, h, w], 1 <= K <= 256, in any layout.
        size: (H, W) of the result.

    Returns:
        uint8 [B, H, W] class index. A NaN counts as the best score, as in ``torch.argmax``.
    """
    batch, classes, h, w = logits.shape
    labels = logits.new_empty((batch, *size), dtype=torch.uint8)
    parts = triton.cdiv(3 * size[0] // (2 * h) + 2, _ROWS)  # of the most rows between two rows of samples
    grid = (h * parts, triton.cdiv(size[1], _COLUMNS), batch)
    with torch.cuda.device_of(logits):
        _label[grid](
            *(logits, labels, *logits.stride(), classes, h, w, *size, parts),
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
            num_warps=1,
            enable_fp_fusion=True,
        )
    return labels


@triton.jit
def _sides(line: tl.tensor, samples: tl.tensor, lines: tl.tensor) -> Any:
    """Lines of a resized axis -> the sample before each, the one after it, and the share of the second."""
    place = tl.maximum((2 * line + 1) * samples - lines, 0)  # in units of 1 / (2 * lines) samples
    first = place // (2 * lines)
    share = (place - first * (2 * lines)).to(tl.float32) / tl.cast(2 * lines, tl.float32)
    first = tl.minimum(first, samples - 1)
    return first, tl.minimum(first + 1, samples - 1), share


@triton.jit
def _start(cell: tl.tensor, samples: tl.tensor, lines: tl.tensor) -> Any:
    """Return the first line of a resized axis whose sample before it is `cell`; the number of lines past the last."""
    first = tl.where(cell == 0, 0, ((2 * cell + 1) * lines + samples - 1) // (2 * samples))
    return tl.where(cell >= samples, lines, tl.minimum(first, lines))


@triton.jit
def _between(
    upper: tl.tensor, lower: tl.tensor, left: tl.tensor, right: tl.tensor, fx: tl.tensor, mask: tl.tensor
) -> Any:
    """Resize two rows of samples of one class along x: float32 of each column."""
    a = tl.load(upper + left, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(upper + right, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(lower + left, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(lower + right, mask=mask, other=0.0).to(tl.float32)
    return (1 - fx) * a + fx * b, (1 - fx) * c + fx * d


@triton.jit
def _label(
    logits: tl.tensor,
    labels: tl.tensor,
    stride_b: tl.tensor,
    stride_k: tl.tensor,
    stride_y: tl.tensor,
    stride_x: tl.tensor,
    classes: tl.tensor,
    h: tl.tensor,
    w: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    parts: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """ROWS rows between the same two rows of samples, COLUMNS columns of one image: `labels` [B, height, width]."""
    cell = tl.program_id(0) // parts
    image = tl.program_id(2).to(tl.int64)
    y = _start(cell, h, height) + (tl.program_id(0) % parts) * ROWS + tl.arange(0, ROWS)
    is_row = y < _start(cell + 1, h, height)
    if tl.sum(is_row.to(tl.int32), 0) > 0:
        x = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = x < width
        _, _, fy = _sides(y, h, height)
        left, right, fx = _sides(x, w, width)
        fy = fy[:, None]
        left, right = left * stride_x, right * stride_x
        upper = logits + image * stride_b + cell * stride_y
        lower = logits + image * stride_b + tl.minimum(cell + 1, h - 1) * stride_y
        best = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
        label = tl.zeros((ROWS, COLUMNS), tl.int32)
        infinite = tl.zeros((COLUMNS,), tl.float32)
        for k in tl.range(0, classes, loop_unroll_factor=4):
            above, below = _between(upper + k * stride_k, lower + k * stride_k, left, right, fx, is_column)
            score = (1 - fy) * above[None, :] + fy * below[None, :]
            better = score > best
            best, label = tl.where(better, score, best), tl.where(better, k, label)
            infinite += 0.0 * (above + below)
        if tl.sum((infinite != infinite).to(tl.int32), 0) > 0:  # noqa: PLR0124  # NaN or an infinity: the first NaN wins
            best = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
            label = tl.zeros((ROWS, COLUMNS), tl.int32)
            for k in range(classes):
                above, below = _between(upper + k * stride_k, lower + k * stride_k, left, right, fx, is_column)
                score = (1 - fy) * above[None, :] + fy * below[None, :]
                better = (score > best) | ((score != score) & (best == best))  # noqa: PLR0124
                best, label = tl.where(better, score, best), tl.where(better, k, label)
        place = y.to(tl.int64)[:, None] * width + x[None, :]
        mask = is_row[:, None] & is_column[None, :]
        tl.store(labels + image * height * width + place, label.to(tl.uint8), mask=mask)

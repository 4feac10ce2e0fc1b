"""Bilinear resize and arg-max as one kernel: low-resolution logits straight to uint8 labels.

A program makes the labels of a run of pixels. For one class after the other it reads the four samples around each
pixel, interpolates, and keeps the class if it is better than the best so far, so the lowest class wins a tie. Classes
with equal samples have equal scores, as all classes go through the same operations.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIXELS = 256
"""Of one program."""


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
    grid = (triton.cdiv(size[0] * size[1], _PIXELS), batch)
    with torch.cuda.device_of(logits):
        _label[grid](logits, labels, *logits.stride(), classes, h, w, *size, BLOCK=_PIXELS, enable_fp_fusion=True)
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
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK pixels of one image: `labels` [B, height, width]."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    mask = pixel < height * width
    top, bottom, fy = _sides(pixel // width, h, height)
    left, right, fx = _sides(pixel % width, w, width)
    base = logits + image * stride_b
    at_a, at_b = base + (top * stride_y + left * stride_x), base + (top * stride_y + right * stride_x)
    at_c, at_d = base + (bottom * stride_y + left * stride_x), base + (bottom * stride_y + right * stride_x)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK,), tl.int32)
    for k in tl.range(0, classes, loop_unroll_factor=4):
        step = k * stride_k
        a = tl.load(at_a + step, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(at_b + step, mask=mask, other=0.0).to(tl.float32)
        c = tl.load(at_c + step, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(at_d + step, mask=mask, other=0.0).to(tl.float32)
        score = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d)
        better = (score > best) | ((score != score) & (best == best))  # noqa: PLR0124  # the first NaN wins
        best, label = tl.where(better, score, best), tl.where(better, k, label)
    tl.store(labels + image * height * width + pixel, label.to(tl.uint8), mask=mask)

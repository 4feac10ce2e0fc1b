"""Depth-wise 3x3 convolution and GELU as one kernel: the map is read and written once.

A program makes some columns of four rows, with some of their channels, and reads each place three times, once for every
column of the window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS, _CHANNELS = 8, 64
"""Of one program."""


def depthwise_gelu(tokens: Tensor, size: Sequence[int], weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve and activate as `ops.depthwise_gelu.depthwise_gelu_reference` does, without gradients.

    Args:
        tokens: float [B, N, C], an h x w map row by row.
        size: (h, w).
        weight: float [C, 1, 3, 3].
        bias: float [C].

    Returns:
        [B, N, C], of the type of `tokens`. Everything is computed in float32, and rounded once.
    """
    by_place = weight.flatten(1).t().contiguous()  # [9, C], made once where weights are constants of a graph
    if torch.compiler.is_compiling():
        return _whole(tokens, size, by_place, bias)
    return _run(tokens, size, by_place, bias)


def _run(tokens: Tensor, size: Sequence[int], weight: Tensor, bias: Tensor) -> Tensor:
    tokens, weight = tokens.contiguous(), weight.contiguous()  # a graph may have changed the layout
    batch, _, channels = tokens.shape
    out = torch.empty_like(tokens)
    height, width = size
    grid = (triton.cdiv(width, _COLUMNS) * triton.cdiv(height, 4) * batch, triton.cdiv(channels, _CHANNELS))
    if out.numel():
        with torch.cuda.device_of(tokens):
            _convolve[grid](
                *(tokens, weight, bias, out, height, width, channels),
                BLOCK_X=_COLUMNS,
                BLOCK_C=_CHANNELS,
                enable_fp_fusion=True,
            )
    return out


@torch.library.custom_op(
    "steadyseg::depthwise_gelu",
    mutates_args=(),
    schema="(Tensor tokens, int[] size, Tensor weight, Tensor bias) -> Tensor",
)
def _whole(tokens: Tensor, size: Sequence[int], weight: Tensor, bias: Tensor) -> Tensor:
    """`depthwise_gelu` as one operation of a compiled graph."""
    return _run(tokens, size, weight, bias)


@_whole.register_fake
def _(tokens: Tensor, size: Sequence[int], weight: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(tokens, memory_format=torch.contiguous_format)


@triton.jit
def _convolve(
    tokens: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Four rows of BLOCK_X pixels of one image, BLOCK_C channels: `out` [B, height * width, channels].

    `weight` is [9, channels].
    """
    runs = tl.cdiv(width, BLOCK_X)
    bands = tl.cdiv(height, 4)
    band = tl.program_id(0) // runs  # of all images
    image = band // bands
    y = (band % bands) * 4
    x = (tl.program_id(0) % runs) * BLOCK_X + tl.arange(0, BLOCK_X)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < channels
    tokens += image.to(tl.int64) * height * width * channels
    out += image.to(tl.int64) * height * width * channels
    start = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    first = tl.zeros((BLOCK_X, BLOCK_C), tl.float32) + start
    second, third, fourth = first, first, first
    for i in tl.static_range(3):
        beside = x + i - 1
        is_pixel = ((beside >= 0) & (beside < width))[:, None] & is_channel[None, :]
        place = beside[:, None] * channels + channel[None, :]
        upper = tl.load(weight + i * channels + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
        middle = tl.load(weight + (3 + i) * channels + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
        lower = tl.load(weight + (6 + i) * channels + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
        for j in tl.static_range(6):
            row = y + j - 1
            mask = is_pixel & (row >= 0) & (row < height)
            read = tl.load(tokens + row * width * channels + place, mask=mask, other=0.0).to(tl.float32)
            if j < 3:
                first += read * (upper if j == 0 else (middle if j == 1 else lower))
            if j >= 1 and j < 4:
                second += read * (upper if j == 1 else (middle if j == 2 else lower))
            if j >= 2 and j < 5:
                third += read * (upper if j == 2 else (middle if j == 3 else lower))
            if j >= 3:
                fourth += read * (upper if j == 3 else (middle if j == 4 else lower))
    mask = (x < width)[:, None] & is_channel[None, :]
    place = x[:, None] * channels + channel[None, :]
    for j in tl.static_range(4):
        acc = first if j == 0 else (second if j == 1 else (third if j == 2 else fourth))
        active = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
        row = y + j
        tl.store(out + row * width * channels + place, active.to(out.dtype.element_ty), mask=mask & (row < height))

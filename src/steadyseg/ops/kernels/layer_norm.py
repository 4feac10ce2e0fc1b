"""Layer normalisation as one kernel: a program normalises some rows, which it reads once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048
"""Rows times channels of one program."""


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Normalise as `ops.layer_norm.layer_norm` does, without gradients.

    Args:
        x: float [..., C].
        weight: float [C]; None is ones.
        bias: float [C]; None is zeros.
        eps: added to the variance.
        dtype: of the result.

    Returns:
        [..., C]. Everything is computed in float32.
    """
    x = x.contiguous()
    channels = x.shape[-1]
    out = torch.empty_like(x, dtype=dtype)
    block = triton.next_power_of_2(channels)
    rows = max(1, _TILE // block)
    if out.numel():
        count = x.numel() // channels
        with torch.cuda.device_of(x):
            _normalise[(triton.cdiv(count, rows),)](
                *(x, x if weight is None else weight, x if bias is None else bias, out, count, eps),
                C=channels,
                BLOCK_N=rows,
                BLOCK_C=block,
                WEIGHT=weight is not None,
                BIAS=bias is not None,
                enable_fp_fusion=True,
            )
    return out


@triton.jit
def _normalise(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
) -> None:
    """BLOCK_N rows of `x` [rows, C]."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    is_channel = channel < C
    mask = (row < rows)[:, None] & is_channel[None, :]
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    read = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(read, 1) / C
    apart = tl.where(is_channel[None, :], read - mean[:, None], 0.0)
    normal = apart * tl.rsqrt(tl.sum(apart * apart, 1) / C + eps)[:, None]
    if WEIGHT:
        normal *= tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        normal += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    tl.store(out + place, normal.to(out.dtype.element_ty), mask=mask)

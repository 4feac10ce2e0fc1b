"""Weighted sums of rows of a table as one kernel: deformable convolution and sampling at points go through it.

A program makes a few sums with all their channels and reads one row of each after the other. In the backward pass the
weights' gradients are products with the same rows. The table's gradient is added up by atomics, in float32: no sorting,
and the work stays even where many sums read the same row. Its last bits may differ from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 1024
"""Sums times channels of one program."""


def gather_rows(tokens: Tensor, index: Tensor, weight: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return weighted sums of rows, as `ops.sample.gather_rows` does.

    Args:
        tokens: float [B, N, C].
        index: int64 [B, M, J] in 0..N-1.
        weight: float [B, M, J].
        dtype: of the result; that of `tokens` by default.

    Returns:
        float [B, M, C]; gradients flow to `tokens` and `weight`. Everything is computed in float32.
    """
    if torch.compiler.is_compiling():
        return _whole(tokens, index, weight, dtype or tokens.dtype)
    return _GatherRows.apply(tokens, index, weight, dtype or tokens.dtype)


@torch.library.custom_op(
    "steadyseg::gather_rows",
    mutates_args=(),
    schema="(Tensor tokens, Tensor index, Tensor weight, ScalarType dtype) -> Tensor",
)
def _whole(tokens: Tensor, index: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`gather_rows` as one operation of a compiled graph, without gradients."""
    return _GatherRows.apply(tokens, index, weight, dtype)


@_whole.register_fake
def _(tokens: Tensor, index: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return tokens.new_empty((*index.shape[:2], tokens.shape[2]), dtype=dtype)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        tokens, index, weight = tokens.contiguous(), index.contiguous(), weight.contiguous()
        out = tokens.new_empty((*index.shape[:2], tokens.shape[2]), dtype=dtype)
        if out.numel():
            with torch.cuda.device_of(tokens):
                _gather[_grid(tokens, index)](tokens, index, weight, out, **_shape(tokens, index))
        ctx.save_for_backward(tokens, index, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, index, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_tokens, grad_weight = torch.zeros_like(tokens, dtype=torch.float32), torch.empty_like(weight)
        if grad.numel():
            with torch.cuda.device_of(tokens):
                _gather_backward[_grid(tokens, index)](
                    *(tokens, index, weight, grad, grad_tokens, grad_weight),
                    **_shape(tokens, index),
                    TOKENS=ctx.needs_input_grad[0],
                    WEIGHT=ctx.needs_input_grad[2],
                )
        needed = ctx.needs_input_grad
        return grad_tokens.to(tokens.dtype) if needed[0] else None, None, grad_weight if needed[2] else None, None


def _block(tokens: Tensor) -> int:
    """Sums of one program."""
    return max(1, _TILE // triton.next_power_of_2(tokens.shape[2]))


def _grid(tokens: Tensor, index: Tensor) -> tuple[int]:
    return (triton.cdiv(index.shape[0] * index.shape[1], _block(tokens)),)


def _shape(tokens: Tensor, index: Tensor) -> dict[str, Any]:
    """What both kernels know of their tensors, and how they are compiled."""
    return {
        "rows": index.shape[0] * index.shape[1],
        "sums": index.shape[1],
        "cells": tokens.shape[1],
        "J": index.shape[2],
        "C": tokens.shape[2],
        "BLOCK_M": _block(tokens),
        "BLOCK_C": triton.next_power_of_2(tokens.shape[2]),
        "enable_fp_fusion": True,
    }


@triton.jit
def _gather(
    tokens: tl.tensor,
    index: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    sums: tl.tensor,
    cells: tl.tensor,
    J: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """BLOCK_M sums: `out` [rows, C]."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_C)
    is_row, is_channel = row < rows, channel < C
    mask = is_row[:, None] & is_channel[None, :]
    start = (row // sums).to(tl.int64) * cells  # first cell of the sum's image
    acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for j in tl.range(0, J, loop_unroll_factor=4):
        at = row.to(tl.int64) * J + j
        cell = start + tl.load(index + at, mask=is_row, other=0)
        share = tl.load(weight + at, mask=is_row, other=0.0).to(tl.float32)
        read = tl.load(tokens + cell[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        acc += share[:, None] * read
    tl.store(out + row.to(tl.int64)[:, None] * C + channel[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gather_backward(
    tokens: tl.tensor,
    index: tl.tensor,
    weight: tl.tensor,
    grad: tl.tensor,
    grad_tokens: tl.tensor,
    grad_weight: tl.tensor,
    rows: tl.tensor,
    sums: tl.tensor,
    cells: tl.tensor,
    J: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TOKENS: tl.constexpr,
    WEIGHT: tl.constexpr,
) -> None:
    """Gradients of the weights of BLOCK_M sums, and what they add to the gradient of the table."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_C)
    is_row, is_channel = row < rows, channel < C
    mask = is_row[:, None] & is_channel[None, :]
    start = (row // sums).to(tl.int64) * cells
    g = tl.load(grad + row.to(tl.int64)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    for j in range(J):
        at = row.to(tl.int64) * J + j
        cell = (start + tl.load(index + at, mask=is_row, other=0))[:, None] * C + channel[None, :]
        if WEIGHT:
            read = tl.load(tokens + cell, mask=mask, other=0.0).to(tl.float32)
            tl.store(grad_weight + at, tl.sum(g * read, 1).to(grad_weight.dtype.element_ty), mask=is_row)
        if TOKENS:
            share = tl.load(weight + at, mask=is_row, other=0.0).to(tl.float32)
            adds = mask & (share != 0.0)[:, None]  # points outside a map share its border cells, with weight zero
            tl.atomic_add(grad_tokens + cell, share[:, None] * g, mask=adds, sem="relaxed")

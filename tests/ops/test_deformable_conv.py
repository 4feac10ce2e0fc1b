"""Deformable convolution against its formula, an ordinary convolution and hand-made numbers; values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.ops.deformable_conv import deformable_conv, deformable_conv_reference

both = pytest.mark.parametrize("function", [deformable_conv, deformable_conv_reference])


def inputs(*, batch: int = 2, channels: int = 4, out: int = 5, size: tuple[int, int] = (5, 7)) -> list[Tensor]:
    """x, offset, weight, bias in float64; some offsets reach over the border."""
    g = torch.Generator().manual_seed(0)
    shapes = ((batch, channels, *size), (batch, 18, *size), (out, channels, 3, 3), (out,))
    x, offset, weight, bias = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    return [x, 2 * offset, weight, bias]


def bilinear(plane: Tensor, y: float, x: float) -> float:
    """A plane [h, w] between its pixels, zero outside."""
    total = 0.0
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            total += max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * float(plane[row, column])
    return total


def test_reference_is_the_formula() -> None:
    """Y(p) = sum_k W_k X(p + p_k + Dp_k(p)) + b, written out."""
    x, offset, weight, bias = inputs(batch=1, channels=2, out=2, size=(3, 4))
    result = deformable_conv_reference(x, offset, weight, bias)
    for row in range(3):
        for column in range(4):
            expected = bias.clone()
            for k in range(9):
                y = row + k // 3 - 1 + float(offset[0, 2 * k, row, column])
                z = column + k % 3 - 1 + float(offset[0, 2 * k + 1, row, column])
                read = torch.tensor([bilinear(plane, y, z) for plane in x[0]], dtype=torch.float64)
                expected = expected + weight[:, :, k // 3, k % 3] @ read
            torch.testing.assert_close(result[0, :, row, column], expected)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6), (4, 1)])
def test_equals_reference_with_gradients(size: tuple[int, int]) -> None:
    exact = [tensor.requires_grad_() for tensor in inputs(size=size)]
    ours = [tensor.detach().float().requires_grad_() for tensor in exact]
    upstream = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, result = deformable_conv_reference(*exact), deformable_conv(*ours)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(result, ours, upstream.float())
    for name, mine, theirs in zip(
        ("x", "offset", "weight", "bias"), gradients, torch.autograd.grad(expected, exact, upstream), strict=True
    ):
        assert theirs.any(), name
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-3, msg=name)
    with torch.inference_mode():
        torch.testing.assert_close(deformable_conv(*ours).double(), expected.detach(), rtol=1e-4, atol=1e-4)


@both
def test_zero_offsets_give_a_convolution(function) -> None:
    x, offset, weight, bias = (tensor.float() for tensor in inputs())
    result = function(x, torch.zeros_like(offset), weight, bias)
    torch.testing.assert_close(result, F.conv2d(x, weight, bias, padding=1), rtol=1e-4, atol=1e-5)


@both
@pytest.mark.parametrize(("axis", "shift"), [(0, 1), (0, -2), (1, 1), (1, -2)])
def test_whole_offsets_shift_the_map(function, axis: int, shift: int) -> None:
    """Offsets are (y, x): moving every read by whole pixels equals moving the map the other way."""
    x, offset, weight, bias = (tensor.float() for tensor in inputs())
    offset = torch.zeros_like(offset)
    offset[:, axis::2] = shift
    room = F.pad(x, (4, 4, 4, 4))
    moved = room.roll(-shift, dims=2 + axis)
    expected = F.conv2d(moved, weight, bias, padding=1)[:, :, 4:-4, 4:-4]
    torch.testing.assert_close(function(x, offset, weight, bias), expected, rtol=1e-4, atol=1e-5)


@both
def test_by_hand(function) -> None:
    """The centre of the window reads half a pixel down and a quarter to the right; at the border, zeros mix in."""
    x = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1.0
    offset = torch.zeros(1, 18, 2, 2)
    offset[:, 8], offset[:, 9] = 0.5, 0.25
    expected = torch.tensor([[[[5.0, 6.0], [4.5, 4.5]]]]) + 1.0
    torch.testing.assert_close(function(x, offset, weight, torch.ones(1)), expected)


@both
def test_far_offsets_read_nothing(function) -> None:
    x, offset, weight, bias = (tensor.float() for tensor in inputs())
    result = function(x, torch.full_like(offset, 1e6), weight, bias)
    torch.testing.assert_close(result, bias[:, None, None].expand_as(result))

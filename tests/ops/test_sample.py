"""The row-gathering sampler against the plain one, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steadyseg.ops.sample import (
    corners,
    gather_rows,
    grouped_sample,
    grouped_sample_reference,
    row_products,
    sample,
    sample_reference,
)
from steadyseg.ops.selective_attention import selective_attention, selective_attention_reference


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4), (3, 1)])
def test_sampler_equals_reference(padding: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    h, w = size
    tokens = torch.randn(2, h * w, 6, dtype=torch.float32)
    points = torch.rand(2, 200, 2) * torch.tensor([w + 4.0, h + 4.0]) - 2.5
    results = []
    for function in (sample_reference, sample):
        t, p = tokens.clone().requires_grad_(), points.clone().requires_grad_()
        out = function(t, p, size, padding)
        out.square().sum().backward()
        results.append((out.detach(), t.grad, p.grad))
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(sample(tokens, points, size, padding), results[0][0], rtol=1e-4, atol=1e-5)


def exported(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """What a function gives after torch.export, in which it takes its form for other runtimes."""

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return function(*tensors)

    with torch.no_grad():
        program = torch.export.export(Module(), tensors)
    assert not any("embedding_bag" in str(node.target) for node in program.graph.nodes)
    return program.module()(*tensors)


@pytest.mark.parametrize("size", [(5, 7), (1, 4)])
def test_forms_for_export(size: tuple[int, int]) -> None:
    """Without bags of rows, equal to the others up to rounding; far points included."""
    h, w = size
    tokens = torch.randn(2, h * w, 6)
    points = torch.rand(2, 200, 2) * torch.tensor([w + 4.0, h + 4.0]) - 2.5
    points[:, 0], points[:, 1] = 1e9, -1e9
    for padding in ("border", "zeros"):
        ours = exported(lambda t, p, padding=padding: sample(t, p, size, padding), tokens, points)
        torch.testing.assert_close(ours, sample(tokens, points, size, padding), rtol=1e-4, atol=1e-5)
    index, weight = corners(points, size, "border")
    ours = exported(gather_rows, tokens, index, weight)
    torch.testing.assert_close(ours, gather_rows(tokens, index, weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_grouped_sampler_equals_reference(size: tuple[int, int]) -> None:
    h, w = size
    value = torch.randn(2, h * w, 3, 4)
    points = torch.rand(2, 20, 3, 9, 2) * torch.tensor([w + 4.0, h + 4.0]) - 2.5
    weights = torch.rand(2, 20, 3, 9)
    plain = grouped_sample_reference(value, points, weights, size)
    assert plain.shape == (2, 20, 3, 4)
    torch.testing.assert_close(grouped_sample(value, points, weights, size), plain, rtol=1e-4, atol=1e-5)
    for group in range(3):  # each reads its own channels at its own points
        alone = sum(
            sample(value[:, :, group], points[:, :, group, place], size, "zeros") * weights[:, :, group, place, None]
            for place in range(9)
        )
        torch.testing.assert_close(plain[:, :, group], alone, rtol=1e-4, atol=1e-5)
    ours = exported(lambda *x: grouped_sample(*x, size), value, points, weights)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_far_points_are_safe() -> None:
    """Offsets are unbounded: huge coordinates read the border or zero and never leave the map."""
    tokens = torch.randn(1, 6, 3)
    points = torch.tensor([[[1e9, -1e9], [-1e9, 1e9], [1e30, 1e30]]])
    border = sample(tokens, points, (2, 3), "border")
    torch.testing.assert_close(border[0], tokens[0, [2, 3, 5]])
    assert not sample(tokens, points, (2, 3), "zeros").any()
    index, _ = corners(points, (2, 3), "zeros")
    assert index.min() >= 0 and index.max() < 6


@pytest.mark.parametrize("rows", [9, 2**16, 2**16 + 1])  # up to 2**16 they are sorted as 16 bits
def test_gather_rows_gradients(rows: int) -> None:
    """Against a dense product, in both arguments, with repeated and unused rows, the first and the last."""
    torch.manual_seed(0)
    tokens = torch.randn(2, rows, 4, requires_grad=True)
    weight = torch.randn(2, 5, 3, requires_grad=True)
    index = torch.randint(0, 5, (2, 5, 3))
    index[:, 1, 0], index[:, 3, 1], index[:, 4, 2] = 0, rows - 1, rows // 2
    plain = torch.stack([(weight[b, ..., None] * tokens[b][index[b]]).sum(1) for b in range(2)])
    upstream = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (tokens, weight), upstream)
    ours = gather_rows(tokens, index, weight)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(torch.autograd.grad(ours, (tokens, weight), upstream), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [9, 2])  # with two rows no sparse matrix holds three entries a line
def test_row_products_gradients(rows: int) -> None:
    torch.manual_seed(0)
    query, tokens = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, rows, 4, requires_grad=True)
    index = torch.randint(0, rows, (2, 5, 3), dtype=torch.int32)
    read = torch.stack([tokens[b][index[b].long()] for b in range(2)])  # [2, 5, 3, 4]
    plain = (query[:, :, None] * read).sum(-1)
    upstream = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, (query, tokens), upstream)
    ours = row_products(query, tokens, index)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(torch.autograd.grad(ours, (query, tokens), upstream), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_corners_of_interleaved_maps_with_a_gain() -> None:
    """Cells of map g of three lie at 3 * cell + g, and a gain is a factor of all weights."""
    torch.manual_seed(0)
    points, gain = torch.rand(2, 7, 3, 2) * 6 - 1, torch.rand(2, 7, 3, requires_grad=True)
    cells, shares = corners(points, (4, 5), "zeros")
    first = torch.arange(3, dtype=torch.int32)
    index, weight = corners(points, (4, 5), "zeros", gain=gain, step=3, first=first)
    assert torch.equal(index, cells * 3 + first[:, None])
    torch.testing.assert_close(weight, shares * gain[..., None])
    weight.sum().backward()
    torch.testing.assert_close(gain.grad, shares.sum(-1))


def test_selective_attention_equals_reference() -> None:
    torch.manual_seed(0)
    query, source = torch.randn(2, 35, 8), torch.randn(2, 35, 8)
    points = torch.rand(2, 35, 9, 2) * 10 - 2
    expected = selective_attention_reference(query, source, source, points, (5, 7))
    torch.testing.assert_close(selective_attention(query, source, points, (5, 7)), expected, rtol=1e-4, atol=1e-5)

"""The row-gathering attention against the plain one and against transformers', values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steadyseg.ops.deformable_attention import deformable_attention, deformable_attention_reference

SIZES = [(6, 9), (3, 5), (2, 3), (1, 2)]
LEVELS, HEADS, POINTS, WIDTH = len(SIZES), 4, 3, 8


def case(queries: int = 40, batch: int = 3) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Values, points (some outside the maps), weights and images."""
    values = [torch.randn(batch, h * w, WIDTH) for h, w in SIZES]
    scale = torch.tensor([[w, h] for h, w in SIZES]).T[..., None, None, None]  # [2, L, 1, 1, 1]
    points = torch.rand(2, LEVELS, queries, HEADS, POINTS) * (scale + 4) - 2.5
    return values, points, torch.randn(LEVELS, queries, HEADS, POINTS), torch.randint(0, batch, (queries,))


def test_equals_reference() -> None:
    values, points, weights, image = case()
    results = []
    for function in (deformable_attention_reference, deformable_attention):
        leaves = [x.clone().requires_grad_() for x in (*values, points, weights)]
        out = function(leaves[:LEVELS], SIZES, *leaves[LEVELS:], image)
        out.square().sum().backward()
        results.append((out.detach(), *(leaf.grad for leaf in leaves)))
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        ours = deformable_attention(values, SIZES, points, weights, image)
    torch.testing.assert_close(ours, results[0][0], rtol=1e-4, atol=1e-5)


def test_equals_transformers() -> None:
    """All queries read one image; there the points are shares of the map."""
    modelling = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    values, points, weights, _ = case(batch=1)
    image = torch.zeros(points.shape[2], dtype=torch.int64)
    scale = torch.tensor([[w, h] for h, w in SIZES]).T[..., None, None, None]
    locations = ((points + 0.5) / scale).permute(2, 3, 1, 4, 0)[None]  # [1, Q, M, L, P, 2]
    expected = modelling.MultiScaleDeformableAttention()(
        torch.cat(values, dim=1).unflatten(2, (HEADS, -1)),
        torch.tensor(SIZES),
        SIZES,
        None,
        locations,
        weights.permute(1, 2, 0, 3)[None],
        64,
    )[0]
    for function in (deformable_attention_reference, deformable_attention):
        torch.testing.assert_close(function(values, SIZES, points, weights, image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [deformable_attention_reference, deformable_attention])
def test_by_hand(function) -> None:
    """One level of 1 x 2 pixels with values 1 and 3 in the one head, 10 and 30 in the other."""
    values = [torch.tensor([[[1.0, 10.0], [3.0, 30.0]]])]
    x = torch.tensor([[[0.0], [0.25]], [[1.5], [-0.75]], [[2.0], [-9.0]]])  # [Q, M, P]
    points = torch.stack((x, torch.tensor([0.0, 0.5, 0.0])[:, None, None].expand_as(x)))[:, None]  # [2, 1, Q, M, P]
    weights = torch.tensor([1.0, 1.0, 5.0])[None, :, None, None].expand(1, 3, 2, 1)
    out = function(values, [(1, 2)], points, weights, torch.zeros(3, dtype=torch.int64))
    # a pixel, and a quarter on to the next | half outside and half below, and three quarters outside | all outside
    torch.testing.assert_close(out, torch.tensor([[1.0, 15.0], [0.75, 1.25], [0.0, 0.0]]))


@pytest.mark.parametrize("function", [deformable_attention_reference, deformable_attention])
def test_no_query(function) -> None:
    values, points, weights, image = case(queries=0)
    values = [value.requires_grad_() for value in values]
    out = function(values, SIZES, points, weights.requires_grad_(), image)
    assert out.shape == (0, WIDTH)
    out.sum().backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in (*values, weights))


def test_far_points_are_safe() -> None:
    """Offsets are unbounded: huge coordinates read zero, of their own image, and leave no NaN."""
    values, points, weights, image = case()
    far = torch.where(torch.rand_like(points) < 0.5, 1e30, -1e30).requires_grad_()
    out = deformable_attention(values, SIZES, far, weights, image)
    assert not out.any()
    out.sum().backward()
    assert far.grad.isfinite().all()

"""Attention of every pixel over a few fractional positions of another map (SD-CPC, Eq. (2))."""

from __future__ import annotations

import torch
from torch import Tensor

from steadyseg.ops import cpu_kernels, kernels
from steadyseg.ops.sample import corners, gather_rows, may_be_node, row_products, sample, sample_reference


def selective_attention_reference(
    query: Tensor, keys: Tensor, values: Tensor, points: Tensor, size: tuple[int, int]
) -> Tensor:
    """The paper's form: sample keys and values, multiply, sum over channels, soft-max over the points.

    Args:
        query: float [B, N, C], one per pixel.
        keys: float [B, M, C], an h x w map row by row.
        values: float [B, M, C].
        points: float [B, N, P, 2] (x, y) in pixels of the map, clamped to its border.
        size: (h, w) of the map; M = h * w.

    Returns:
        float [B, N, C].
    """
    count = points.shape[2]
    flat = points.flatten(1, 2)  # [B, N * P, 2]
    key = sample_reference(keys, flat, size, "border").unflatten(1, (-1, count))  # [B, N, P, C]
    value = sample_reference(values, flat, size, "border").unflatten(1, (-1, count))  # [B, N, P, C]
    score = (query[:, :, None] * key).sum(-1) * query.shape[-1] ** -0.5  # [B, N, P]
    return (score.softmax(-1)[..., None] * value).sum(2)  # [B, N, C]


@may_be_node(lambda query, source, points: query)
def selective_attention(query: Tensor, source: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """The same with one map as keys and values, sampled once.

    Bilinear weights at clamped points sum to one, so sampling commutes with every affine map: keys and values
    that are affine maps of one source need no maps of their own. Fold the key map into the query and apply the
    value map to the result; what the key's bias adds is the same for all points and leaves the soft-max unchanged.
    In training on the CPU the points are not read at all: scores are sums over products with their four cells, and the
    result is one weighted sum over all cells.

    Args and result as in `selective_attention_reference`, with keys = values = `source`.
    """
    if kernels.are_chosen(query, source, points):
        from steadyseg.ops.kernels.selective_attention import selective_attention as fused

        if not torch.is_grad_enabled():
            source = source.to(query.dtype)  # as autocast does for what multiplies: half the bytes to read
        return fused(query, source, points, size)
    if cpu_kernels.are_chosen(query, source, points):
        from steadyseg.ops.cpu_kernels.selective_attention import selective_attention as fused_on_cpu

        return fused_on_cpu(query, source, points, size)
    scale = query.shape[-1] ** -0.5
    is_training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if source.device.type == "cpu" and is_training and not kernels.are_counted():
        index, weight = corners(points, size, "border")  # [B, N, P, 4]
        score = row_products(query, source, index.flatten(2)).unflatten(2, (-1, 4))  # [B, N, P, 4]
        attention = ((score * weight).sum(-1) * scale).softmax(-1)  # [B, N, P]
        return gather_rows(source, index.flatten(2), (attention[..., None] * weight).flatten(2))  # [B, N, C]
    read = sample(source, points.flatten(1, 2), size, "border").unflatten(1, (-1, points.shape[2]))  # [B, N, P, C]
    score = torch.einsum("bnc,bnpc->bnp", query, read) * scale  # [B, N, P]
    return torch.einsum("bnp,bnpc->bnc", score.softmax(-1), read)  # [B, N, C]

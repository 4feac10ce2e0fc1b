"""A depth-wise 3x3 convolution and the GELU after it (the middle of SegFormer's Mix-FFN, Eq. (3))."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_gelu_reference(tokens: Tensor, size: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve and activate.

    Args:
        tokens: float [B, N, C], an h x w map row by row; zero outside its border.
        size: (h, w).
        weight: float [C, 1, 3, 3].
        bias: float [C].

    Returns:
        float [B, N, C].
    """
    x = tokens.unflatten(1, size).permute(0, 3, 1, 2)  # [B, C, h, w], stored channels-last
    x = F.conv2d(x, weight, bias, padding=1, groups=len(weight))
    return F.gelu(x.flatten(2).transpose(1, 2))  # [B, N, C]


def depthwise_gelu(tokens: Tensor, size: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
    """The same, without gradients as one kernel where there is one; arguments and result as of the reference."""
    from steadyseg.ops import kernels  # here, as this file ends the longest chain of imports

    if not torch.is_grad_enabled() and kernels.are_chosen(tokens, weight, bias):
        from steadyseg.ops.kernels.depthwise_gelu import depthwise_gelu as fused

        return fused(tokens, size, weight, bias)
    return depthwise_gelu_reference(tokens, size, weight, bias)

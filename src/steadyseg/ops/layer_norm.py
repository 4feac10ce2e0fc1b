"""Layer normalisation over channels, where only linear maps and convolutions read the result or where all do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, rounded: bool = False) -> Tensor:
    """Normalise the last axis, as ``torch.nn.functional.layer_norm`` does.

    Where `is_fused`, under autocast, what is `rounded` comes in autocast's type, to which a linear map or a convolution
    would round it anyway.

    Args:
        x: float [..., C].
        weight: float [C]; None is ones.
        bias: float [C]; None is zeros.
        eps: added to the variance.
        rounded: whether nothing reads the result but linear maps, convolutions and attention, which round it anyway.

    Returns:
        float [..., C].
    """
    if not is_fused(x):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    from steadyseg.ops.kernels.layer_norm import layer_norm as fused

    kind, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind) if rounded else torch.float32
    return fused(x, weight, bias, eps, dtype)


def is_fused(x: Tensor) -> bool:
    """Say whether it is a kernel of its own: without gradients on a GPU, unless a compiler merges it with others."""
    from steadyseg.ops import kernels  # here, as this file ends the longest chain of imports

    return not torch.is_grad_enabled() and not torch.compiler.is_compiling() and kernels.are_chosen(x)

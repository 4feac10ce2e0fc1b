"""Sums of outer products of keys and values: what linear attention remembers of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.ops import kernels
from steadyseg.ops.sample import is_exporting

PART = 128
"""Positions of one part."""


def outer_products_reference(keys: Tensor, values: Tensor) -> Tensor:
    """Sum over all positions n.

    Args:
        keys: float [B, N, heads, d].
        values: float [B, N, heads, e].

    Returns:
        float [B, heads, d, e].
    """
    return torch.einsum("bnhd,bnhe->bhde", keys, values)


def outer_products(keys: Tensor, values: Tensor) -> Tensor:
    """The same; on a GPU in parts, as few results of so long sums would occupy a few of its processors only."""
    if keys.device.type == "cpu" or is_exporting() or kernels.are_counted():
        return outer_products_reference(keys, values)
    return in_parts(keys, values)


def in_parts(keys: Tensor, values: Tensor) -> Tensor:
    """Sum parts of PART positions, then their sums; arguments and result as of `outer_products_reference`."""
    missing = -keys.shape[1] % PART
    keys, values = (F.pad(x, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, PART)) for x in (keys, values))
    return torch.einsum("bsnhd,bsnhe->bshde", keys, values).sum(1)  # of [B, S, PART, heads, ..]

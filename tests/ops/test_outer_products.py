"""Sums in parts are the sums."""

from __future__ import annotations

import pytest
import torch

from steadyseg.ops.outer_products import PART, in_parts, outer_products, outer_products_reference


@pytest.mark.parametrize("count", [1, PART - 1, PART, PART + 1, 5 * PART + 7])
def test_parts_add_up(count: int) -> None:
    keys, values = torch.randn(2, count, 3, 4), torch.randn(2, count, 3, 5)
    exact = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    for key, value in zip(keys.double().unbind(1), values.double().unbind(1), strict=True):
        exact += key[..., :, None] * value[..., None, :]
    for function in (in_parts, outer_products, outer_products_reference):
        torch.testing.assert_close(function(keys, values).double(), exact, rtol=1e-5, atol=1e-5 * count**0.5)

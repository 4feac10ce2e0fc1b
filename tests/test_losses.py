"""Loss functions at their edges; SD-CPC's terms are checked against NumPy in tests/models/test_sdcpc.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from steadyseg.losses import class_prototypes, cross_entropy, draw, prototype_contrast, variate_similarity
from steadyseg.types import IGNORE


def test_weighted_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5)
    labels = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    labels[0, 0] = IGNORE
    weights = torch.tensor([0.5, 2.0, 1.0])
    expected = F.cross_entropy(logits, labels.long(), weight=weights, ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(logits, labels, weights), expected)
    plain = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(logits, labels), plain)


def test_cross_entropy_without_labels_is_zero_with_gradient() -> None:
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 8, 10), IGNORE, dtype=torch.uint8), torch.ones(3))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_prototypes_are_means_over_the_mask() -> None:
    features = torch.arange(12.0).reshape(6, 1, 2)
    labels = torch.tensor([0, 0, 2, 2, 1, IGNORE])
    mask = torch.tensor([True, True, True, False, False, False])
    prototypes, present = class_prototypes(features, labels, mask, 3)
    assert present.tolist() == [0, 2]
    assert prototypes.tolist() == [[[1.0, 2.0]], [[4.0, 5.0]]]


def test_contrast_with_fewer_than_two_classes_is_zero() -> None:
    features = torch.randn(4, 2, 3, requires_grad=True)
    prototypes, present = class_prototypes(features, torch.zeros(4, dtype=torch.long), torch.ones(4).bool(), 3)
    loss = prototype_contrast(features, torch.zeros(4, dtype=torch.long), prototypes, present, 0.1)
    loss.backward()
    assert loss == 0
    nothing, empty = class_prototypes(features, torch.zeros(4, dtype=torch.long), torch.zeros(4).bool(), 3)
    assert prototype_contrast(features[:0], torch.zeros(0, dtype=torch.long), nothing, empty, 0.1) == 0
    assert variate_similarity(nothing) == 0


def test_similarity_bounds() -> None:
    same = torch.ones(2, 4, 8)
    assert variate_similarity(same).item() == pytest.approx(1.0)
    simplex = torch.eye(4) - 0.25  # four vectors that point as far from each other as they can
    assert variate_similarity(simplex[None]).item() == pytest.approx(-1 / 3, abs=1e-6)
    assert variate_similarity(torch.ones(2, 1, 8)) == 0


def test_draw_keeps_at_most_the_cap() -> None:
    torch.manual_seed(0)
    mask = torch.rand(3, 50) < torch.tensor([[0.9], [0.05], [0.0]])
    kept = draw(mask, 5)
    assert (kept <= mask).all()
    assert kept.sum(1).tolist() == [5, min(5, int(mask[1].sum())), 0]
    assert torch.equal(draw(mask, None), mask)

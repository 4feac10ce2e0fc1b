"""Loss functions on logits and labels, or on features; each knows IGNORE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.types import IGNORE


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the labelled pixels, at the labels' resolution.

    Args:
        logits: float [B, K, h, w]; resized bilinearly to the labels' size.
        labels: uint8 [B, H, W], class index or IGNORE.
        weights: float [K], a factor per class; the mean is then the weighted mean. None means ones.

    Returns:
        Scalar float32; zero (with a gradient of zero) where no pixel is labelled.
    """
    target = labels.long()
    with torch.autocast(logits.device.type, enabled=False):
        full = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        total = F.cross_entropy(full, target, weight=weights, ignore_index=IGNORE, reduction="sum")
    if weights is None:
        return total / (target != IGNORE).sum().clamp(min=1)
    known = target[target != IGNORE]
    return total / weights[known].sum().clamp(min=torch.finfo(torch.float32).tiny)


def class_prototypes(features: Tensor, labels: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of every class over the pixels of `mask`, for each variate (SD-CPC, Eq. (4)).

    Args:
        features: float [M, V, d], V variates of M pixels.
        labels: int64 [M], class index; any value where `mask` is False.
        mask: bool [M], the pixels that count.
        num_classes: K.

    Returns:
        prototypes float [P, V, d] and the classes int64 [P] that have at least one pixel, rising.
    """
    kept = labels[mask]
    count = torch.bincount(kept, minlength=num_classes)  # [K]
    total = features.new_zeros(num_classes, *features.shape[1:]).index_add(0, kept, features[mask])  # [K, V, d]
    present = count.nonzero().flatten()  # [P]
    return total[present] / count[present][:, None, None], present


def prototype_contrast(features: Tensor, labels: Tensor, prototypes: Tensor, present: Tensor, tau: float) -> Tensor:
    """Pull each pixel's variates to its class prototype, away from the other classes' (SD-CPC, Eq. (5)).

    Args:
        features: float [M, V, d], the query pixels.
        labels: int64 [M], each a member of `present`.
        prototypes: float [P, V, d].
        present: int64 [P], their classes, rising.
        tau: temperature.

    Returns:
        Scalar; zero if fewer than two classes are present.
    """
    if len(present) < 2:
        return features.sum() * 0.0
    query = F.normalize(features, dim=-1)
    keys = F.normalize(prototypes, dim=-1)
    scores = torch.einsum("mvd,pvd->mvp", query, keys) / tau  # [M, V, P]
    target = torch.searchsorted(present, labels)[:, None].expand(-1, features.shape[1])  # [M, V]
    return F.cross_entropy(scores.flatten(0, 1), target.flatten())


def variate_similarity(prototypes: Tensor) -> Tensor:
    """Mean cosine between different variates of one class, over the classes present (SD-CPC, Eq. (6)).

    Args:
        prototypes: float [P, V, d].

    Returns:
        Scalar; zero for a single variate or where no class is present.
    """
    variates = prototypes.shape[1]
    if variates < 2 or len(prototypes) == 0:
        return prototypes.sum() * 0.0
    unit = F.normalize(prototypes, dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # [P, V, V]
    row, column = torch.triu_indices(variates, variates, offset=1, device=cosines.device)
    return cosines[:, row, column].mean()


def draw(mask: Tensor, cap: int | None) -> Tensor:
    """Keep at most `cap` True values, drawn uniformly, in each row of a mask [B, N]; None keeps all."""
    if cap is None or cap >= mask.shape[1]:
        return mask
    chosen = torch.where(mask, torch.rand(mask.shape, device=mask.device), -1.0).topk(cap, dim=1).indices
    return mask & torch.zeros_like(mask).scatter(1, chosen, True)

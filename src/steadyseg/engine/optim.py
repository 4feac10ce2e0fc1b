"""The optimiser and the learning rate of the SegFormer line of work: AdamW in groups, warm-up, polynomial decay."""

from __future__ import annotations

from torch.optim import AdamW, Optimizer

from steadyseg.config import TrainConfig
from steadyseg.models.base import VideoSegmenter

WARMUP_START = 1e-6
"""Share of the rate at step 0 of the warm-up."""


def build_optimizer(model: VideoSegmenter, config: TrainConfig) -> AdamW:
    """Build AdamW (betas 0.9, 0.999) over the model's parameter groups; each group remembers its peak "base" rate."""
    groups = model.parameter_groups(config.lr)
    for group in groups:
        group["base"] = group["lr"]
    return AdamW(groups, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay)


def poly(step: int, *, iterations: int, warmup: int, power: float) -> float:
    """Return the share of the peak rate at a step.

    The polynomial decay ``(1 - step / iterations) ** power`` also runs during the warm-up, which multiplies it by a
    line from `WARMUP_START` to 1.

    >>> [round(poly(step, iterations=10, warmup=2, power=1.0), 3) for step in (0, 1, 2, 9)]
    [0.0, 0.45, 0.8, 0.1]
    """
    share = (1 - step / iterations) ** power
    if step < warmup:
        share *= 1 - (1 - step / warmup) * (1 - WARMUP_START)
    return share


def set_rate(optimizer: Optimizer, step: int, config: TrainConfig) -> float:
    """Set every group's learning rate for a step; returns the backbone's.

    The rate is a function of the step alone, so a resumed run needs no scheduler state.
    """
    share = poly(step, iterations=config.iterations, warmup=config.warmup, power=config.power)
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * share
    return config.lr * share

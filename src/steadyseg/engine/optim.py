"""The optimiser in groups, and the learning rate as a function of the step: warm-up, polynomial decay."""

from __future__ import annotations

from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steadyseg.config import TrainConfig
from steadyseg.models.base import VideoSegmenter

WARMUP_START = 1e-6
"""Share of the rate at step 0 of the warm-up."""


def build_optimizer(model: VideoSegmenter, config: TrainConfig) -> Optimizer:
    """Build AdamW (betas 0.9, 0.999) or SGD over the model's parameter groups; each remembers its peak "base" rate."""
    groups = model.parameter_groups(config.lr, head=config.head_lr_factor, decay_norms=config.decay_norms)
    for group in groups:
        group["base"] = group["lr"]
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return AdamW(groups, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay)


def poly(
    step: int, *, iterations: int, warmup: int, power: float, least: float = 0.0, after_warmup: bool = False
) -> float:
    """Return the share of the peak rate at a step.

    The warm-up is a line from `WARMUP_START` to 1, the decay ``(1 - step / iterations) ** power``, from 1 to `least`.
    In the SegFormer line of work the decay runs from the first step and multiplies the warm-up; with `after_warmup`
    it begins where the warm-up ends.

    >>> [round(poly(step, iterations=10, warmup=2, power=1.0), 3) for step in (0, 1, 2, 9)]
    [0.0, 0.45, 0.8, 0.1]
    >>> [round(poly(step, iterations=10, warmup=2, power=1.0, after_warmup=True), 3) for step in (0, 1, 2, 6)]
    [0.0, 0.5, 1.0, 0.5]
    >>> round(poly(10, iterations=10, warmup=0, power=0.9, least=0.01), 3)
    0.01
    """
    first = warmup if after_warmup else 0
    done = max(step - first, 0) / max(iterations - first, 1)
    share = (1 - least) * max(1 - done, 0.0) ** power + least
    if step < warmup:
        share *= 1 - (1 - step / warmup) * (1 - WARMUP_START)
    return share


def build_average(model: VideoSegmenter, decay: float) -> AveragedModel | None:
    """Build the running mean of a model's parameters; None for a decay of 0.

    After its n-th update an average keeps min(decay, (1 + n) / (10 + n)) of itself. Buffers, such as the statistics of
    batch norms, are the model's own.
    """

    def move(averages: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(now)(averages, values, count)  # type: ignore[no-untyped-call]

    return AveragedModel(model, multi_avg_fn=move) if decay else None  # type: ignore[arg-type]


def set_rate(optimizer: Optimizer, step: int, config: TrainConfig, iterations: int) -> float:
    """Set every group's learning rate for a step of a run of `iterations`; returns the backbone's.

    The rate needs no other state, so a resumed run has no scheduler to restore.
    """
    for group in optimizer.param_groups:
        share = poly(
            step,
            iterations=iterations,
            warmup=config.warmup,
            power=config.power,
            least=min(config.min_lr / group["base"], 1.0),
            after_warmup=config.decay_after_warmup,
        )
        group["lr"] = group["base"] * share
    return float(optimizer.param_groups[0]["lr"])

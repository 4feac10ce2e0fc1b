"""Multiply-adds of a method, in the conventions of the papers.

One multiply-add counts as one, as papers print it (their "FLOPs"). Two conventions are in use, and both are reported:
*hooks* leaves out the matrix products inside attention, as generic counters do; *full* includes them. Bilinear
sampling is a column of its own, outside both. Norms, activations, resizes and soft-max are never counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from steadyseg.layers import plain_forms
from steadyseg.models.base import VideoSegmenter, fixed_sizes
from steadyseg.ops import kernels
from steadyseg.types import ConfigError


class Cost(NamedTuple):
    """Multiply-adds of one run."""

    hooks: int
    """Convolutions and linear maps."""
    full: int
    """The same and the matrix products inside attention."""
    sampling: int
    """Reads of the bilinear samplers; in neither of the others."""


def count(run: Callable[[], object]) -> dict[str, Cost]:
    """Count the multiply-adds of a call.

    Args:
        run: what to count, without gradients; it has run before, so that its merged weights are ready.

    Returns:
        "executed", what is computed here, and "published", the same layers in the papers' literal form.
    """
    executed = _count(run)
    with plain_forms(), fixed_sizes(on=False):
        literal = _count(run)
    attention = executed.full - executed.hooks  # the same in both, but some literal forms multiply without a product
    return {"executed": executed, "published": literal._replace(full=literal.hooks + attention)}


def _count(run: Callable[[], object]) -> Cost:
    counting = FlopCounterMode(display=False, custom_mapping=_EXTRA)
    with torch.no_grad(), kernels.references_only(), counting as counter:
        run()
    counted = {operator.__name__.split(".")[0]: n for operator, n in counter.get_flop_counts()["Global"].items()}
    sampling = sum(counted.pop(name, 0) for name in _SAMPLERS)
    linear = sum(counted.pop(name, 0) for name in ("convolution", "addmm", "mm")) // 2  # it takes a multiply-add as 2
    return Cost(linear, linear + sum(counted.values()) // 2, sampling)


def costs(model: VideoSegmenter, frames: Sequence[Tensor]) -> dict[str, dict[str, Cost]]:
    """Count one frame, averaged over the model's period, in the ways in which papers count it.

    Args:
        model: in evaluation mode.
        frames: neighbouring frames of a video, each uint8 [1, 3, H, W]; what moves in them may decide what is computed.

    Returns:
        "stream", a settled stream of `step`; "clip", one whole clip with nothing remembered; and for a method that can
        look ahead "segment", a settled video; each as `count` returns it.

    Raises:
        ConfigError: if the video decides which frames are key frames.
    """
    check_periodic(model)
    period, length = model.period, len(model.offsets)
    before = -(-(1 - model.offsets[0]) // period) * period  # whole periods, so that the next frame begins one
    state: Any = None
    with torch.no_grad():
        for frame in pingpong(frames, before):
            _, state = model.step(frame, state)

    def stream() -> None:
        following = state
        for frame in list(pingpong(frames, before + period))[before:]:
            _, following = model.step(frame, following)

    window = torch.stack(list(pingpong(frames, length)), dim=1)  # [1, T, 3, H, W]
    found = {"stream": _per_frame(count(stream), period), "clip": count(lambda: model.clip_logits(window))}
    if type(model).segment is not VideoSegmenter.segment:
        short = count(lambda: list(model.segment(pingpong(frames, 2 * period + 1))))
        long = count(lambda: list(model.segment(pingpong(frames, 3 * period + 1))))
        found["segment"] = _per_frame({form: _subtract(long[form], short[form]) for form in long}, period)
    return found


def check_periodic(model: VideoSegmenter) -> None:
    """Refuse a model whose cost depends on the video.

    Raises:
        ConfigError: saying what to leave out.
    """
    if not model.is_periodic:
        raise ConfigError(
            "the cost of an adaptive schedule depends on the video; set adaptive.threshold to 0 to count or time it"
        )


def _per_frame(counts: dict[str, Cost], frames: int) -> dict[str, Cost]:
    return {form: Cost(*(number // frames for number in cost)) for form, cost in counts.items()}


def _subtract(a: Cost, b: Cost) -> Cost:
    return Cost(*(x - y for x, y in zip(a, b, strict=True)))


def pingpong(frames: Sequence[Tensor], count: int) -> Iterator[Tensor]:
    """Yield `count` frames, forwards and backwards in turn, so that the video never jumps."""
    loop = [*frames, *frames[-2:0:-1]]
    return (loop[index % len(loop)] for index in range(count))


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _bag(weight: Any, indices: Any, *_: Any, **__: Any) -> int:
    return weight[1] * indices[0] * (indices[1] if len(indices) > 1 else 1)


def _grid(image: Any, grid: Any, *_: Any, **__: Any) -> int:
    return 4 * image[1] * grid[0] * grid[1] * grid[2]


_SAMPLERS: dict[str, Callable[..., int]] = {
    "_embedding_bag": _bag,
    "_embedding_bag_forward_only": _bag,
    "grid_sampler_2d": _grid,
}
_EXTRA: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    **{getattr(torch.ops.aten, name): function for name, function in _SAMPLERS.items()},
}

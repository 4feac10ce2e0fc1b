"""Which frames form a clip: a sampler turns a target frame into the frame numbers of its clip, target last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from steadyseg.types import ConfigError

Sampler = Callable[[int, int, torch.Generator], list[int]]
"""Target frame, number of frames of its video, generator -> frame numbers in the video, the target last."""


def at_offsets(offsets: Sequence[int], *, reverse: float = 0.5) -> Sampler:
    """Return the sampler of clips at fixed distances from the target, some of them from the video played backwards.

    A backward clip has its offsets mirrored. Where one direction leaves the video and the other does not, a sampler
    that may reverse takes the other; what still lies outside is clamped to the first or last frame.

    Args:
        offsets: frame numbers relative to the target; the last is 0.
        reverse: probability, in [0, 1], of a backward clip; 0 never reverses, and only clamps.

    Raises:
        ConfigError: if the last offset is not 0, or `reverse` is no probability.

    >>> dice = torch.Generator()
    >>> forward = at_offsets((-6, -3, 0), reverse=0)
    >>> forward(10, 40, dice), forward(4, 40, dice)
    ([4, 7, 10], [0, 1, 4])
    >>> backward = at_offsets((-6, -3, 0), reverse=1)
    >>> backward(10, 40, dice), backward(38, 40, dice)
    ([16, 13, 10], [32, 35, 38])
    >>> backward(3, 7, dice)  # neither direction fits
    [6, 6, 3]
    """
    if not offsets or offsets[-1] != 0:
        raise ConfigError(f"clip offsets are {tuple(offsets)}; expected the target, 0, as the last")
    if not 0 <= reverse <= 1:
        raise ConfigError(f"reverse is {reverse}; expected a probability in [0, 1]")
    return partial(_at_offsets, tuple(offsets), reverse)


def still(count: int) -> Sampler:
    """Return the sampler that repeats the target, for clips made of one image.

    Args:
        count: frames of a clip, at least 1.

    Raises:
        ConfigError: if `count` is less than 1.

    >>> still(3)(7, 40, torch.Generator())
    [7, 7, 7]
    """
    if count < 1:
        raise ConfigError(f"a still clip of {count} frames; expected at least 1")
    return partial(_still, count)


def _at_offsets(
    offsets: tuple[int, ...], reverse: float, target: int, length: int, generator: torch.Generator
) -> list[int]:
    sign = -1 if float(torch.rand((), generator=generator)) < reverse else 1
    if reverse and not _inside(offsets, sign, target, length) and _inside(offsets, -sign, target, length):
        sign = -sign
    return [min(max(target + sign * offset, 0), length - 1) for offset in offsets]


def _inside(offsets: tuple[int, ...], sign: int, target: int, length: int) -> bool:
    return all(0 <= target + sign * offset < length for offset in offsets)


def _still(count: int, target: int, length: int, generator: torch.Generator) -> list[int]:
    return [target] * count

"""The values that cross module borders, and the errors that a user can cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = 255
"""A label that no loss and no metric looks at."""


class SteadysegError(Exception):
    """Base of every error that a user can cause; its text is one line that says what to do.

    ``exit_status`` is what the command line returns: 2 for a wrong call, 1 for wrong data.
    """

    exit_status = 1


class ConfigError(SteadysegError):
    """A wrong option, config key or config value."""

    exit_status = 2


class DataError(SteadysegError):
    """A video, an image, a mask or a data set that cannot be used as it is."""


class CheckpointError(SteadysegError):
    """Weights that are missing, damaged, unsafe or do not fit the model."""


class ShapeError(SteadysegError, ValueError):
    """A tensor whose shape, size or dtype does not fit."""


def check_shape(name: str, tensor: Tensor, shape: Sequence[int | str], dtype: torch.dtype | None = None) -> None:
    """Raise unless `tensor` has the given shape (and dtype).

    Args:
        name: what the tensor is, for the message.
        tensor: any tensor.
        shape: one entry per axis: an int must match exactly, a str names a free axis;
            the same name twice must have the same size.
        dtype: the expected dtype, or None for any.

    Raises:
        ShapeError: with the expected and the actual shape or dtype.
    """
    wanted = "[" + ", ".join(str(size) for size in shape) + "]"
    named: dict[str, int] = {}
    fits = tensor.ndim == len(shape)
    for size, actual in zip(shape, tensor.shape, strict=False):
        expected = named.setdefault(size, actual) if isinstance(size, str) else size
        fits = fits and expected == actual
    if not fits:
        raise ShapeError(f"{name} has shape {list(tensor.shape)}; expected {wanted}")
    if dtype is not None and tensor.dtype != dtype:
        raise ShapeError(f"{name} is {tensor.dtype}; expected {dtype}")


@dataclass(frozen=True)
class Clip:
    """A training sample: consecutive or strided frames of one video; unbatched it lacks the axis B."""

    frames: Tensor
    """uint8 [B, T, 3, H, W] RGB; ``frames[:, -1]`` is the target frame."""
    labels: Tensor
    """uint8 [B, T, H, W] class index or IGNORE (unlabelled frame, padding)."""
    index: Tensor
    """int64 [B, T] frame number in its video."""

    def to(self, device: torch.device | str) -> Clip:
        """Return the clip on `device`."""
        return Clip(*(x.to(device, non_blocking=True) for x in (self.frames, self.labels, self.index)))

    def pin_memory(self) -> Clip:
        """Return the clip in page-locked memory (called by the data loader)."""
        return Clip(self.frames.pin_memory(), self.labels.pin_memory(), self.index.pin_memory())

    @staticmethod
    def stack(clips: Sequence[Clip]) -> Clip:
        """Stack unbatched clips of equal shape to one batch; the data loader's ``collate_fn``."""
        return Clip(
            torch.stack([clip.frames for clip in clips]),  # [B, T, 3, H, W]
            torch.stack([clip.labels for clip in clips]),  # [B, T, H, W]
            torch.stack([clip.index for clip in clips]),  # [B, T]
        )


class Frame(NamedTuple):
    """One frame of a video, from a file, a camera or a data set."""

    image: Tensor
    """uint8 [3, H, W] RGB."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    """Frame number in its video."""
    time: float
    """Seconds since the start of the video."""
    labels: Tensor | None = None
    """uint8 [H, W] class index or IGNORE; None where not annotated."""


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return the usual bit-interleaved label colours (PASCAL VOC's scheme), one RGB triple a class."""
    colours = []
    for number in range(1, num_classes + 1):
        r = g = b = 0
        for bit in range(8):
            r |= (number >> (3 * bit) & 1) << (7 - bit)
            g |= (number >> (3 * bit + 1) & 1) << (7 - bit)
            b |= (number >> (3 * bit + 2) & 1) << (7 - bit)
        colours.append((r, g, b))
    return tuple(colours)

"""The one abstraction of this folder: a backbone is an ordered list of named units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn

NormEps = Literal["nvlabs", "hf"]
"""LayerNorm epsilon of a MiT: the authors' (1e-6, but 1e-5 after embedding and reduction) or transformers' (1e-5)."""

STAGES = ("stage1", "stage2", "stage3", "stage4")


class Backbone(nn.Module, ABC):
    """A network of four stages that can be cut after any of its named units.

    Attributes:
        channels: channels of stage1..stage4.
        strides: strides of stage1..stage4 in input pixels, (4, 8, 16, 32) unless dilated.
        minimum: smallest height and width of an image, in pixels.
        shallow: the unit after which the cheapest useful feature map is ready.
        architecture: what `build_backbone` needs beside the name to build it again; None for our own.
        unpublished: prefixes of parameters that published weights lack.
    """

    channels: tuple[int, int, int, int]
    strides: tuple[int, int, int, int] = (4, 8, 16, 32)
    minimum: int = 32
    shallow: str = "stage1"
    architecture: Mapping[str, Any] | None = None
    unpublished: tuple[str, ...] = ()

    @abstractmethod
    def units(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Yield (name, function) in order; a name is "stem", "stage1.block1" or, at a stage's end, "stage1".

        Each function maps [B, C, h, w] to [B, C', h', w'], or whatever value this network passes on to the next unit.
        A network that can only run as a whole yields nothing, and overrides `forward`.
        """

    def output(self, name: str, value: Any) -> Tensor:
        """Return the map [B, C, h, w] that stands for `value`, what unit `name` passes on; a map stands for itself."""
        return value

    def forward(self, x: Tensor, *, start: str | None = None, stop: str = "stage4") -> dict[str, Tensor]:
        """Run the units after `start` up to and including `stop`.

        Args:
            x: float [B, 3, H, W] normalised image, or the output of unit `start`.
            start: name of the unit that produced `x`; None starts at the image.
            stop: name of the last unit to run.

        Returns:
            Every finished stage by name ("stage1".."stage4"), and `stop`; each [B, C, h, w].

        Raises:
            KeyError: if `start` or `stop` is not a unit, or `stop` does not come after `start`.
        """
        units = list(self.units())
        names = [name for name, _ in units]
        first = 0 if start is None else names.index(start) + 1 if start in names else len(names)
        if stop not in names[first:]:
            raise KeyError(f"cannot run from {start!r} to {stop!r}; the units are, in order, {names}")
        outputs: dict[str, Tensor] = {}
        for name, unit in units[first : names.index(stop) + 1]:
            x = unit(x)
            if name == stop or name in STAGES:
                outputs[name] = self.output(name, x)
        return outputs

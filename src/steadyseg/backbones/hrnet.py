"""HRNetV2-W18 and W48, of "Deep High-Resolution Representation Learning for Visual Recognition" (TPAMI 2020),
https://arxiv.org/abs/1908.07919

Up to four branches run side by side, the first at stride 4, each further one at half the size, and exchange what they
have after every four blocks. Parameter names are those of the authors' weights (repositories HRNet-Image-Classification
and HRNet-Semantic-Segmentation), so these load as they are. Maps between units are stored channels-last.

The paper's stages are no pyramid, so here "stage1" is the paper's first stage, and "stage2" to "stage4" are three views
of the end of the network, laid out as in a ResNet of output stride 8: the first branch resized to the second one's
size, the second branch, and all four at that size, one behind the other.

Differences from the paper and the authors' segmentation network: that one resizes all branches to stride 4 and builds
its classifier there, which is not built here. Maps are resized with half-pixel centres (align_corners = False), as in
the authors' first code and in the video methods that use it; a later branch of theirs aligns the corners, and their
ImageNet network repeats pixels. In evaluation each convolution is computed with the batch norm behind it merged in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steadyseg.backbones.base import Backbone
from steadyseg.backbones.resnet import Block, check_keys, convolve, merge, with_counters
from steadyseg.layers import Folding, resize
from steadyseg.types import CheckpointError, ShapeError

WIDTHS = {"hrnet_w18": 18, "hrnet_w48": 48}
"""Channels of the first branch; every further branch has twice as many."""
MODULES = {2: 1, 3: 4, 4: 3}
"""Modules of the paper's stages; stage s has s branches."""
BLOCKS = 4
"""Residual blocks of the first stage, and of each branch of each module."""
FIRST = 256
"""Channels of the first stage."""

Maps = tuple[Tensor, ...]
"""One map a branch, [B, C_b, h_b, w_b], the finest first."""


class HRNet(Backbone):
    """High-resolution network; any image of at least 32 x 32 pixels.

    The units are "stem", "stage1.block1".., "stage1", then one for each module of the paper's stages 2 to 4, such as
    "stage3.block2", and "stage4". Those of modules pass on one map a branch: to go on after one of them, `forward`
    needs these maps, not the one that it returns for the unit.

    Args:
        variant: a key of WIDTHS.
    """

    strides = (4, 8, 8, 8)

    def __init__(self, variant: str) -> None:
        super().__init__()
        widths = [WIDTHS[variant] * 2**branch for branch in range(4)]
        self.channels = (FIRST, widths[0], widths[1], sum(widths))
        self.conv1, self.bn1 = _conv3x3(3, 64, 2), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = _conv3x3(64, 64, 2), nn.BatchNorm2d(64)
        blocks = [Block(64 if number == 0 else FIRST, FIRST, is_bottleneck=True) for number in range(BLOCKS)]
        self.layer1 = nn.Sequential(*blocks)
        before = [FIRST]
        for stage, count in MODULES.items():
            setattr(self, f"transition{stage - 1}", Transition(before, widths[:stage]))
            setattr(self, f"stage{stage}", nn.Sequential(*(Exchange(widths[:stage]) for _ in range(count))))
            before = widths[:stage]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)  # the authors' segmentation network

    def stem(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] -> [B, 64, h, w] at stride 4, stored channels-last."""
        x = x.contiguous(memory_format=torch.channels_last)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            x = convolve(x, conv, norm, None if self.layer1[0].is_literal else merge(conv, norm)).relu_()
        return x

    def units(self) -> Iterator[tuple[str, Callable[[Any], Any]]]:
        """Yield "stem", "stage1.block1".., "stage1", "stage2.block1", "stage3.block1".., "stage4.block1".., "stage4".

        Up to "stage1" each maps [B, C, h, w] to [B, C', h', w']; the modules pass on Maps, and "stage4" again one map.
        """
        yield "stem", self.stem
        for number, block in enumerate(self.layer1, start=1):
            yield "stage1" if number == BLOCKS else f"stage1.block{number}", block
        for stage in MODULES:
            transition = getattr(self, f"transition{stage - 1}")
            for number, module in enumerate(getattr(self, f"stage{stage}"), start=1):
                yield f"stage{stage}.block{number}", partial(_advance, transition if number == 1 else None, module)
        yield "stage4", _join

    def output(self, name: str, value: Any) -> Tensor:
        """The map of a unit; for one map a branch, all of them at the second one's size, one behind the other."""
        return value if isinstance(value, Tensor) else _join(value)

    def forward(self, x: Any, *, start: str | None = None, stop: str = "stage4") -> dict[str, Tensor]:
        """Run the units after `start` up to and including `stop`; see Backbone.forward.

        Args:
            x: the image, or what unit `start` passes on.
            start: as there.
            stop: as there.

        Returns:
            As there; "stage2" and "stage3" come with "stage4", of which they are views.

        Raises:
            ShapeError: if `start` passes on one map a branch, and `x` is not that.
        """
        outputs = super().forward(x, start=start, stop=stop)
        if stop == "stage4":
            whole = outputs.pop("stage4")
            first, second, _ = whole.split((*self.channels[1:3], self.channels[3] - sum(self.channels[1:3])), dim=1)
            outputs |= {"stage2": first, "stage3": second, "stage4": whole}
        return outputs


class Transition(nn.ModuleList):
    """From the branches of one stage to those of the next: new widths where they differ, and new, smaller branches."""

    def __init__(self, before: list[int], after: list[int]) -> None:
        super().__init__()
        for branch, width in enumerate(after):
            if branch >= len(before):
                self.append(nn.Sequential(NormedConv(_conv3x3(before[-1], width, 2))))
            elif before[branch] != width:
                self.append(NormedConv(_conv3x3(before[branch], width)))
            else:
                self.append(nn.Identity())

    def forward(self, maps: Maps) -> Maps:
        """One map a branch -> the same with one branch more, made of the last one."""
        return tuple(layer(maps[min(branch, len(maps) - 1)]) for branch, layer in enumerate(self))


class Exchange(nn.Module):
    """A module: four blocks on every branch, then every branch becomes the sum of all."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(Block(width, width, is_bottleneck=False) for _ in range(BLOCKS))) for width in widths
        )
        self.fuse_layers = nn.ModuleList(Fuse(widths, branch) for branch in range(len(widths)))

    def forward(self, maps: Maps) -> Maps:
        """One map a branch -> the same."""
        maps = tuple(branch(x) for branch, x in zip(self.branches, maps, strict=True))
        return tuple(fuse(maps) for fuse in self.fuse_layers)


class Fuse(nn.ModuleList):
    """The sum of all branches at the width and size of one branch."""

    def __init__(self, widths: list[int], branch: int) -> None:
        super().__init__(_path(widths, origin, branch) for origin in range(len(widths)))
        self.branch = branch

    def forward(self, maps: Maps) -> Tensor:
        """One map a branch -> [B, C_b, h_b, w_b], after the ReLU."""
        size = (maps[self.branch].shape[2], maps[self.branch].shape[3])
        first, second, *others = (resize(layer(x), size) for layer, x in zip(self, maps, strict=True))
        total = first + second
        for other in others:
            total.add_(other)
        return total.relu_()


class NormedConv(Folding):
    """A convolution and its batch norm, which the authors' weights call 0 and 1, and a ReLU where it is asked for."""

    def __init__(self, conv: nn.Conv2d, *, has_relu: bool = True) -> None:
        super().__init__()
        self.has_relu = has_relu
        self.add_module("0", conv)
        self.add_module("1", nn.BatchNorm2d(conv.out_channels))

    def fold(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of both in one."""
        return merge(getattr(self, "0"), getattr(self, "1"))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, D, h', w']."""
        merged = None if self.training or self.is_plain else self.folded()
        x = convolve(x, getattr(self, "0"), getattr(self, "1"), merged)  # type: ignore[arg-type]
        return x.relu_() if self.has_relu else x


def _path(widths: list[int], origin: int, to: int) -> nn.Module:
    """What takes a map from branch `origin` to the width, and where that is smaller the size, of branch `to`."""
    if origin == to:
        return nn.Identity()
    if origin > to:
        return NormedConv(nn.Conv2d(widths[origin], widths[to], 1, bias=False), has_relu=False)
    steps = [NormedConv(_conv3x3(widths[origin], widths[origin], 2)) for _ in range(to - origin - 1)]
    return nn.Sequential(*steps, NormedConv(_conv3x3(widths[origin], widths[to], 2), has_relu=False))


def _conv3x3(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)


def _advance(transition: Transition | None, module: Exchange, value: Tensor | Maps) -> Maps:
    """Run one module, the first of a stage after the transition to it; `value` is what the unit before passes on."""
    is_first = len(module.branches) == min(MODULES)
    maps = (value,) if is_first and isinstance(value, Tensor) else _expect_maps(value)
    return module(maps if transition is None else transition(maps))


def _join(value: Maps) -> Tensor:
    """One map a branch -> all at the size of the second one, [B, sum of C_b, h, w]."""
    maps = _expect_maps(value)
    size = (maps[1].shape[2], maps[1].shape[3])
    joined = torch.cat([resize(x, size) for x in maps], dim=1)
    return joined.contiguous(memory_format=torch.channels_last)  # a map of one pixel has no layout of its own


def _expect_maps(value: Tensor | Maps) -> Maps:
    if isinstance(value, Tensor):
        raise ShapeError(
            f"HRNet got one map {list(value.shape)} to go on from after stage1; expected one a branch: cut it after "
            "stage1 or before"
        )
    return value


# ---- published weights -------------------------------------------------------------------------------------------

_HEADS = (  # what the authors' networks have behind the branches, by the first part of the name
    *("incre_modules", "downsamp_modules", "final_layer", "classifier"),  # ImageNet
    *("last_layer", "loss"),  # segmentation, and the loss that its files hold
    *("aux_head", "conv3x3_ocr", "ocr_gather_head", "ocr_distri_head", "cls_head"),  # object contexts
)


def from_hrnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the authors' weights of an HRNetV2-W18 or W48, for ImageNet or segmentation; heads are dropped by name.

    Args:
        state: a flat state dict, with or without the prefixes "module." and "model.".

    Returns:
        Our keys. Counters of batches, which older files lack, are 0.

    Raises:
        CheckpointError: listing keys that are missing or not part of such an HRNet.
    """
    plain = {key.removeprefix("module.").removeprefix("model."): value for key, value in state.items()}
    plain = with_counters({key: value for key, value in plain.items() if key.split(".")[0] not in _HEADS})
    first = plain.get("transition1.0.0.weight")
    if first is None:
        raise CheckpointError("the weights have no key transition1.0.0.weight; expected those of an HRNetV2")
    name = next((name for name, width in WIDTHS.items() if width == len(first)), None)
    if name is None:
        raise CheckpointError(f"the weights are of an HRNet of width {len(first)}; expected {' or '.join(WIDTHS)}")
    with torch.device("meta"):
        expected = HRNet(name).state_dict()
    check_keys(plain, expected, f"an {name}")
    return plain

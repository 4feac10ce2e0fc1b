"""ResNet-18/50/101 with dilated last stages, of "Deep Residual Learning for Image Recognition" (CVPR 2016),
https://arxiv.org/abs/1512.03385; with the suffix "_ppm" the trunk of "Pyramid Scene Parsing Network" (CVPR 2017),
https://arxiv.org/abs/1612.01105

Parameter names are those of torchvision's ImageNet weights ("resnet50"), and of the weights with a stem of three 3x3
convolutions of the repository hszhao/semseg ("resnet50s"), so these load as they are; the pyramid pooling has the
names of the latter. Maps between units are stored channels-last.

Differences from the ResNet paper: the stride of a bottleneck is in its 3x3 convolution, as in torchvision; with an
output stride of 8, stages 3 and 4 keep the size of stage 2 and dilate the bottleneck's 3x3 convolutions, or the second
one of a basic block, by 2 and 4, all blocks of a stage alike. This is the segmentation network of hszhao/semseg;
torchvision's dilates the first block of a stage less. Differences from PSPNet's paper: none.
Differences from their code: no classifier is built; in evaluation each convolution is computed with the batch norm
behind it merged in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.backbones.base import STAGES, Backbone
from steadyseg.layers import Folding
from steadyseg.types import CheckpointError, ConfigError, ShapeError

BINS = (1, 2, 3, 6)
"""Cells along each side in the levels of the pyramid pooling (PSPNet, Sec. 3.2)."""
EXPANSION = 4
"""A bottleneck's output has this many times the channels of its 3x3 convolution."""


class Variant(NamedTuple):
    """What tells the networks of this file apart (ResNet, Table 1)."""

    depths: tuple[int, int, int, int]
    is_bottleneck: bool
    has_deep_stem: bool = False
    has_pooling: bool = False


_PLAIN = {
    "resnet18": Variant((2, 2, 2, 2), is_bottleneck=False),
    "resnet50": Variant((3, 4, 6, 3), is_bottleneck=True),
    "resnet101": Variant((3, 4, 23, 3), is_bottleneck=True),
    "resnet50s": Variant((3, 4, 6, 3), is_bottleneck=True, has_deep_stem=True),
    "resnet101s": Variant((3, 4, 23, 3), is_bottleneck=True, has_deep_stem=True),
}
VARIANTS = _PLAIN | {f"{name}_ppm": variant._replace(has_pooling=True) for name, variant in _PLAIN.items()}


class ResNet(Backbone):
    """Residual network; any image of at least 32 x 32 pixels.

    The units are "stem", then "stageI.block1".. for all blocks of a stage but the last, which is "stageI"; where there
    is pyramid pooling, this is "stage4" and all blocks before it have their own name.

    Args:
        variant: a key of VARIANTS.
        output_stride: stride of the last stages, 8, 16 or 32; they dilate instead of shrinking further.

    Raises:
        ConfigError: if `output_stride` is another.
    """

    layer1: nn.Sequential

    def __init__(self, variant: str, *, output_stride: int = 8) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"the output stride of a ResNet is {output_stride}; expected 8, 16 or 32")
        sizes = VARIANTS[variant]
        self.has_deep_stem = sizes.has_deep_stem
        before = self._build_stem()
        widths = [64 * 2**stage * (EXPANSION if sizes.is_bottleneck else 1) for stage in range(4)]
        strides, dilation = [4], 1
        for stage, (width, depth) in enumerate(zip(widths, sizes.depths, strict=True), start=1):
            stride = 1 if stage == 1 else 2
            if strides[-1] * stride > output_stride:
                stride, dilation = 1, 2 * dilation
            strides.append(strides[-1] * stride)
            blocks = [Block(before, width, is_bottleneck=sizes.is_bottleneck, stride=stride, dilation=dilation)]
            for _ in range(1, depth):
                blocks.append(Block(width, width, is_bottleneck=sizes.is_bottleneck, dilation=dilation))
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            before = width
        self.ppm = PyramidPooling(before) if sizes.has_pooling else None
        self.unpublished = ("ppm.",) if sizes.has_pooling else ()
        widths[3] *= 2 if sizes.has_pooling else 1
        self.channels = tuple(widths)  # type: ignore[assignment]
        self.strides = tuple(strides[1:])  # type: ignore[assignment]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _build_stem(self) -> int:
        """Register the convolutions of the stem and return its channels."""
        widths = (64, 64, 128) if self.has_deep_stem else (64,)
        before = 3
        for number, width in enumerate(widths, start=1):
            kernel = 3 if self.has_deep_stem else 7
            conv = nn.Conv2d(before, width, kernel, stride=2 if number == 1 else 1, padding=kernel // 2, bias=False)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", nn.BatchNorm2d(width))
            before = width
        return before

    def stem(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] -> [B, C, h, w] at stride 4, stored channels-last."""
        x = x.contiguous(memory_format=torch.channels_last)
        for number in (1, 2, 3) if self.has_deep_stem else (1,):
            conv, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            x = convolve(x, conv, norm, None if self.layer1[0].is_literal else merge(conv, norm)).relu_()
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def units(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Yield "stem", "stage1.block1".., "stage1" to "stage4"; each maps [B, C, h, w] to [B, C', h', w']."""
        yield "stem", self.stem
        for number, stage in enumerate(STAGES, start=1):
            *blocks, last = getattr(self, f"layer{number}")
            for position, block in enumerate(blocks, start=1):
                yield f"{stage}.block{position}", block
            if stage == STAGES[-1] and self.ppm is not None:
                yield f"{stage}.block{len(blocks) + 1}", last
                last = self.ppm
            yield stage, last


class Block(Folding):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 with fewer channels inside (a bottleneck).

    Args:
        channels: channels of the input.
        width: channels of the output.
        is_bottleneck: which of the two.
        stride: of the block.
        dilation: of a bottleneck's 3x3 convolution, and of the second one of the other kind.
    """

    def __init__(self, channels: int, width: int, *, is_bottleneck: bool, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        if is_bottleneck:
            inside = width // EXPANSION
            convs = [_conv(channels, inside, 1), _conv(inside, inside, 3, stride, dilation), _conv(inside, width, 1)]
        else:
            convs = [_conv(channels, width, 3, stride), _conv(width, width, 3, 1, dilation)]
        self.count = len(convs)
        for number, conv in enumerate(convs, start=1):
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", nn.BatchNorm2d(conv.out_channels))
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(_conv(channels, width, 1, stride), nn.BatchNorm2d(width))

    @property
    def is_literal(self) -> bool:
        """Whether convolutions and norms are computed one after the other: in training, and where it is asked for."""
        return self.training or self.is_plain

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Return every convolution and the norm behind it; those of the shortcut, where it has any, come last."""
        pairs = [(getattr(self, f"conv{number}"), getattr(self, f"bn{number}")) for number in range(1, self.count + 1)]
        if self.downsample is not None:
            pairs.append((self.downsample[0], self.downsample[1]))
        return pairs

    def fold(self) -> tuple[Tensor, ...]:
        """Return weight and bias of every pair, one after the other."""
        return tuple(tensor for pair in self.pairs() for tensor in merge(*pair))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, D, h', w']."""
        pairs = self.pairs()
        merged: list[tuple[Tensor, Tensor] | None] = [None] * len(pairs)
        if not self.is_literal:
            folded = self.folded()
            merged = [*zip(folded[::2], folded[1::2], strict=True)]
        last = self.count - 1
        out = x
        for number in range(last):
            out = convolve(out, *pairs[number], merged[number]).relu_()
        out = convolve(out, *pairs[last], merged[last])
        shortcut = x if self.downsample is None else convolve(x, *pairs[-1], merged[-1])
        return out.add_(shortcut).relu_()


class PyramidPooling(nn.Module):
    """Averages over 1, 2 x 2, 3 x 3 and 6 x 6 cells, each mapped to a quarter of the channels, behind the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // len(BINS)
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(cells), _conv(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            )
            for cells in BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, 2 * C, h, w]; corners are aligned, as the authors train it.

        Raises:
            ShapeError: for one image in training, where the average over all of it leaves nothing to normalise.
        """
        if self.training and x.shape[0] == 1 and any(isinstance(m, nn.BatchNorm2d) for m in self.modules()):
            raise ShapeError("pyramid pooling got a batch of 1 in training; its batch norm needs at least 2 images")
        size = (x.shape[2], x.shape[3])
        levels = [F.interpolate(level(x), size=size, mode="bilinear", align_corners=True) for level in self.features]
        # A map of one pixel has no layout of its own: without this the concatenation would not be channels-last.
        return torch.cat([x, *(level.contiguous(memory_format=torch.channels_last) for level in levels)], dim=1)


# ---- convolution and norm, shared with HRNet ---------------------------------------------------------------------


def merge(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight [D, C, k, k] and bias [D] of a convolution with the norm, in evaluation, inside."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def convolve(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, merged: tuple[Tensor, Tensor] | None) -> Tensor:
    """Apply a convolution and a norm, or `merged`, which is both in one; x [B, C, h, w] -> a new [B, D, h', w']."""
    if merged is None:
        return norm(conv(x))
    return F.conv2d(x, *merged, stride=conv.stride, padding=conv.padding, dilation=conv.dilation)


def _conv(channels: int, width: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = kernel // 2 * dilation
    return nn.Conv2d(channels, width, kernel, stride, padding=padding, dilation=dilation, bias=False)


# ---- published weights -------------------------------------------------------------------------------------------

LISTED = 20
"""Keys that an error names."""
_TENSOR = r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
_KEY = re.compile(rf"((layer[1-4]\.\d+\.)?(conv|bn)[1-3]|layer[1-4]\.\d+\.downsample\.[01]){_TENSOR}")
_HUGGINGFACE = (  # transformers' name (a regular expression) -> ours; stages and layers count from 0 there
    (r"embedder\.embedder\.convolution\.", "conv1."),
    (r"embedder\.embedder\.normalization\.", "bn1."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution\.", "layer{0}.{1}.conv{2}."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.normalization\.", "layer{0}.{1}.bn{2}."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.convolution\.", "layer{0}.{1}.downsample.0."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.normalization\.", "layer{0}.{1}.downsample.1."),
)


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take torchvision's ImageNet weights of a ResNet-18, 50 or 101; the classifier is dropped by name.

    Args:
        state: a flat state dict, with or without the prefix "module.".

    Returns:
        Our keys, those of a ResNet without pyramid pooling. Counters of batches, which older files lack, are 0.

    Raises:
        CheckpointError: listing keys that are missing or not part of such a ResNet.
    """
    return _take(state, has_deep_stem=False)


def from_deep_stem(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take ImageNet weights with a stem of three 3x3 convolutions, as hszhao/semseg has; else as `from_torchvision`."""
    return _take(state, has_deep_stem=True)


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' ResNet to ours; else as `from_torchvision`.

    Args:
        state: with or without the prefix "resnet." and the classifier. A model whose config.json says
            downsample_in_bottleneck or downsample_in_first_stage has the same keys, but is another network.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        short = key.removeprefix("resnet.")
        if short in ("classifier.1.weight", "classifier.1.bias"):
            continue
        for pattern, name in _HUGGINGFACE:
            if match := re.match(pattern, short):
                stage, block, layer = (int(number) for number in (*match.groups(), 0, 0, 0)[:3])
                renamed[name.format(stage + 1, block, layer + 1) + short[match.end() :]] = value
                break
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"not keys of transformers' ResNet: {_first(sorted(unknown))}")
    return _take(renamed, has_deep_stem=False)


def with_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with a counter of batches for every norm; files of old PyTorch versions have none."""
    counters = {
        key.replace("running_var", "num_batches_tracked"): torch.tensor(0)
        for key in state
        if key.endswith(".running_var")
    }
    return counters | dict(state)


def check_keys(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError, listing them, if keys of `found` are missing or not among the `expected`."""
    missing = [key for key in expected if key not in found]
    unknown = [key for key in found if key not in expected]
    lists = {"missing": missing, "unknown": unknown}
    problems = [f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in lists.items() if keys]
    if problems:
        raise CheckpointError(f"keys do not fit {what}: {'; '.join(problems)}")


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:LISTED]) + (", ..." if len(keys) > LISTED else "")


def _take(state: Mapping[str, Tensor], *, has_deep_stem: bool) -> dict[str, Tensor]:
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    plain = with_counters({key: value for key, value in plain.items() if key not in ("fc.weight", "fc.bias")})
    if unknown := [key for key in plain if not _KEY.fullmatch(key)]:
        raise CheckpointError(f"not keys of a ResNet: {_first(sorted(unknown))}")
    if has_deep_stem != ("conv3.weight" in plain):
        stems = ["a 7x7 stem (take resnet50 or resnet101)", "a stem of three convolutions (take resnet50s, resnet101s)"]
        found, expected = stems if has_deep_stem else stems[::-1]
        raise CheckpointError(f"the weights have {found}; expected {expected.partition(' (')[0]}")
    blocks = {tuple(key.split(".")[:2]) for key in plain if key.startswith("layer")}
    depths = tuple(sum(layer == f"layer{stage}" for layer, _ in blocks) for stage in (1, 2, 3, 4))
    kind = (depths, "layer1.0.conv3.weight" in plain, has_deep_stem, False)
    name = next((name for name, variant in VARIANTS.items() if variant == kind), None)
    if name is None:
        raise CheckpointError(f"the weights have {depths} blocks; no ResNet here has: take one of {', '.join(_PLAIN)}")
    with torch.device("meta"):
        expected_keys = ResNet(name).state_dict()
    check_keys(plain, expected_keys, f"a {name}")
    return plain

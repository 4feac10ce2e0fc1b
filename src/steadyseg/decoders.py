"""Per-frame decode heads that several methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.layers import ConvNorm, Folding, classify, pointwise, resize, to_map, to_tokens


class SegFormerDecoder(Folding):
    """The all-MLP decoder of SegFormer (Sec. 3.2), computed folded.

    The paper maps every level to `width` channels, resizes all to the finest level, concatenates, fuses by a 1x1
    convolution and normalises. A 1x1 map commutes with a bilinear resize, so each level's linear map and its slice
    of the fuse convolution (in evaluation also the norm) merge into one 1x1 map at the level's own size.
    Parameters stay as published; only the order of the sums differs.

    Args:
        channels: channels of stage1..stage4.
        width: D, channels of the decoder.
        num_classes: K; None leaves the classifier out, for methods that only want `features`.
        dropout: rate of channel-wise dropout before the classifier.
    """

    def __init__(self, channels: tuple[int, ...], width: int, num_classes: int | None, *, dropout: float = 0.1) -> None:
        super().__init__()
        for level, count in enumerate(channels, start=1):
            linear = nn.Module()
            linear.proj = nn.Linear(count, width)
            setattr(self, f"linear_c{level}", linear)
        self.levels = tuple(range(len(channels), 0, -1))  # the published concatenation puts the deepest level first
        self.linear_fuse = ConvNorm(len(channels) * width, width)
        self.dropout = nn.Dropout2d(dropout)
        if num_classes is not None:
            self.linear_pred = nn.Conv2d(width, num_classes, 1)

    def fold(self) -> tuple[Tensor, ...]:
        """Return the shared bias [D] and, deepest level first, one weight [D, C] a level."""
        fuse, bias = self.linear_fuse.merged()
        slices = fuse.chunk(len(self.levels), dim=1)  # each [D, D]
        linears = [getattr(self, f"linear_c{level}").proj for level in self.levels]
        weights = [part @ linear.weight for part, linear in zip(slices, linears, strict=True)]  # [D, C]
        bias = bias + sum(part @ linear.bias for part, linear in zip(slices, linears, strict=True))  # [D]
        return bias, *weights

    def features(self, stages: dict[str, Tensor], kept: Tensor | None = None) -> Tensor:
        """Fuse the levels.

        Args:
            stages: "stage1".."stage4", each [B, C_i, h_i, w_i]; those inside `kept` may be left out.
            kept: what `partial` gave for the levels that are not in `stages`, [B, D, h_1, w_1].

        Returns:
            fused map [B, D, h_1, w_1], after the ReLU.
        """
        size = (stages["stage1"].shape[2], stages["stage1"].shape[3])
        if self.is_plain and kept is None:
            return self.linear_fuse(torch.cat([self.project(stages, level, size) for level in self.levels], dim=1))
        fused = self.partial(stages, size)
        if kept is not None:
            fused = fused + kept
        if self.is_plain:
            return torch.relu(self.linear_fuse.bn(fused))
        return self.linear_fuse.finish(fused)

    def partial(self, stages: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Sum the shares of some levels in the fuse convolution, which is linear; the bias is in the share of stage1.

        Args:
            stages: any of "stage1".."stage4", each [B, C_i, h_i, w_i].
            size: (h_1, w_1), that of stage1.

        Returns:
            [B, D, h_1, w_1].
        """
        levels = [level for level in self.levels[::-1] if f"stage{level}" in stages]
        if self.is_plain:
            slices = dict(zip(self.levels, self.linear_fuse.conv.weight.chunk(len(self.levels), dim=1), strict=True))
            parts = [F.conv2d(self.project(stages, level, size), slices[level]) for level in levels]
        else:
            bias, *folded = self.folded()
            weights = dict(zip(self.levels, folded, strict=True))
            parts = [
                resize(pointwise(stages[f"stage{level}"], weights[level], bias if level == 1 else None), size)
                for level in levels
            ]
        return sum(parts[1:], start=parts[0])

    def project(self, stages: dict[str, Tensor], level: int, size: tuple[int, int]) -> Tensor:
        """Literal form: the linear map of one level, resized; -> [B, D, h_1, w_1]."""
        tokens = getattr(self, f"linear_c{level}").proj(to_tokens(stages[f"stage{level}"]))  # [B, N, D]
        return resize(to_map(tokens, (stages[f"stage{level}"].shape[2], stages[f"stage{level}"].shape[3])), size)

    def forward(self, stages: dict[str, Tensor]) -> Tensor:
        """stages "stage1".."stage4" [B, C_i, h_i, w_i] -> logits [B, K, h_1, w_1]."""
        fused = self.dropout(self.features(stages))
        return classify(fused, self.linear_pred.weight[:, :, 0, 0], self.linear_pred.bias)

"""Mix Transformer (MiT-B0..B5), the backbone of "SegFormer: Simple and Efficient Design for Semantic Segmentation
with Transformers" (NeurIPS 2021), https://arxiv.org/abs/2105.15203

Parameter names are those of the published ImageNet weights, so these load as they are. Maps between units are
stored channels-last, which makes the change between maps and tokens a view.

Differences from the paper: none. Differences from the authors' code: attention runs through
``layers.attention``; the unused classification head is not built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadyseg.backbones.base import Backbone, NormEps
from steadyseg.layers import DropPath, apply_norm, attention, to_map, to_tokens
from steadyseg.ops.depthwise_gelu import depthwise_gelu
from steadyseg.ops.sample import is_exporting
from steadyseg.types import CheckpointError


class Variant(NamedTuple):
    """Sizes of one MiT (SegFormer, Table 6)."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


SMALL, LARGE = (32, 64, 160, 256), (64, 128, 320, 512)
VARIANTS = {
    "mit_b0": Variant(SMALL, (2, 2, 2, 2)),
    "mit_b1": Variant(LARGE, (2, 2, 2, 2)),
    "mit_b2": Variant(LARGE, (3, 4, 6, 3)),
    "mit_b3": Variant(LARGE, (3, 4, 18, 3)),
    "mit_b4": Variant(LARGE, (3, 8, 27, 3)),
    "mit_b5": Variant(LARGE, (3, 6, 40, 3)),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
MLP_RATIO = 4


class MiT(Backbone):
    """Hierarchical transformer encoder without positional embedding; any input of at least 32 x 32 pixels.

    Args:
        variant: a key of VARIANTS.
        drop_path: stochastic depth rate of the last block; the first has 0, linear in between.
        norm_eps: whose LayerNorm epsilon to use.
    """

    shallow = "stage1.block1"

    def __init__(self, variant: str, *, drop_path: float = 0.1, norm_eps: NormEps = "nvlabs") -> None:
        super().__init__()
        self.channels, self.depths = VARIANTS[variant]
        eps = 1e-6 if norm_eps == "nvlabs" else 1e-5
        last = sum(self.depths) - 1
        rates = [drop_path * number / last for number in range(last + 1)]
        before = 3
        for stage, (width, depth) in enumerate(zip(self.channels, self.depths, strict=True), start=1):
            embed = PatchEmbedding(before, width, kernel=7 if stage == 1 else 3, stride=4 if stage == 1 else 2)
            blocks = [
                Block(width, HEADS[stage - 1], REDUCTIONS[stage - 1], rates.pop(0), eps=eps) for _ in range(depth)
            ]
            setattr(self, f"patch_embed{stage}", embed)
            setattr(self, f"block{stage}", nn.ModuleList(blocks))
            setattr(self, f"norm{stage}", nn.LayerNorm(width, eps=eps))
            before = width
        self.apply(_initialise)

    def units(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Yield "stageI.embed", "stageI.block1".., "stageI" for I = 1..4; each maps [B, C, h, w] to [B, C', h', w']."""
        for stage, depth in enumerate(self.depths, start=1):
            yield f"stage{stage}.embed", getattr(self, f"patch_embed{stage}")
            for number in range(depth):
                yield f"stage{stage}.block{number + 1}", getattr(self, f"block{stage}")[number]
            yield f"stage{stage}", partial(_norm_map, getattr(self, f"norm{stage}"))


class PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution, then a LayerNorm over channels."""

    def __init__(self, channels: int, width: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, width, h, w]."""
        return _norm_map(self.norm, self.proj(x.contiguous(memory_format=torch.channels_last)))


class Block(nn.Module):
    """Pre-norm transformer block: attention with spatial reduction of keys and values, then the Mix-FFN."""

    def __init__(self, width: int, heads: int, reduction: int, rate: float, *, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = ReducedAttention(width, heads, reduction)
        self.drop_path = DropPath(rate)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MixFFN(width, MLP_RATIO * width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> [B, C, h, w]."""
        size = (x.shape[2], x.shape[3])
        tokens = to_tokens(x)  # [B, N, C]
        tokens = tokens + self.drop_path(self.attn(apply_norm(self.norm1, tokens, rounded=True), size))
        tokens = tokens + self.drop_path(self.mlp(apply_norm(self.norm2, tokens, rounded=True), size))
        return to_map(tokens, size)


class ReducedAttention(nn.Module):
    """Multi-head attention whose keys and values come from a map reduced by a strided convolution (Eq. (2))."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """tokens [B, N, C] of an h x w map -> [B, N, C]."""
        q = self.q(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        reduced = tokens
        if self.reduction > 1:
            reduced = apply_norm(self.norm, self.reduce(tokens, size), rounded=True)  # [B, M, C]
        kv = self.kv(reduced).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [2, B, heads, M, d]
        out = attention(q, kv[0], kv[1])  # [B, heads, N, d]
        return self.proj(out.transpose(1, 2).flatten(2))  # [B, N, C]

    def reduce(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """tokens [B, N, C] of an h x w map -> [B, M, C] after the strided convolution."""
        if tokens.device.type == "cpu" or is_exporting():
            return to_tokens(self.sr(to_map(tokens, size)))
        return self.reduce_patches(tokens, size)

    def reduce_patches(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """The same as one product of patches, which do not overlap, and weights; for GPUs.

        Libraries of convolutions give so few results of so large sums to a few of its processors.
        """
        side = self.reduction
        rows, columns = size[0] // side, size[1] // side
        whole = tokens.unflatten(1, size)[:, : rows * side, : columns * side]  # [B, M_y * r, M_x * r, C]
        grid = whole.unflatten(2, (columns, side)).unflatten(1, (rows, side))  # [B, M_y, r, M_x, r, C]
        patches = grid.transpose(2, 3).flatten(3).flatten(1, 2)  # [B, M, r * r * C]
        weight = self.sr.weight.permute(0, 2, 3, 1).flatten(1)  # [C, r * r * C]
        return F.linear(patches, weight, self.sr.bias)  # [B, M, C]


class MixFFN(nn.Module):
    """Feed-forward network with a depth-wise 3x3 convolution inside (Eq. (3))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)})
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """tokens [B, N, C] of an h x w map -> [B, N, C]."""
        conv = self.dwconv["dwconv"]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        return self.fc2(depthwise_gelu(self.fc1(tokens), size, conv.weight, conv.bias))  # [B, N, C]


def _norm_map(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm over the channels of a map [B, C, h, w]."""
    return to_map(apply_norm(norm, to_tokens(x)), (x.shape[2], x.shape[3]))


def _initialise(module: nn.Module) -> None:
    """Authors' initialisation: truncated normal 0.02 for linear maps, He normal over the fan-out for convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


# ---- published weights -------------------------------------------------------------------------------------------

_HUGGINGFACE = (  # transformers' name (a regular expression) -> ours; stages count from 0 there, from 1 here
    (r"patch_embeddings\.(\d)\.proj\.", "patch_embed{0}.proj."),
    (r"patch_embeddings\.(\d)\.layer_norm\.", "patch_embed{0}.norm."),
    (r"block\.(\d)\.(\d+)\.layer_norm_(\d)\.", "block{0}.{1}.norm{2}."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.query\.", "block{0}.{1}.attn.q."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.key\.", "block{0}.{1}.attn.k."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.value\.", "block{0}.{1}.attn.v."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.sr\.", "block{0}.{1}.attn.sr."),
    (r"block\.(\d)\.(\d+)\.attention\.self\.layer_norm\.", "block{0}.{1}.attn.norm."),
    (r"block\.(\d)\.(\d+)\.attention\.output\.dense\.", "block{0}.{1}.attn.proj."),
    (r"block\.(\d)\.(\d+)\.mlp\.dense(\d)\.", "block{0}.{1}.mlp.fc{2}."),
    (r"block\.(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", "block{0}.{1}.mlp.dwconv.dwconv."),
    (r"layer_norm\.(\d)\.", "norm{0}."),
)


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the encoder weights of transformers' SegFormer to ours.

    Args:
        state: keys as below ``segformer.encoder.``, without that prefix.

    Returns:
        Our keys. Separate keys and values are stacked, key first.

    Raises:
        CheckpointError: listing keys that are not part of a MiT.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        for pattern, name in _HUGGINGFACE:
            if match := re.match(pattern, key):
                stage, *rest = match.groups()
                renamed[name.format(int(stage) + 1, *rest) + key[match.end() :]] = value
                break
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"not keys of a SegFormer encoder: {', '.join(sorted(unknown))}")
    for key in [key for key in renamed if ".attn.k." in key]:
        other = key.replace(".attn.k.", ".attn.v.")
        if other not in renamed:
            raise CheckpointError(f"{key} has no matching value projection")
        renamed[key.replace(".attn.k.", ".attn.kv.")] = torch.cat((renamed.pop(key), renamed.pop(other)))
    return renamed


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our weights to transformers', the inverse of `from_huggingface`; keys come without a prefix."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = {key: value}
        if ".attn.kv." in key:
            k, v = value.chunk(2)
            parts = {key.replace(".kv.", ".k."): k.clone(), key.replace(".kv.", ".v."): v.clone()}
        for ours, tensor in parts.items():
            renamed[_huggingface_key(ours)] = tensor
    return renamed


def _huggingface_key(key: str) -> str:
    for pattern, name in _HUGGINGFACE:
        ours = re.escape(name).replace(r"\{0\}", r"(\d)").replace(r"\{1\}", r"(\d+)").replace(r"\{2\}", r"(\d)")
        if match := re.match(ours, key):
            stage, *rest = match.groups()
            theirs = pattern.replace("\\.", ".")
            for value in (str(int(stage) - 1), *rest):
                theirs = re.sub(r"\(\\d\+?\)", value, theirs, count=1)
            return theirs + key[match.end() :]
    raise KeyError(key)


def from_nvlabs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the encoder weights of the authors' files; names are equal, the ImageNet classifier is dropped by name.

    Args:
        state: a flat state dict, with or without the prefix "backbone.".
    """
    plain = {key.removeprefix("backbone."): value for key, value in state.items()}
    return {key: value for key, value in plain.items() if key not in ("head.weight", "head.bias")}
